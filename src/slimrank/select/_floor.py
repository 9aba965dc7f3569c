# SPDX-License-Identifier: Apache-2.0
"""How low a budget can go, and what holds it up."""

from collections.abc import Collection, Mapping
from math import ceil

import numpy as np

from slimrank._errors import BudgetError
from slimrank.cost import layer_cost
from slimrank.plan import PlanSource
from slimrank.records import Cost, Metric
from slimrank.select._table import Table

_NAMED = 4


def lowest_cost(table: Table, source: PlanSource, metric: Metric, at: int) -> int:
    """The smallest cost of the whole model, in one metric, whatever the damage.

    Args:
        table: of the options.
        source: what it was made from.
        metric: to count.
        at: place of the metric in the table.

    Returns:
        The cost, for one sample.
    """
    lowest = np.where(np.isfinite(table.damage), table.cost[at], np.inf).min(axis=1, initial=np.inf)
    return int(source.before.metric(metric) - table.whole[at].sum() + lowest.sum())


def check_reachable(
    table: Table, source: PlanSource, budgets: Mapping[Metric, float], *, skipped: Collection[str], of: Cost
) -> None:
    """Check that each budget alone can be met.

    Args:
        table: of the options.
        source: what it was made from.
        budgets: metric -> keep ratio.
        skipped: layers that the caller wants left alone.
        of: cost that keep ratios are shares of.

    Raises:
        BudgetError: a budget that no choice meets.
    """
    for at, metric in enumerate(budgets):
        room = table.room[at] + source.before.metric(metric) - table.whole[at].sum()
        if lowest_cost(table, source, metric, at) > room:
            raise BudgetError(
                f"budget: {metric}={budgets[metric]:g} cannot be met; {floors(table, source, budgets, of)}. "
                f"{_holding_up(table, source, metric, at, skipped)}. Raise the budget, or allow more: "
                f"fewer layers in skip, more methods, a smaller multiple_of"
            )


def floors(table: Table, source: PlanSource, budgets: Mapping[Metric, float], of: Cost) -> str:
    """The smallest reachable keep ratio of each metric, for people."""
    parts = []
    for at, metric in enumerate(budgets):
        ratio = lowest_cost(table, source, metric, at) / max(of.metric(metric), 1)
        # Rounded up, so that the number shown can be asked for.
        parts.append(f"{metric}={ceil(ratio * 1e4) / 1e4:.4f}")
    return f"the smallest reachable is {', '.join(parts)}"


def _holding_up(table: Table, source: PlanSource, metric: Metric, at: int, skipped: Collection[str]) -> str:
    whole = max(source.before.metric(metric), 1)
    layers = source.structure.layers
    costs = {name: layer_cost(spec).metric(metric) for name, spec in layers.items()}
    alone = {name: cost for name, cost in costs.items() if name not in table.names and cost > 0}
    outside = source.before.metric(metric) - sum(costs.values())
    smallest = lowest_cost(table, source, metric, at) - source.before.metric(metric) + table.whole[at].sum()
    parts = [(smallest, f"compressible layers ({len(table.names)}) at their smallest")]
    if outside > 0:
        parts.append((outside, "what no layer holds, e.g. attention products"))
    largest = sorted(alone, key=lambda name: -alone[name])
    for name in largest[:_NAMED]:
        reason = "in skip" if name in skipped else layers[name].reason
        parts.append((alone[name], f"{name!r} (left alone: {reason or 'no rank allowed saves anything'})"))
    rest = sum(alone[name] for name in largest[_NAMED:])
    if rest:
        parts.append((rest, f"{len(largest) - _NAMED} more layers left alone"))
    told = [
        f"{cost / whole:.1%} {text}" for cost, text in sorted(parts, key=lambda part: -part[0]) if cost > 0
    ]
    return f"Of the {metric}, these remain: {', '.join(told)}"
