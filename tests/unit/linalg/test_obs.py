# SPDX-License-Identifier: Apache-2.0
"""Orders and errors of removals, against refits written out."""

from itertools import combinations

import pytest
import torch
from torch import Tensor

import seams
from slimrank import OptionError, ShapeError
from slimrank.linalg import Consumer, Moments, MomentSums, Removal, removal_errors, removal_order

_RIDGE = 1e-2


def _moments(width: int, rng: torch.Generator, *, n_rows: int = 400, keep_rows: bool = False) -> Moments:
    mix = torch.eye(width) + 0.5 * torch.randn((width, width), generator=rng) / width**0.5
    sums = MomentSums(width, keep_rows=keep_rows)
    sums.add(torch.randn((n_rows, width), generator=rng) @ mix)
    return sums.moments()


def _consumer(
    unit_of: Tensor, n_out: int, rng: torch.Generator, *, n_rows: int = 400, keep_rows: bool = False
) -> Consumer:
    width = len(unit_of)
    half = torch.randn((n_out, n_out), dtype=torch.float64, generator=rng) / n_out**0.5
    return Consumer(
        weight=torch.randn((n_out, width), dtype=torch.float64, generator=rng),
        moments=_moments(width, rng, n_rows=n_rows, keep_rows=keep_rows),
        root=half @ half.T + 0.1 * torch.eye(n_out, dtype=torch.float64),
        unit_of=unit_of,
    )


def _blocks(n_units: int, width: int) -> Tensor:
    return torch.arange(n_units).repeat_interleave(width)


def _dense(moments: Moments) -> Tensor:
    return moments.gram(torch.eye(len(moments.mean), dtype=torch.float64))


def _refit_errors(consumer: Consumer, gone: Tensor, ridge: float) -> tuple[float, float]:
    """Damage of the ridge fit without some units, without and with what the ridge adds to the moments."""
    moment, weight = _dense(consumer.moments), consumer.weight
    added = ridge * consumer.moments.mean_diagonal * torch.eye(len(moment), dtype=torch.float64)
    stays = (~torch.isin(consumer.unit_of, gone)).nonzero().flatten()
    ridged = moment + added
    fitted = torch.zeros_like(weight)
    solved = torch.linalg.solve(ridged[stays][:, stays], (weight @ ridged)[:, stays].T)
    fitted[:, stays] = solved.T
    change = consumer.root @ (fitted - weight)
    return float((change @ moment @ change.T).trace() / 2), float((change @ ridged @ change.T).trace() / 2)


def _explicit(consumers: list[Consumer], order: Tensor, ridge: float) -> Tensor:
    return torch.tensor(
        [
            sum(_refit_errors(consumer, order[:count], ridge)[0] for consumer in consumers)
            for count in range(len(order) + 1)
        ],
        dtype=torch.float64,
    )


def _greedy(consumers: list[Consumer], n_units: int, ridge: float) -> list[int]:
    """Every candidate refitted, at every step."""
    gone: list[int] = []
    while len(gone) < n_units:
        costs = {
            unit: sum(_refit_errors(one, torch.tensor([*gone, unit]), ridge)[1] for one in consumers)
            for unit in range(n_units)
            if unit not in gone
        }
        gone.append(min(costs, key=lambda unit: costs[unit]))
    return gone


# Two consumers of six units: three taps each and two columns that stay; and one tap of some units alone.
def _two(rng: torch.Generator, *, keep_rows: bool = False) -> list[Consumer]:
    first = torch.cat([_blocks(6, 3), torch.tensor([-1, -1])])[torch.randperm(20, generator=rng)]
    second = torch.tensor([4, 0, 5, -1, 2])
    return [
        _consumer(first, 4, rng, keep_rows=keep_rows),
        _consumer(second, 9, rng, keep_rows=keep_rows),
    ]


@pytest.mark.parametrize("keep_rows", [False, True])
@pytest.mark.parametrize("ridge", [1e-9, _RIDGE, 0.5])
def test_errors_are_those_of_refits(ridge: float, keep_rows: bool, rng: torch.Generator) -> None:
    consumers = _two(rng, keep_rows=keep_rows)
    removal = removal_order(consumers, 6, ridge=ridge)
    assert removal.order.sort().values.tolist() == list(range(6))
    explicit = _explicit(consumers, removal.order, ridge)
    assert (explicit.diff() >= 0).all()
    torch.testing.assert_close(removal.errors, explicit, rtol=1e-6, atol=1e-9 * float(explicit[-1]))


@pytest.mark.parametrize("block", [1, 4, 256])
def test_errors_of_any_order_are_those_of_refits(
    block: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.remove_in_blocks(monkeypatch, block)
    consumers = _two(rng)
    order = torch.randperm(6, generator=rng)
    explicit = _explicit(consumers, order, _RIDGE).cummax(0).values
    torch.testing.assert_close(removal_errors(consumers, order, ridge=_RIDGE), explicit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("columns", [1, 4, 7, 96])
def test_the_order_is_that_of_an_exhaustive_greedy_search(
    columns: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.gather_steps(monkeypatch, columns)
    consumers = _two(rng)
    removal = removal_order(consumers, 6, ridge=_RIDGE)
    assert removal.order.tolist() == _greedy(consumers, 6, _RIDGE)


@pytest.mark.parametrize("ridge", [0.0, _RIDGE])
def test_units_of_different_sizes_are_ordered_as_by_exhaustive_search(
    ridge: float, rng: torch.Generator
) -> None:
    consumers = [_consumer(torch.tensor([0, 1, 1, 1, 2, 3, 3, -1, 4, 4, 4, 4]), 5, rng)]
    removal = removal_order(consumers, 5, ridge=ridge)
    assert removal.order.tolist() == _greedy(consumers, 5, ridge)
    explicit = _explicit(consumers, removal.order, ridge)
    torch.testing.assert_close(removal.errors, explicit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ridge", [None, _RIDGE])
def test_greedy_choices_come_near_the_best_subsets(ridge: float | None, rng: torch.Generator) -> None:
    consumer = _consumer(_blocks(8, 2), 5, rng)
    removal = removal_order([consumer], 8, ridge=ridge)
    value = 1e-3 if ridge is None else ridge
    for count in range(1, 8):
        best = min(
            _refit_errors(consumer, torch.tensor(gone), value)[0] for gone in combinations(range(8), count)
        )
        # Only the first is certain; the rest is greedy.
        limit = 1 + 1e-6 if count == 1 else 1.3
        assert float(removal.errors[count]) <= limit * best


def test_damages_of_consumers_add(rng: torch.Generator) -> None:
    consumers = _two(rng)
    order = torch.arange(6)
    alone = [removal_errors([consumer], order, ridge=_RIDGE) for consumer in consumers]
    torch.testing.assert_close(removal_errors(consumers, order, ridge=_RIDGE), alone[0] + alone[1])
    scaled = Consumer(
        weight=consumers[0].weight,
        moments=consumers[0].moments,
        root=2 * consumers[0].root,
        unit_of=consumers[0].unit_of,
    )
    torch.testing.assert_close(removal_errors([scaled], order, ridge=_RIDGE), 4 * alone[0])


def test_of_two_equal_channels_one_goes_for_free(rng: torch.Generator) -> None:
    rows = torch.randn((300, 5), generator=rng)
    rows = torch.cat([rows, rows[:, 2:3]], dim=1)
    sums = MomentSums(6)
    sums.add(rows)
    consumer = Consumer(
        weight=torch.randn((4, 6), dtype=torch.float64, generator=rng),
        moments=sums.moments(),
        root=torch.eye(4, dtype=torch.float64),
        unit_of=torch.arange(6),
    )
    removal = removal_order([consumer], 6, ridge=1e-6)
    assert int(removal.order[0]) in {2, 5}
    assert float(removal.errors[1]) < 1e-6 * float(removal.errors[2])
    assert {2, 5} != set(removal.order[:2].tolist())


def test_units_that_nobody_reads_go_first_and_for_free(rng: torch.Generator) -> None:
    consumer = _consumer(torch.tensor([3, 1, 3, 1]), 3, rng)
    removal = removal_order([consumer], 5, ridge=_RIDGE)
    assert set(removal.order[:3].tolist()) == {0, 2, 4}
    assert removal.errors[:4].tolist() == [0, 0, 0, 0]
    assert float(removal.errors[4]) > 0


def test_consumers_may_run_out_of_units_before_others(rng: torch.Generator) -> None:
    consumers = [_consumer(torch.tensor([0]), 1, rng), _consumer(torch.tensor([1, 2, 3]), 2, rng)]
    removal = removal_order(consumers, 4, ridge=_RIDGE)
    assert removal.order.tolist() == _greedy(consumers, 4, _RIDGE)


def test_without_consumers_nothing_costs_anything() -> None:
    removal = removal_order([], 3)
    assert removal.order.sort().values.tolist() == [0, 1, 2]
    assert removal.errors.tolist() == [0, 0, 0, 0]


def test_consumers_without_columns_of_units_or_varying_inputs_have_no_say(rng: torch.Generator) -> None:
    consumer = _consumer(torch.arange(4), 3, rng)
    still = Consumer(
        weight=consumer.weight,
        moments=Moments(
            mean=torch.ones(4, dtype=torch.float64),
            matrix=torch.zeros(4, 4, dtype=torch.float64),
            rows=None,
            n_rows=9,
        ),
        root=consumer.root,
        unit_of=consumer.unit_of,
    )
    apart = _consumer(torch.full((2,), -1), 3, rng)
    alone, joined = removal_order([consumer], 4), removal_order([still, consumer, apart], 4)
    assert joined.order.tolist() == alone.order.tolist()
    torch.testing.assert_close(joined.errors, alone.errors)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_without_moments_units_go_by_their_weights(dtype: torch.dtype, rng: torch.Generator) -> None:
    unit_of = torch.tensor([0, 0, 1, 2, -1, 2, 2])
    weight = torch.randn((3, 7), dtype=torch.float64, generator=rng)
    root = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    consumer = Consumer(
        weight=weight.to(dtype), moments=Moments.identity(7, torch.device("cpu")), root=root, unit_of=unit_of
    )
    removal = removal_order([consumer], 3)
    columns = (root @ weight).square().sum(0) / 2
    sizes = torch.stack([columns[unit_of == unit].sum() for unit in range(3)])
    assert removal.order.tolist() == sizes.argsort().tolist()
    expected = torch.cat([sizes.new_zeros(1), sizes.sort().values.cumsum(0)])
    torch.testing.assert_close(removal.errors, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 4])
def test_orders_do_not_depend_on_when_inverses_are_brought_up_to_date(
    batch: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumers = [
        _consumer(torch.cat([_blocks(20, 3), torch.tensor([-1, -1])]), 20, rng),
        _consumer(torch.arange(0, 20, 3), 9, rng),
    ]
    orders = []
    for columns in (1, 7, 96):
        seams.gather_steps(monkeypatch, columns)
        orders.append(removal_order(consumers, 20, ridge=_RIDGE, batch=batch).order.tolist())
    assert orders == orders[:1] * 3


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_batches_come_near_single_removals(batch: int, rng: torch.Generator) -> None:
    consumer = _consumer(_blocks(20, 2), 6, rng)
    single, several = (removal_order([consumer], 20, ridge=_RIDGE, batch=size) for size in (1, batch))
    assert several.order.sort().values.tolist() == list(range(20))
    assert (several.errors <= 1.2 * single.errors + 1e-12).all()


def test_equal_channels_of_one_batch_are_not_taken_for_free_together(rng: torch.Generator) -> None:
    rows = torch.randn((500, 8), generator=rng)
    sums = MomentSums(16)
    sums.add(rows.repeat(1, 2))
    consumer = Consumer(
        weight=torch.randn((4, 16), dtype=torch.float64, generator=rng),
        moments=sums.moments(),
        root=torch.eye(4, dtype=torch.float64),
        unit_of=torch.arange(16),
    )
    removal = removal_order([consumer], 16, ridge=1e-6, batch=4)
    assert {unit % 8 for unit in removal.order[:8].tolist()} == set(range(8))


def test_many_columns_go_in_batches_by_themselves(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = _consumer(torch.arange(24), 6, rng)
    single = removal_order([consumer], 24, ridge=_RIDGE)
    seams.remove_in_batches(monkeypatch, above=4, rounds=6)
    several = removal_order([consumer], 24, ridge=_RIDGE)
    assert (several.errors <= 1.2 * single.errors + 1e-12).all()


@pytest.mark.parametrize("keep_rows", [False, True])
def test_wide_consumers_are_folded_to_choose_by(
    keep_rows: bool, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit_of = torch.cat([_blocks(10, 4), torch.tensor([9, 9, -1])])
    consumer = _consumer(unit_of, 6, rng, n_rows=60, keep_rows=keep_rows)
    exact = removal_order([consumer], 10, ridge=_RIDGE)
    seams.wide_from(monkeypatch, 8)
    folded = removal_order([consumer], 10, ridge=_RIDGE)
    explicit = _explicit([consumer], folded.order, _RIDGE).cummax(0).values
    torch.testing.assert_close(folded.errors, explicit, rtol=1e-6, atol=1e-9)
    assert (folded.errors <= 2 * exact.errors + 1e-12).all()


@pytest.mark.parametrize(("n_rows", "keep_rows"), [(60, False), (60, True), (10, True)])
def test_taps_of_wide_consumers_are_folded_to_choose_by(
    n_rows: int, keep_rows: bool, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = _consumer(_blocks(12, 4), 6, rng, n_rows=n_rows, keep_rows=keep_rows)
    exact = removal_order([consumer], 12, ridge=0.1)
    seams.fold_taps_from(monkeypatch, 40)
    folded = removal_order([consumer], 12, ridge=0.1)
    assert not torch.equal(folded.order, exact.order)
    explicit = _explicit([consumer], folded.order, 0.1).cummax(0).values
    torch.testing.assert_close(folded.errors, explicit, rtol=1e-4, atol=1e-5 * float(explicit[-1]))
    # Taps of these rows are independent of each other, unlike those of pictures.
    assert (folded.errors[:7] <= 2 * exact.errors[:7] + 1e-12).all()


def test_wide_errors_between_the_counts_are_interpolated(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = _consumer(_blocks(12, 2), 5, rng, n_rows=30, keep_rows=True)
    order = torch.randperm(12, generator=rng)
    seams.wide_from(monkeypatch, 8, counts=4)
    errors = removal_errors([consumer], order, ridge=_RIDGE)
    explicit = _explicit([consumer], order, _RIDGE)
    torch.testing.assert_close(errors[::3], explicit[::3], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(errors[1], explicit[3] / 3)


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_holds_a_unit(batch: int) -> None:
    with pytest.raises(OptionError, match="at least one unit goes at a time"):
        removal_order([], 3, batch=batch)


def test_there_are_units() -> None:
    for call in (
        lambda: removal_order([], 0),
        lambda: removal_errors([], torch.arange(0)),
    ):
        with pytest.raises(OptionError, match="0 units: there is nothing to order"):
            call()


def test_an_order_holds_every_unit_once(rng: torch.Generator) -> None:
    consumer = _consumer(torch.arange(3), 2, rng)
    with pytest.raises(ShapeError, match="pass a permutation of them"):
        removal_errors([consumer], torch.tensor([0, 0, 2]))


@pytest.mark.parametrize("unit_of", [[0, 3, 1], [-2, 0, 1]])
def test_unit_numbers_fit_the_units(unit_of: list[int], rng: torch.Generator) -> None:
    consumer = _consumer(torch.tensor([0, 1, 2]), 2, rng)
    wrong = Consumer(
        weight=consumer.weight,
        moments=consumer.moments,
        root=consumer.root,
        unit_of=torch.tensor(unit_of),
    )
    with pytest.raises(ShapeError, match=r"consumer 0: unit_of reaches from .*; give -1 or 0\.\.2"):
        removal_order([wrong], 3)


def test_every_column_has_a_unit(rng: torch.Generator) -> None:
    consumer = _consumer(torch.tensor([0, 1, 2]), 2, rng)
    wrong = Consumer(
        weight=consumer.weight, moments=consumer.moments, root=consumer.root, unit_of=torch.arange(2)
    )
    with pytest.raises(ShapeError, match="give one unit per column"):
        removal_order([wrong], 3)


@pytest.mark.gpu
def test_orders_are_the_same_on_the_gpu(rng: torch.Generator) -> None:
    consumers = _two(rng)
    moved = [
        Consumer(
            weight=one.weight.cuda(),
            moments=Moments(
                mean=one.moments.mean.cuda(),
                matrix=None if one.moments.matrix is None else one.moments.matrix.cuda(),
                rows=None,
                n_rows=one.moments.n_rows,
            ),
            root=one.root.cuda(),
            unit_of=one.unit_of,
        )
        for one in consumers
    ]
    here: Removal = removal_order(consumers, 6, ridge=_RIDGE)
    there: Removal = removal_order(moved, 6, ridge=_RIDGE)
    assert there.order.tolist() == here.order.tolist()
    torch.testing.assert_close(there.errors.cpu(), here.errors, rtol=1e-9, atol=1e-9)
