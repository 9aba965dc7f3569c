# SPDX-License-Identifier: Apache-2.0
"""Whatever the consumers: errors are those of refits, never rise with what is kept, and no step is wasted."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from slimrank.linalg import Consumer, Moments, MomentSums, removal_errors, removal_order
from slimrank.methods import anchor_counts, anchored_group_curve, group_curve
from slimrank.records import GroupSpec

_few = settings(deadline=None, max_examples=40, derandomize=True)


@st.composite
def _consumers(draw: st.DrawFn) -> tuple[list[Consumer], int, torch.Generator]:
    """One to three readers of a few units, with moments of many, few or no rows."""
    n_units = draw(st.integers(1, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    consumers = []
    for _ in range(draw(st.integers(1, 3))):
        unit_of = torch.tensor(draw(st.lists(st.integers(-1, n_units - 1), min_size=1, max_size=14)))
        width, n_out = len(unit_of), draw(st.integers(1, 16))
        kind = draw(st.sampled_from(["matrix", "rows", "plain"]))
        moments = Moments.identity(width, torch.device("cpu"))
        if kind != "plain":
            sums = MomentSums(width, keep_rows=kind == "rows")
            n_rows = draw(st.sampled_from([2, 5, 200]))
            sums.add(torch.randn((n_rows, width), generator=rng) @ torch.randn((width, width), generator=rng))
            moments = sums.moments()
        root = torch.randn((n_out, n_out), dtype=torch.float64, generator=rng)
        consumers.append(
            Consumer(
                weight=torch.randn((n_out, width), dtype=torch.float64, generator=rng),
                moments=moments,
                root=root @ root.T,
                unit_of=unit_of,
            )
        )
    return consumers, n_units, rng


def _refit_errors(consumer: Consumer, gone: list[int], ridge: float) -> tuple[float, float]:
    """Damage of the ridge fit, without and with what the ridge adds to the moments."""
    moments, weight = consumer.moments, consumer.weight
    moment = moments.gram(torch.eye(weight.shape[1], dtype=torch.float64))
    is_plain = moments.matrix is None and moments.rows is None
    ridged = moment + (0 if is_plain else ridge * moments.mean_diagonal) * torch.eye(len(moment)).double()
    stays = (~torch.isin(consumer.unit_of, torch.tensor(gone))).nonzero().flatten()
    fitted = torch.zeros_like(weight)
    fitted[:, stays] = torch.linalg.solve(ridged[stays][:, stays], (weight @ ridged)[:, stays].T).T
    change = consumer.root @ (fitted - weight)
    return float((change @ moment @ change.T).trace() / 2), float((change @ ridged @ change.T).trace() / 2)


def _explicit(consumers: list[Consumer], order: list[int], ridge: float) -> Tensor:
    """Each consumer's own damage never falls, where a ridge that is large lets it."""
    each = [
        [_refit_errors(one, order[:count], ridge)[0] for count in range(len(order) + 1)] for one in consumers
    ]
    return torch.tensor(each, dtype=torch.float64).cummax(1).values.sum(0)


@_few
@given(_consumers(), st.sampled_from([1e-4, 1e-2, 1.0]))
def test_errors_are_those_of_refits_in_any_order(
    problem: tuple[list[Consumer], int, torch.Generator], ridge: float
) -> None:
    consumers, n_units, rng = problem
    order = torch.randperm(n_units, generator=rng)
    errors = removal_errors(consumers, order, ridge=ridge)
    assert (errors.diff() >= 0).all()
    assert float(errors[0]) == 0
    explicit = _explicit(consumers, order.tolist(), ridge)
    torch.testing.assert_close(errors, explicit, rtol=1e-6, atol=1e-8 * float(explicit[-1]) + 1e-12)


@_few
@given(_consumers(), st.sampled_from([1e-4, 1e-2, 1.0]), st.sampled_from([None, 2]))
def test_every_step_of_the_order_is_the_cheapest(
    problem: tuple[list[Consumer], int, torch.Generator], ridge: float, batch: int | None
) -> None:
    consumers, n_units, _ = problem
    order = removal_order(consumers, n_units, ridge=ridge, batch=batch).order.tolist()
    assert sorted(order) == list(range(n_units))
    total = sum(_refit_errors(one, order, ridge)[1] for one in consumers)
    for count in range(0, n_units, batch or 1):
        costs = [
            sum(_refit_errors(one, [*order[:count], unit], ridge)[1] for one in consumers)
            for unit in order[count:]
        ]
        assert costs[0] <= min(costs) + 1e-7 * total


@_few
@given(_consumers(), st.lists(st.floats(1e-8, 1e3), min_size=4, max_size=4))
def test_damage_never_rises_with_what_is_kept(
    problem: tuple[list[Consumer], int, torch.Generator], divergences: list[float]
) -> None:
    consumers, n_units, _ = problem
    if n_units == 1:
        return
    group = GroupSpec(name="g", units=n_units, unit_width=1, producers=("g",), consumers=("h",))
    curve = group_curve(group, removal_order(consumers, n_units))
    measured = dict(zip(anchor_counts(curve), divergences, strict=False))
    anchored = anchored_group_curve(curve, measured)
    assert (anchored.damage[1:] <= anchored.damage[:-1]).all()
    for count, value in measured.items():
        assert float(anchored.damage[anchored.kept == count][0]) >= value * (1 - 1e-9)
