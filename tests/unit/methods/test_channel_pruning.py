# SPDX-License-Identifier: Apache-2.0
"""Orders of units, and the curves made of them."""

import numpy as np
import pytest
import torch
from torch import Tensor

from slimrank import OptionError, ShapeError
from slimrank.linalg import Consumer, Moments, MomentSums, Removal
from slimrank.methods import (
    anchor_counts,
    anchored_group_curve,
    group_curve,
    inner_removal,
    relative_group_curve,
    removal_by_magnitude,
    removal_by_obs,
    removal_by_order,
    removal_by_random,
)
from slimrank.records import CHANNEL_ORDERS, GroupCurve, GroupSpec


def _group(units: int) -> GroupSpec:
    return GroupSpec(name="conv", units=units, unit_width=1, producers=("conv",), consumers=("next",))


def _removal(units: int, rng: torch.Generator) -> Removal:
    costs = torch.rand(units, dtype=torch.float64, generator=rng).sort().values.square()
    errors = torch.cat([costs.new_zeros(1), costs.cumsum(0)])
    return Removal(order=torch.randperm(units, generator=rng), errors=errors)


def _curve(units: int, rng: torch.Generator) -> GroupCurve:
    return group_curve(_group(units), _removal(units, rng))


def _consumer(n_units: int, width: int, rng: torch.Generator) -> Consumer:
    sums = MomentSums(n_units * width)
    sums.add(torch.randn((300, n_units * width), generator=rng))
    weight = torch.randn((5, n_units * width), dtype=torch.float64, generator=rng)
    return Consumer(
        weight=weight,
        moments=sums.moments(),
        root=torch.eye(5, dtype=torch.float64),
        unit_of=torch.arange(n_units).repeat_interleave(width),
    )


def test_every_order_is_one_of_all_units(rng: torch.Generator) -> None:
    consumers = [_consumer(6, 2, rng), _consumer(6, 1, rng)]
    removals = {order: removal_by_order(order, consumers, 6, generator=rng) for order in CHANNEL_ORDERS}
    assert list(removals) == ["obs", "magnitude", "random"]
    for removal in removals.values():
        assert removal.order.sort().values.tolist() == list(range(6))
        assert (removal.errors.diff() >= 0).all()
        # Whatever the order, all is lost in the end.
        torch.testing.assert_close(removal.errors[-1], removals["obs"].errors[-1])
    assert float(removals["obs"].errors[1]) <= min(float(one.errors[1]) for one in removals.values())


def test_magnitude_sums_squared_weights_over_consumers_and_taps(rng: torch.Generator) -> None:
    consumer = _consumer(3, 2, rng)
    weight = torch.tensor([[3.0, 0.0, 1.0, 1.0, 2.0, 0.0, 9.0]], dtype=torch.float64)
    wide = Consumer(
        weight=weight,
        moments=Moments.identity(7, torch.device("cpu")),
        root=torch.eye(1, dtype=torch.float64),
        unit_of=torch.tensor([0, 0, 1, 1, 2, 2, -1]),
    )
    assert removal_by_magnitude([wide], 3).order.tolist() == [1, 2, 0]
    own = consumer.weight.square().sum(0).view(3, 2).sum(1)
    both = own + torch.tensor([9.0, 2.0, 4.0], dtype=torch.float64)
    assert removal_by_magnitude([wide, consumer], 3).order.tolist() == both.argsort().tolist()
    assert removal_by_magnitude([], 3).errors.tolist() == [0, 0, 0, 0]


def test_random_orders_come_from_the_generator(rng: torch.Generator) -> None:
    consumers = [_consumer(8, 1, rng)]
    first, second = (
        removal_by_random(consumers, 8, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first.order.tolist() == second.order.tolist()
    assert removal_by_random(consumers, 8, generator=rng).order.tolist() != first.order.tolist()
    assert len(removal_by_random([], 8, generator=rng).order) == 8


def test_only_the_random_order_draws(rng: torch.Generator) -> None:
    before = rng.get_state()
    consumers = [_consumer(4, 1, torch.Generator().manual_seed(0))]
    for order in ("obs", "magnitude"):
        removal_by_order(order, consumers, 4, generator=rng)
    assert torch.equal(rng.get_state(), before)
    drawn = removal_by_order("random", consumers, 4, generator=rng)
    assert not torch.equal(rng.get_state(), before)
    again = removal_by_random(consumers, 4, generator=torch.Generator().set_state(before))
    assert drawn.order.tolist() == again.order.tolist()


def test_a_ridge_may_be_given(rng: torch.Generator) -> None:
    assert len(removal_by_obs([_consumer(4, 1, rng)], 4, ridge=1e-3).order) == 4


def _inner(variances: list[list[float]], maps: list[list[int]], units: int) -> Removal:
    return inner_removal(
        [torch.tensor(one, dtype=torch.float64) for one in variances],
        [torch.tensor(one) for one in maps],
        units,
    )


def test_inner_units_go_by_products_over_heads() -> None:
    # Two heads of three units each, and an output of neither.
    removal = _inner(
        [[1, 2, 3, 4, 5, 6, 99], [6, 5, 4, 1, 2, 1]], [[0, 1, 2, 0, 1, 2, -1], [0, 1, 2, 0, 1, 2]], 3
    )
    assert removal.order.tolist() == [0, 2, 1]
    assert removal.errors.tolist() == [0, 10, 28, 48]


def test_grouped_keys_meet_several_queries_in_a_row() -> None:
    queries, keys = [1, 10, 2, 20, 3, 30, 4, 40], [5, 1, 7, 2]
    removal = _inner([queries, keys], [[0, 1] * 4, [0, 1] * 2], 2)
    assert removal.errors.tolist() == [0, 64, 64 + 170]
    assert removal.order.tolist() == [0, 1]


def test_one_layer_that_makes_queries_and_keys_holds_one_before_the_other() -> None:
    apart = _inner([[1, 2, 3, 4], [4, 3, 5, 1]], [[0, 1, 0, 1]] * 2, 2)
    fused = _inner([[1, 2, 3, 4, 4, 3, 5, 1, 8, 8]], [[0, 1, 0, 1, 0, 1, 0, 1, -1, -1]], 2)
    assert fused.order.tolist() == apart.order.tolist()
    assert fused.errors.tolist() == apart.errors.tolist()


def test_inner_sides_that_do_not_match_are_averaged() -> None:
    removal = _inner([[1, 2, 3], [4, 6]], [[0, 0, 0], [0, 0]], 1)
    assert removal.errors.tolist() == [0, 30]
    assert _inner([[1, 2, 3]], [[0, 0, 0]], 1).errors.tolist() == [0, 6]
    assert _inner([[2.0]], [[1]], 2).errors.tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    ("variances", "maps", "units"), [([], [], 2), ([[1.0]], [[0]], 0), ([[1.0]], [[0], [0]], 1)]
)
def test_inner_units_need_producers(variances: list[list[float]], maps: list[list[int]], units: int) -> None:
    with pytest.raises(OptionError, match="pass at least one unit and one producer, and a map for each"):
        _inner(variances, maps, units)


def test_inner_maps_fit_the_outputs() -> None:
    with pytest.raises(ShapeError, match=r"producer 1: the map of its units is .* give one unit per output"):
        _inner([[1.0], [1.0, 2.0]], [[0], [0]], 1)
    with pytest.raises(ShapeError, match=r"producer 0: its units reach from 0 to 2; give -1 or 0\.\.1"):
        _inner([[1.0, 2.0]], [[0, 2]], 2)


@pytest.mark.parametrize("units", [1, 2, 7, 65, 66, 100, 128, 129, 511, 512, 513, 768, 3072, 5000])
def test_curves_offer_few_counts_with_the_round_ones_among_them(units: int, rng: torch.Generator) -> None:
    removal = _removal(units, rng)
    curve = group_curve(_group(units), removal)
    kept = curve.kept.tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == units - 1 if units <= 65 else 0 < len(kept) <= 64
    assert all(1 <= count < units for count in kept)
    if units <= 512:
        assert set(range(8, units, 8)) <= set(kept)
    if units <= 1024:
        assert set(range(16, units, 16)) <= set(kept)
    assert curve.order == tuple(removal.order.tolist())
    assert (np.diff(curve.error) <= 0).all()
    for count, error in zip(kept, curve.error.tolist(), strict=True):
        assert error == float(removal.errors[units - count])
    np.testing.assert_array_equal(curve.damage, curve.error)


def test_the_order_is_of_the_group(rng: torch.Generator) -> None:
    with pytest.raises(ShapeError, match="group 'conv' has 4 units, the order 5"):
        group_curve(_group(4), _removal(5, rng))


def test_relative_damage_is_the_share_of_the_weights(rng: torch.Generator) -> None:
    weight = torch.randn((2, 5), dtype=torch.float64, generator=rng)
    consumer = Consumer(
        weight=weight,
        moments=Moments.identity(5, torch.device("cpu")),
        root=torch.eye(2, dtype=torch.float64),
        unit_of=torch.arange(5),
    )
    removal = removal_by_magnitude([consumer], 5)
    curve = relative_group_curve(group_curve(_group(5), removal), removal)
    energy = weight.square().sum(0)
    lost = [float(energy[removal.order[: 5 - count]].sum() / energy.sum()) for count in curve.kept]
    np.testing.assert_allclose(curve.damage, lost)


def test_relative_damage_of_a_group_without_weights_is_nothing() -> None:
    removal = Removal(order=torch.arange(3), errors=torch.zeros(4, dtype=torch.float64))
    assert relative_group_curve(group_curve(_group(3), removal), removal).damage.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("units", "expected"),
    [(2, (1,)), (3, (2, 1)), (4, (3, 1)), (10, (7, 3, 1)), (64, (45, 22, 6))],
)
def test_anchors_lie_all_over_the_curve(units: int, expected: tuple[int, ...], rng: torch.Generator) -> None:
    assert anchor_counts(_curve(units, rng)) == expected


@pytest.mark.parametrize("units", [3, 8, 9, 64, 512])
def test_anchored_curves_pass_through_what_was_measured(units: int, rng: torch.Generator) -> None:
    curve = _curve(units, rng)
    measured = {count: 0.01 * 4.0**index for index, count in enumerate(anchor_counts(curve))}
    anchored = anchored_group_curve(curve, measured)
    assert (np.diff(anchored.damage) <= 0).all()
    assert anchored.kept.tolist() == [count for count in curve.kept.tolist() if count >= min(measured)]
    assert anchored.anchors == measured
    for count, value in measured.items():
        assert float(anchored.damage[anchored.kept == count][0]) == pytest.approx(value)
        np.testing.assert_array_equal(anchored.error, curve.error[np.isin(curve.kept, anchored.kept)])


def test_damage_is_never_below_what_was_measured_with_more(rng: torch.Generator) -> None:
    curve = _curve(20, rng)
    anchored = anchored_group_curve(curve, {16: 0.5, 11: 0.1, 6: float("inf"), 2: 3.0})
    at = dict(zip(anchored.kept.tolist(), anchored.damage.tolist(), strict=True))
    assert at[16] == at[11] == pytest.approx(0.5)
    assert at[6] == at[2] == pytest.approx(1e6)
    # Where more is kept than was measured, damage goes with the error, from the larger of the two.
    error = dict(zip(anchored.kept.tolist(), anchored.error.tolist(), strict=True))
    assert at[18] == pytest.approx(0.5 * error[18] / error[16])
    assert np.isfinite(anchored.damage).all()


def test_equal_errors_do_not_hide_what_was_measured(rng: torch.Generator) -> None:
    errors = torch.tensor([0, 0, 0, 0, 0, 1.0], dtype=torch.float64)
    curve = group_curve(_group(5), Removal(order=torch.arange(5), errors=errors))
    anchored = anchored_group_curve(curve, {4: 0.1, 2: 0.7})
    assert anchored.damage[[1, 3]].tolist() == pytest.approx([0.7, 0.1])


def test_nothing_is_offered_below_the_last_anchor_unless_units_are_few(rng: torch.Generator) -> None:
    large = anchored_group_curve(_curve(9, rng), {6: 0.1, 4: 0.5})
    assert large.kept.tolist() == [4, 5, 6, 7, 8]
    small = anchored_group_curve(_curve(8, rng), {6: 0.1, 4: 0.5})
    assert small.kept.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert (small.damage[:3] >= 0.5 * 4 / small.kept[:3] - 1e-12).all()
    assert (np.diff(small.damage) <= 0).all()


@pytest.mark.parametrize("measured", [{}, {9: 0.1}, {3: 0.1, 40: 0.2}])
def test_anchors_are_counts_of_the_curve(measured: dict[int, float], rng: torch.Generator) -> None:
    with pytest.raises(OptionError, match=r"group 'conv': measured at .* measure at one or more of"):
        anchored_group_curve(_curve(9, rng), measured)


def test_channels_kept_are_the_last_of_the_order(rng: torch.Generator) -> None:
    curve = _curve(6, rng)
    order: Tensor = torch.tensor(curve.order)
    assert curve.channels_kept(2) == tuple(sorted(order[-2:].tolist()))
