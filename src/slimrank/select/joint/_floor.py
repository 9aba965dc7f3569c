# SPDX-License-Identifier: Apache-2.0
"""How low a budget can go where channels and blocks may go too."""

from collections.abc import Collection, Mapping

import numpy as np

from slimrank._errors import BudgetError
from slimrank.plan import NOTHING_FIXED, Fixed, PlanSource, is_inside
from slimrank.records import LATENCY, Limited
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
    tables = RankTables(joint)
    states = small_choices(joint)
    if joint.latency is not None:
        states.append(fastest_choice(joint).state)
    least = np.min([_least_over(tables, state) for state in states], axis=0)
    return [float(limit + over) for limit, over in zip(limits.values(), least, strict=True)]


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
    lowest = dict(zip(limits, lowest_costs(joint, limits), strict=True))
    floors = f"{reachable(lowest, of, budgets)}{_unproved(joint, lowest, limits, of)}"
    for index, (metric, cost) in enumerate(lowest.items()):
        if cost > limits[metric]:
            raise BudgetError(
                f"budget: {budgets[metric].text(metric)} cannot be met; {floors}. "
                f"{_holding_up(joint, source, costing, index, cost, skipped, fixed)}. "
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
    skipped: Collection[str],
    fixed: Fixed,
) -> str:
    layers, channels = source.structure.layers, source.structure.channels
    metric, whole = costing.metrics[index], float(costing.whole_model(source)[index])
    offered = {name for group in joint.widths for name in group.needs}
    changed = offered | set(fixed.groups)
    touched = {layer.spec.name for layer in joint.layers} | set(fixed.settings)
    touched |= {name for name in layers if fixed.dropped and is_inside(name, fixed.dropped)}
    for tensor in channels.tensors.values():
        if any(axis.group in changed for axis in tensor.axes):
            touched.add(tensor.name.rpartition(".")[0])
    costs = {name: float(costing.whole_layer(spec)[index]) for name, spec in layers.items()}
    alone = {name: cost for name, cost in costs.items() if name not in touched and cost > 0}
    # Blocks that go may take some of these with them; products that shrink are counted with the groups.
    outside = max(whole - sum(costs.values()), 0)
    smallest = lowest - sum(alone.values()) - outside
    what = f"layers ({len(touched)}) and groups ({len(offered)}) at their smallest"
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
        max(whole, 1),
        [(smallest, what), (outside, outside_layers(metric))],
        alone,
        reasons,
    )
