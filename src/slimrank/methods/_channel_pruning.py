# SPDX-License-Identifier: Apache-2.0
"""Channel pruning: in which order the units of a group go, and what every width costs."""

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

ANCHOR_SHARES = (0.8, 0.55, 0.3, 0.1)
MAX_COUNTS = 64
_ALIGNMENT = 8
_FEW_UNITS = 8


def removal_by_order(
    order: ChannelOrder, consumers: Sequence[Consumer], n_units: int, *, generator: torch.Generator
) -> Removal:
    """The order of units that a study asks for.

    Args:
        order: which one.
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
        ridge: share of the mean diagonal; None for what the rows of each consumer call for.

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
        The order, and its errors once the kept columns are fitted anew.

    Source: the way of AIMET's channel pruning.
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
        The order, and its errors once the kept columns are fitted anew.
    """
    device = consumers[0].weight.device if consumers else torch.device("cpu")
    order = torch.randperm(n_units, generator=generator).to(device)
    return Removal(order=order, errors=removal_errors(consumers, order, ridge=ridge))


def inner_removal(variances: Sequence[Tensor], unit_maps: Sequence[Tensor], n_units: int) -> Removal:
    """The order of units over which a product of two activations sums, such as the width of queries and keys.

    Without unit i, the products lack ``sum q_i k_i``: its variance is about that of q_i times that of k_i,
    over all heads. Nothing makes up for it, so errors are sums of these.

    Args:
        variances: (O,) of the outputs of each producer, over the data; squared norms of the rows of its
            weight where there are none. Outputs of the two sides meet in order; where one side has fewer
            (grouped queries), each of its outputs meets several in a row. A single producer makes both
            sides, one before the other.
        unit_maps: (O,) int64 each, unit of each output; -1 where it belongs to none.
        n_units: how many units there are.

    Returns:
        The order and its errors, in no unit.

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
    sides = [values[unit_of == unit].double() for values, unit_of in zip(variances, unit_maps, strict=True)]
    sides = [side for side in sides if len(side)]
    if len(sides) == 1 and len(sides[0]) % 2 == 0:
        sides = list(sides[0].chunk(2))
    count = max((len(side) for side in sides), default=1)
    product = torch.ones(count, dtype=torch.float64, device=variances[0].device)
    for side in sides:
        repeats, rest = divmod(count, len(side))
        product = product * (side.mean() if rest else side.repeat_interleave(repeats))
    return product.sum()


def group_curve(group: GroupSpec, removal: Removal) -> GroupCurve:
    """What a group can be slimmed to, damage not yet anchored (it equals the error).

    Args:
        group: the units.
        removal: their order and its errors.

    Returns:
        The curve: every count up to 64 units, about 64 counts beyond that, among them multiples of 8 (of 16,
        32, ... where those alone were more).

    Raises:
        ShapeError: the order is of another number of units.
    """
    units = group.units
    if len(removal.order) != units:
        raise ShapeError(
            f"group {group.name!r} has {units} units, the order {len(removal.order)}; order the units of "
            "this group"
        )
    kept = _counts(units)
    error = removal.errors.double().cpu().numpy()[units - kept]
    return GroupCurve(
        group=group.name, order=tuple(removal.order.tolist()), kept=kept, error=error, damage=error
    )


def relative_group_curve(curve: GroupCurve, removal: Removal) -> GroupCurve:
    """Damage as a share of the error of removing every unit, where nothing was measured.

    With moments and metrics that are identities that is the share of the consumers' squared weights.

    Args:
        curve: of a group.
        removal: the order and errors that it was made of.

    Returns:
        The curve, damage 0 to 1.
    """
    whole = float(removal.errors[-1])
    return replace(curve, damage=curve.error / whole if whole > 0 else curve.error)


def anchor_counts(curve: GroupCurve) -> tuple[int, ...]:
    """Numbers of units kept at which divergences are to be measured, largest first.

    Args:
        curve: of a group.

    Returns:
        About 0.8, 0.55, 0.3 and 0.1 of the units, without repetition.
    """
    units = len(curve.order)
    nearest = {int(curve.kept[np.abs(curve.kept - share * units).argmin()]) for share in ANCHOR_SHARES}
    return tuple(sorted(nearest, reverse=True))


def anchored_group_curve(curve: GroupCurve, measured: Mapping[int, float]) -> GroupCurve:
    """The curve with damage in the unit of measured divergences.

    The quadratic form underrates heavy pruning: so damage is never below what was measured with more units
    kept, and nothing is offered below the smallest count that was measured, except in groups of up to 8
    units, where damage then grows in inverse proportion to what is kept, or faster.

    Args:
        curve: of the group.
        measured: divergence by number of units kept; one or more of the curve's.

    Returns:
        The curve, perhaps with fewer counts.

    Raises:
        OptionError: nothing was measured, or a count is not one of the curve's.
    """
    known = set(curve.kept.tolist())
    if not measured or not known.issuperset(measured):
        raise OptionError(
            f"group {curve.group!r}: measured at {sorted(measured)} units; measure at one or more of "
            f"{sorted(known)}"
        )
    error_at = dict(zip(curve.kept.tolist(), curve.error.tolist(), strict=True))
    worst, points = 0.0, []
    for count in sorted(measured, reverse=True):
        worst = max(worst, min(measured[count], CEILING))
        points.append((error_at[count], worst))
    damage = divergence_over_error(curve.error, points)
    for count, (_, divergence) in zip(sorted(measured, reverse=True), points, strict=True):
        damage = np.where(curve.kept <= count, np.maximum(damage, divergence), damage)
    lowest = min(measured)
    if len(curve.order) <= _FEW_UNITS:
        damage = np.where(curve.kept < lowest, np.maximum(damage, worst * lowest / curve.kept), damage)
        return replace(curve, damage=damage)
    offered = curve.kept >= lowest
    return replace(curve, kept=curve.kept[offered], error=curve.error[offered], damage=damage[offered])


def _counts(units: int) -> NDArray[np.int64]:
    """Numbers of units kept that are offered, ascending."""
    if units <= MAX_COUNTS + 1:
        return np.arange(1, units, dtype=np.int64)
    step = _ALIGNMENT
    while (units - 1) // step > MAX_COUNTS:
        step *= 2
    counts = set(range(step, units, step))
    for count in np.linspace(1, units - 1, MAX_COUNTS).round().astype(int).tolist():
        if len(counts) >= MAX_COUNTS:
            break
        counts.add(count)
    return np.array(sorted(counts), dtype=np.int64)


def _cumulative(costs: Tensor) -> Tensor:
    return torch.cat([costs.new_zeros(1), costs.cumsum(0)])
