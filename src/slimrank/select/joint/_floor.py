# SPDX-License-Identifier: Apache-2.0
"""How low a budget can go where channels and blocks may go too."""

from collections.abc import Collection, Mapping, Sequence
from itertools import islice

import numpy as np

from slimrank._errors import BudgetError
from slimrank.plan import PlanSource
from slimrank.records import Budgeted
from slimrank.select._option_costs import Costing
from slimrank.select.joint._prices import Hulls, Priced
from slimrank.select.joint._ranks import RankTables
from slimrank.select.joint._table import Joint, State, normalised
from slimrank.select.layers._floor import how_to_reach, outside_layers, reachable, what_remains
from slimrank.select.layers._table import Floats

# Price of the whole time over the largest damage of a group: at so high a price damages are rounding.
_TIME_ALONE = 1e9
# Widths tried one by one for the fastest: a few milliseconds each. Prices alone do not see that a slimmed
# layer may lack the rank that they ask for, which matters where few ranks are offered.
_MAX_MOVES = 200


def lowest_costs(joint: Joint, limits: Mapping[Budgeted, float]) -> list[float]:
    """A small cost of the whole model, in each metric alone, whatever the damage.

    Args:
        joint: everything that may be chosen.
        limits: what it was made with.

    Returns:
        Of each metric, the least cost of a few choices: everything whole, every group at its smallest, and
        that without every block or without one; for times also where these settle if only time counts.
    """
    tables = RankTables(joint)
    lowest = (0,) * len(joint.widths)
    blocks = range(len(joint.blocks))
    states = [State(widths=joint.whole), State(widths=lowest), normalised(joint, lowest, blocks)]
    states += [normalised(joint, lowest, {block}) for block in blocks]
    if joint.latency is not None:
        states += _fastest(joint, states)
    found = {state: _least_over(tables, state) for state in dict.fromkeys(states)}
    if joint.latency is not None:
        _move_to_fastest(joint, tables, found)
    least = np.min(list(found.values()), axis=0)
    return [float(limit + over) for limit, over in zip(limits.values(), least, strict=True)]


def _least_over(tables: RankTables, state: State) -> Floats:
    """(B,) the least cost above the room at some widths, in each metric alone."""
    table = tables.table_for(state)
    options = np.where(np.isfinite(table.damage), table.cost, np.inf)
    layers = options.min(axis=2, initial=np.inf).sum(axis=1) if table.names else 0.0
    over: Floats = layers - table.room
    return over


def _move_to_fastest(joint: Joint, tables: RankTables, found: dict[State, Floats]) -> None:
    """Adds what is met while groups take their fastest widths, one by one, from the fastest choice on."""
    metric = joint.latency
    best = min(found, key=lambda state: float(found[state][metric]))
    for group, width in islice(
        ((group, width) for group, widths in enumerate(joint.widths) for width in range(len(widths.kept))),
        _MAX_MOVES,
    ):
        widths = (*best.widths[:group], width, *best.widths[group + 1 :])
        moved = normalised(joint, widths, best.dropped)
        if moved not in found:
            found[moved] = _least_over(tables, moved)
        if found[moved][metric] < found[best][metric]:
            best = moved


def _fastest(joint: Joint, starts: Sequence[State]) -> list[State]:
    """Where choices settle if only time counts: pairs may be faster in layers that are not the smallest."""
    price = np.zeros(len(joint.scale))
    most = max((float(group.damage.max()) for group in joint.widths), default=0.0) or 1.0
    price[joint.latency] = _TIME_ALONE * most / joint.scale[joint.latency]
    priced = Priced(joint, Hulls(joint), price)
    return [priced.settled(start) for start in dict.fromkeys(starts)]


def check_joint_reachable(
    joint: Joint,
    source: PlanSource,
    costing: Costing,
    budgets: Mapping[Budgeted, float],
    limits: Mapping[Budgeted, float],
    *,
    skipped: Collection[str],
    of: Floats,
) -> str:
    """Check that each budget alone can be met.

    Args:
        joint: everything that may be chosen.
        source: what it was made from.
        costing: of its metrics.
        budgets: metric -> keep ratio.
        limits: metric -> largest cost allowed.
        skipped: layers, groups and blocks that the caller wants left alone.
        of: (B,) cost that keep ratios are shares of.

    Returns:
        The smallest reachable keep ratio of each metric, for people.

    Raises:
        BudgetError: a budget that no choice meets.
    """
    lowest = dict(zip(limits, lowest_costs(joint, limits), strict=True))
    floors = reachable(lowest, of)
    for index, (metric, cost) in enumerate(lowest.items()):
        if cost > limits[metric]:
            raise BudgetError(
                f"budget: {metric}={budgets[metric]:g} cannot be met; {floors}. "
                f"{_holding_up(joint, source, costing, index, cost, skipped)}. {how_to_reach(metric)}"
            )
    return floors


def _holding_up(
    joint: Joint, source: PlanSource, costing: Costing, index: int, lowest: float, skipped: Collection[str]
) -> str:
    layers, channels = source.structure.layers, source.structure.channels
    metric, whole = costing.metrics[index], float(costing.whole_model(source)[index])
    offered = {group.name for group in joint.widths}
    touched = {layer.spec.name for layer in joint.layers}
    for tensor in channels.tensors.values():
        if any(axis.group in offered for axis in tensor.axes):
            touched.add(tensor.name.rpartition(".")[0])
    costs = {name: float(costing.whole_layer(spec)[index]) for name, spec in layers.items()}
    alone = {name: cost for name, cost in costs.items() if name not in touched and cost > 0}
    # Blocks that go may take some of these with them; products that shrink are counted with the groups.
    outside = max(whole - sum(costs.values()), 0)
    smallest = lowest - sum(alone.values()) - outside
    what = f"layers ({len(touched)}) and groups ({len(offered)}) at their smallest"
    reasons = {
        name: "in skip" if name in skipped else layers[name].reason or "nothing allowed saves anything"
        for name in alone
    }
    return what_remains(
        metric,
        max(whole, 1),
        [(smallest, what), (outside, outside_layers(metric))],
        alone,
        reasons,
    )
