# SPDX-License-Identifier: Apache-2.0
"""Channel pruning: in which order the units of a group go, and the damage at every number that stays."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrank._errors import OptionError, ShapeError
from slimrank.linalg import Consumer, Removal, removal_errors, removal_order
from slimrank.methods._curves import CEILING, divergence_over_error
from slimrank.records import ChannelOrder, GroupCurve, GroupSpec

# Shares of the units that stay where divergences are measured. More measurements make damages in between more
# precise; each takes a forward over the held-out samples. Larger groups keep about the last share or more.
ANCHOR_SHARES = (0.7, 0.35, 0.1)
# Numbers of units that are offered, about: more are finer steps for a plan and more work to choose among.
MAX_COUNTS = 64
# Where not every number is offered, multiples of this one are: hardware is fast at them.
_ALIGNMENT = 8
# In groups of up to so many units, less than the smallest measured number is offered, too: every unit counts.
_FEW_UNITS = 8


def removal_by_order(
    order: ChannelOrder, consumers: Sequence[Consumer], n_units: int, *, generator: torch.Generator
) -> Removal:
    """The order of units that the caller of a study asked for.

    Args:
        order: name of the order.
        consumers: layers that read the units.
        n_units: how many units there are.
        generator: on the CPU; a random order draws from it, the others do not.

    Returns:
        The order and its errors.
    """
    match order:
        case "obs":
            return removal_by_obs(consumers, n_units)
        case "magnitude":
            return removal_by_magnitude(consumers, n_units)
        case "random":
            return removal_by_random(consumers, n_units, generator=generator)
        case _:
            assert_never(order)


def removal_by_obs(consumers: Sequence[Consumer], n_units: int, *, ridge: float | None = None) -> Removal:
    """The order of block optimal brain surgeon on the damage metric: see ``removal_order``.

    Args:
        consumers: layers that read the units.
        n_units: how many units there are.
        ridge: share of the mean diagonal; None for what fits the number of rows of each consumer.

    Returns:
        The order and its errors.
    """
    return removal_order(consumers, n_units, ridge=ridge)


def removal_by_magnitude(
    consumers: Sequence[Consumer], n_units: int, *, ridge: float | None = None
) -> Removal:
    """The order of squared weights: the unit whose input columns are smallest goes first.

    Args:
        consumers: layers that read the units.
        n_units: how many units there are.
        ridge: as in ``removal_by_obs``, for the errors.

    Returns:
        The order, and its errors once the columns that stay are fitted anew.

    Source: as in the channel pruning of AIMET.
    """
    device = consumers[0].weight.device if consumers else torch.device("cpu")
    sizes = torch.zeros(n_units + 1, dtype=torch.float64, device=device)
    for consumer in consumers:
        # Columns that always stay are summed at the end, and left out.
        unit_of = torch.where(consumer.unit_of < 0, n_units, consumer.unit_of)
        sizes.index_add_(0, unit_of, consumer.weight.square().sum(0))
    order = sizes[:n_units].argsort(stable=True)
    return Removal(order=order, errors=removal_errors(consumers, order, ridge=ridge))


def removal_by_random(
    consumers: Sequence[Consumer], n_units: int, *, generator: torch.Generator, ridge: float | None = None
) -> Removal:
    """A random order.

    Args:
        consumers: layers that read the units.
        n_units: how many units there are.
        generator: on the CPU.
        ridge: as in ``removal_by_obs``, for the errors.

    Returns:
        The order, and its errors once the columns that stay are fitted anew.
    """
    device = consumers[0].weight.device if consumers else torch.device("cpu")
    order = torch.randperm(n_units, generator=generator).to(device)
    return Removal(order=order, errors=removal_errors(consumers, order, ridge=ridge))


def inner_removal(variances: Sequence[Tensor], unit_maps: Sequence[Tensor], n_units: int) -> Removal:
    """The order of units over which a product of two activations sums, such as the width of queries and keys.

    Without unit i, the products lack ``sum q_i k_i``: its variance is about that of q_i times that of k_i,
    over all heads. Nothing makes up for that, so errors are sums of these.

    Args:
        variances: (O,) of the outputs of each producer, over the data; squared norms of the rows of its
            weight where there are no data. Outputs of the two sides are multiplied in order; where one side
            has fewer (grouped queries), each of its outputs is multiplied by several in a row. A single
            producer makes both sides, one before the other.
        unit_maps: (O,) int64 each, unit of each output; -1 where it belongs to none.
        n_units: how many units there are.

    Returns:
        The order and its errors, which have no unit.

    Raises:
        OptionError: no unit, no producer, or not one map per producer.
        ShapeError: unit numbers that do not fit the outputs or the units.

    Source: column selection of Lin et al. 2025 (MoDeGPT), arXiv 2408.09632.
    """
    if n_units < 1 or not variances or len(variances) != len(unit_maps):
        raise OptionError(
            f"{n_units} units, {len(variances)} producers and {len(unit_maps)} maps of their units; pass at "
            "least one unit and one producer, and a map for each"
        )
    for index, (values, unit_of) in enumerate(zip(variances, unit_maps, strict=True)):
        if unit_of.shape != values.shape or unit_of.ndim != 1:
            raise ShapeError(
                f"producer {index}: the map of its units is {tuple(unit_of.shape)} and its variances are "
                f"{tuple(values.shape)}; give one unit per output"
            )
        if len(unit_of) and not -1 <= int(unit_of.min()) <= int(unit_of.max()) < n_units:
            raise ShapeError(
                f"producer {index}: its units reach from {int(unit_of.min())} to {int(unit_of.max())}; "
                f"give -1 or 0..{n_units - 1}"
            )
    maps = [unit_of.to(values.device) for values, unit_of in zip(variances, unit_maps, strict=True)]
    costs = torch.stack([_inner_cost(variances, maps, unit) for unit in range(n_units)])
    order = costs.argsort(stable=True)
    return Removal(order=order, errors=_cumulative(costs[order]))


def _inner_cost(variances: Sequence[Tensor], unit_maps: Sequence[Tensor], unit: int) -> Tensor:
    """Variance of the products that lack one unit."""
    sides = [values[unit_of == unit].double() for values, unit_of in zip(variances, unit_maps, strict=True)]
    sides = [side for side in sides if len(side)]
    if len(sides) == 1 and len(sides[0]) % 2 == 0:
        sides = list(sides[0].chunk(2))
    n_products = max((len(side) for side in sides), default=1)
    product = torch.ones(n_products, dtype=torch.float64, device=variances[0].device)
    for side in sides:
        repeats, rest = divmod(n_products, len(side))
        # Sides that do not match up count with their mean.
        product = product * (side.mean() if rest else side.repeat_interleave(repeats))
    return product.sum()


def group_curve(group: GroupSpec, removal: Removal) -> GroupCurve:
    """The numbers of units that a group may keep; damage is not yet anchored (it equals the error).

    Args:
        group: the group.
        removal: the order of its units and the errors of that order.

    Returns:
        The curve: every count up to 64 units, about 64 counts beyond that, among them multiples of 8 (of 16,
        32, ... where those alone were more).

    Raises:
        ShapeError: the order is of another number of units.
    """
    n_units = group.units
    if len(removal.order) != n_units:
        raise ShapeError(
            f"group {group.name!r} has {n_units} units, the order {len(removal.order)}; order the units of "
            "this group"
        )
    counts = _offered_counts(n_units)
    error = removal.errors.double().cpu().numpy()[n_units - counts]
    return GroupCurve(
        group=group.name, order=tuple(removal.order.tolist()), kept=counts, error=error, damage=error
    )


def relative_group_curve(curve: GroupCurve, removal: Removal) -> GroupCurve:
    """Damage as a share of the error of removing every unit, where nothing was measured.

    With moments and metrics that are identities that is the share of the consumers' squared weights.

    Args:
        curve: curve of a group.
        removal: the order and errors from which it was made.

    Returns:
        The curve, damage 0 to 1.
    """
    total = float(removal.errors[-1])
    return replace(curve, damage=curve.error / total if total > 0 else curve.error)


def anchor_counts(curve: GroupCurve, shares: Sequence[float] = ANCHOR_SHARES) -> tuple[int, ...]:
    """How many units stay where divergences are to be measured, largest number first.

    Args:
        curve: curve of a group.
        shares: of the units that stay.

    Returns:
        About these shares of the units, without repetition.
    """
    n_units, counts = len(curve.order), curve.kept
    nearest = {int(counts[np.abs(counts - share * n_units).argmin()]) for share in shares}
    return tuple(sorted(nearest, reverse=True))


def anchored_group_curve(curve: GroupCurve, measured: Mapping[int, float]) -> GroupCurve:
    """The curve with damage in the unit of measured divergences.

    The quadratic form underrates heavy pruning: so damage is never below what was measured where more units
    stay, and no smaller number of units is offered than was measured, except in groups of up to 8 units,
    where damage then grows in inverse proportion to the number that stays, or faster.

    Args:
        curve: curve of the group.
        measured: divergence by number of units that stay; one or more of those of the curve.

    Returns:
        The curve, perhaps with fewer numbers of units.

    Raises:
        OptionError: nothing was measured, or it was at a number of units that the curve does not have.
    """
    counts = curve.kept
    offered = set(counts.tolist())
    if not measured or not offered.issuperset(measured):
        raise OptionError(
            f"group {curve.group!r}: measured at {sorted(measured)} units; measure at one or more of "
            f"{sorted(offered)}"
        )
    error_by_count = dict(zip(counts.tolist(), curve.error.tolist(), strict=True))
    worst, points = 0.0, []
    for count in sorted(measured, reverse=True):
        worst = max(worst, min(measured[count], CEILING))
        points.append((error_by_count[count], worst))
    damage = divergence_over_error(curve.error, points)
    for count, (_, divergence) in zip(sorted(measured, reverse=True), points, strict=True):
        damage = np.where(counts <= count, np.maximum(damage, divergence), damage)
    smallest = min(measured)
    if len(curve.order) <= _FEW_UNITS:
        damage = np.where(counts < smallest, np.maximum(damage, worst * smallest / counts), damage)
        return replace(curve, damage=damage, anchors=dict(measured))
    is_offered = counts >= smallest
    return replace(
        curve,
        kept=counts[is_offered],
        error=curve.error[is_offered],
        damage=damage[is_offered],
        anchors=dict(measured),
    )


def _offered_counts(n_units: int) -> NDArray[np.int64]:
    """How many units may stay, ascending."""
    if n_units <= MAX_COUNTS + 1:
        return np.arange(1, n_units, dtype=np.int64)
    step = _ALIGNMENT
    while (n_units - 1) // step > MAX_COUNTS:
        step *= 2
    counts = set(range(step, n_units, step))
    for count in np.linspace(1, n_units - 1, MAX_COUNTS).round().astype(int).tolist():
        if len(counts) >= MAX_COUNTS:
            break
        counts.add(count)
    return np.array(sorted(counts), dtype=np.int64)


def _cumulative(costs: Tensor) -> Tensor:
    return torch.cat([costs.new_zeros(1), costs.cumsum(0)])
