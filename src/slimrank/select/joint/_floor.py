# SPDX-License-Identifier: Apache-2.0
"""How low a budget can go where channels and blocks may go too."""

from collections.abc import Collection, Iterator, Mapping
from math import prod

import numpy as np

from slimrank._errors import BudgetError
from slimrank.cost import group_is_inside, matrix_names
from slimrank.plan import NOTHING_FIXED, Fixed, PlanSource, is_inside
from slimrank.records import LATENCY, ChannelMap, Cost, Limited, TensorSpec
from slimrank.select._budget import Budget, meant_percent, name_of
from slimrank.select._option_costs import Costing
from slimrank.select.joint._fastest import fastest_choice, small_choices
from slimrank.select.joint._ranks import RankTables
from slimrank.select.joint._table import Joint, State
from slimrank.select.layers._floor import how_to_reach, outside_layers, reachable, what_remains
from slimrank.select.layers._table import Floats

# Where the fastest choice takes more by this share than a bound allows, the message names the bound, too.
_PROVED = 1e-6


def lowest_costs(joint: Joint, limits: Mapping[Limited, float]) -> list[float]:
    """The least cost of the whole model that was found, in each metric alone, whatever the damage.

    Args:
        joint: everything that may be chosen.
        limits: what it was made with.

    Returns:
        Of each metric, the least cost of a few choices: everything whole, every group at its smallest, and
        that without every block or without one; of times the fastest choice.
    """
    return [cost for cost, _ in _lowest(joint, limits)]


def _lowest(joint: Joint, limits: Mapping[Limited, float]) -> list[tuple[float, State]]:
    """Of each metric, the least cost of the whole model that was found, and where."""
    tables = RankTables(joint)
    states = small_choices(joint)
    if joint.latency is not None:
        states.append(fastest_choice(joint).state)
    over = np.array([_least_over(tables, state) for state in states])
    return [
        (float(limit + over[place, index]), states[place])
        for index, (limit, place) in enumerate(zip(limits.values(), over.argmin(axis=0), strict=True))
    ]


def _least_over(tables: RankTables, state: State) -> Floats:
    """(B,) the least cost above the room at some widths, in each metric alone."""
    table = tables.table_for(state)
    options = np.where(np.isfinite(table.damage), table.cost, np.inf)
    layers = options.min(axis=2, initial=np.inf).sum(axis=1) if table.names else 0.0
    over: Floats = layers - table.room
    return over


def check_joint_reachable(
    joint: Joint,
    source: PlanSource,
    costing: Costing,
    budgets: Mapping[Limited, Budget],
    limits: Mapping[Limited, float],
    *,
    skipped: Collection[str],
    of: Floats,
    fixed: Fixed = NOTHING_FIXED,
) -> str:
    """Check that each budget alone can be met.

    Args:
        joint: everything that may be chosen.
        source: what it was made from.
        costing: of its metrics.
        budgets: metric -> what was asked for.
        limits: metric -> largest cost allowed.
        skipped: layers, groups and blocks that the caller wants left alone.
        of: (B,) cost that keep ratios are shares of.
        fixed: what is not chosen any more.

    Returns:
        The smallest reachable keep ratio of each metric, for people.

    Raises:
        BudgetError: a budget that no choice meets.
    """
    found = _lowest(joint, limits)
    lowest = {metric: cost for metric, (cost, _) in zip(limits, found, strict=True)}
    floors = f"{reachable(lowest, of, budgets)}{_unproved(joint, lowest, limits, of)}"
    for index, (metric, cost) in enumerate(lowest.items()):
        if cost > limits[metric]:
            raise BudgetError(
                f"budget: {budgets[metric].text(metric)} cannot be met; {floors}. "
                f"{_holding_up(joint, source, costing, index, *found[index], skipped, of, fixed)}. "
                f"{how_to_reach(metric, fixed.names)}{meant_percent(budgets[metric], name_of(metric))}"
            )
    return floors


def _unproved(
    joint: Joint, lowest: Mapping[Limited, float], limits: Mapping[Limited, float], of: Floats
) -> str:
    """What the fastest choice is not proved to be, for people; "" where it is."""
    if joint.latency is None:
        return ""
    bound = limits[LATENCY] + fastest_choice(joint).bound
    if lowest[LATENCY] <= bound * (1 + _PROVED):
        return ""
    return f" (as far as was found: none is below latency={max(bound, 0) / float(of[joint.latency]):.4f})"


def _holding_up(
    joint: Joint,
    source: PlanSource,
    costing: Costing,
    index: int,
    lowest: float,
    state: State,
    skipped: Collection[str],
    of: Floats,
    fixed: Fixed,
) -> str:
    layers, metric = source.structure.layers, costing.metrics[index]
    dropped = [joint.blocks[block].name for block in sorted(state.dropped)]
    gone = (*fixed.dropped, *dropped)
    there = {name: spec for name, spec in layers.items() if not (gone and is_inside(name, gone))}
    offered = {name for group in joint.widths for name in group.needs}
    changed = offered | set(fixed.groups)
    owners = {tensor: name for name, spec in layers.items() for tensor in matrix_names(spec)}
    touched = {layer.spec.name for layer in joint.layers} | set(fixed.settings)
    touched |= {
        owners[tensor.name]
        for tensor in source.structure.channels.tensors.values()
        if tensor.name in owners and _goes_with(tensor, changed)
    }
    costs = {name: float(costing.whole_layer(spec)[index]) for name, spec in there.items()}
    alone = {name: cost for name, cost in costs.items() if name not in touched and cost > 0}
    outside = float(_unchanged_outside(source, costing, changed, gone, owners)[index])
    smallest = lowest - sum(alone.values()) - outside
    groups = {name for name in offered if not group_is_inside(source.structure.channels, name, gone)}
    what = f"layers ({len(touched & there.keys())}) and groups ({len(groups)}) at their smallest"
    if dropped:
        what += f", without blocks ({len(dropped)})"
    if fixed:
        what += ", with what is fixed"
    reasons = {
        name: "fixed"
        if name in fixed.layers
        else "in skip"
        if name in skipped
        else layers[name].reason or "nothing allowed saves anything"
        for name in alone
    }
    return what_remains(
        metric,
        max(float(of[index]), 1),
        [(smallest, what), (outside, outside_layers(metric))],
        alone,
        reasons,
    )


def _unchanged_outside(
    source: PlanSource,
    costing: Costing,
    changed: Collection[str],
    gone: Collection[str],
    owners: Collection[str],
) -> Floats:
    """(B,) cost of what no layer holds and no choice changes.

    Args:
        source: of the model.
        costing: of the metrics.
        changed: groups whose widths are chosen or fixed; what goes with them is left out.
        gone: blocks that are dropped; what is in them is left out.
        owners: names of the tensors that are parts of layers.
    """
    outermost = [name for name in gone if not is_inside(name, [other for other in gone if other != name])]
    left = costing.whole_model(source)
    for name in outermost:
        left = left - costing.whole_block(source, name)
    for spec in source.structure.layers.values():
        if not is_inside(spec.name, outermost):
            left = left - costing.whole_layer(spec)
    for name in changed:
        group = source.structure.channels.groups[name]
        if not group_is_inside(source.structure.channels, name, outermost):
            left = left - group.units * costing.unit_cost(name) - costing.whole_extra(group)
    for cost in _slimmed_outside(source.structure.channels, changed, outermost, owners):
        left = left - costing.as_array(cost)
    unchanged: Floats = np.maximum(left, 0.0)
    return unchanged


def _slimmed_outside(
    channels: ChannelMap, changed: Collection[str], gone: Collection[str], owners: Collection[str]
) -> Iterator[Cost]:
    """Whole costs of the tensors and products that go with groups and are parts of no layer."""
    for tensor in channels.tensors.values():
        if tensor.name not in owners and not is_inside(tensor.name, gone) and _goes_with(tensor, changed):
            numbers = prod(tensor.shape)
            params = numbers if tensor.is_parameter else 0
            yield Cost(macs=numbers * tensor.positions, params=params, bytes=params * tensor.itemsize)
    for product in channels.products:
        if not is_inside(product.module, gone) and any(group in changed for group in product.groups):
            yield Cost(macs=product.macs, params=0, bytes=0)


def _goes_with(tensor: TensorSpec, groups: Collection[str]) -> bool:
    return any(axis.group in groups for axis in tensor.axes)
