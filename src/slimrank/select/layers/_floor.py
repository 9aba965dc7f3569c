# SPDX-License-Identifier: Apache-2.0
"""How low a budget can go, and what holds it up."""

from collections.abc import Collection, Mapping, Sequence
from math import ceil

import numpy as np

from slimrank._errors import BudgetError
from slimrank.plan import PlanSource
from slimrank.records import Cost, Metric
from slimrank.select._option_costs import whole_layer_cost, whole_model_cost
from slimrank.select.layers._table import Table

# Layers named in a message about a budget out of reach: the largest. More would bury what to do.
_MAX_NAMED = 4


def lowest_cost(table: Table, source: PlanSource, metric: Metric, index: int) -> int:
    """The smallest cost of the whole model, in one metric, whatever the damage.

    Args:
        table: of the options.
        source: what it was made from.
        metric: to count.
        index: of the metric in the table.

    Returns:
        The cost, for one sample.
    """
    lowest = np.where(np.isfinite(table.damage), table.cost[index], np.inf).min(axis=1, initial=np.inf)
    return int(whole_model_cost(source).metric(metric) - table.whole[index].sum() + lowest.sum())


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
    for index, metric in enumerate(budgets):
        room = table.room[index] + whole_model_cost(source).metric(metric) - table.whole[index].sum()
        if lowest_cost(table, source, metric, index) > room:
            raise BudgetError(
                f"budget: {metric}={budgets[metric]:g} cannot be met; {floors(table, source, budgets, of)}. "
                f"{_holding_up(table, source, metric, index, skipped)}. Raise the budget, or allow more: "
                f"fewer layers in skip, more methods, a smaller multiple_of"
            )


def floors(table: Table, source: PlanSource, budgets: Mapping[Metric, float], of: Cost) -> str:
    """The smallest reachable keep ratio of each metric, for people."""
    return reachable(
        {metric: lowest_cost(table, source, metric, index) for index, metric in enumerate(budgets)}, of
    )


def reachable(lowest: Mapping[Metric, int], of: Cost) -> str:
    """Smallest costs as keep ratios, for people.

    Args:
        lowest: metric -> smallest cost of the whole model.
        of: cost that keep ratios are shares of.

    Returns:
        One sentence without its stop.
    """
    # Rounded up, so that the number shown can be asked for.
    parts = [
        f"{metric}={ceil(cost / max(of.metric(metric), 1) * 1e4) / 1e4:.4f}"
        for metric, cost in lowest.items()
    ]
    return f"the smallest reachable is {', '.join(parts)}"


def what_remains(
    metric: Metric,
    whole: int,
    parts: Sequence[tuple[int, str]],
    alone: Mapping[str, int],
    reasons: Mapping[str, str],
) -> str:
    """What remains of a metric, the largest parts first, for people.

    Args:
        metric: that this is about.
        whole: of the model, at least 1.
        parts: what is no single layer: cost and name.
        alone: layer left alone -> cost.
        reasons: why each of these is.

    Returns:
        One sentence without its stop.
    """
    largest = sorted(alone, key=lambda name: -alone[name])
    rows = list(parts)
    rows += [(alone[name], f"{name!r} (left alone: {reasons[name]})") for name in largest[:_MAX_NAMED]]
    rows.append(
        (
            sum(alone[name] for name in largest[_MAX_NAMED:]),
            f"{len(largest) - _MAX_NAMED} more layers left alone",
        )
    )
    listed = [
        f"{cost / whole:.1%} {text}" for cost, text in sorted(rows, key=lambda row: -row[0]) if cost > 0
    ]
    return f"Of the {metric}, these remain: {', '.join(listed)}"


def _holding_up(
    table: Table, source: PlanSource, metric: Metric, index: int, skipped: Collection[str]
) -> str:
    layers = source.structure.layers
    costs = {name: whole_layer_cost(spec).metric(metric) for name, spec in layers.items()}
    alone = {name: cost for name, cost in costs.items() if name not in table.names and cost > 0}
    outside = whole_model_cost(source).metric(metric) - sum(costs.values())
    smallest = (
        lowest_cost(table, source, metric, index)
        - whole_model_cost(source).metric(metric)
        + table.whole[index].sum()
    )
    reasons = {
        name: "in skip" if name in skipped else layers[name].reason or "no rank allowed saves anything"
        for name in alone
    }
    return what_remains(
        metric,
        max(whole_model_cost(source).metric(metric), 1),
        [
            (int(smallest), f"compressible layers ({len(table.names)}) at their smallest"),
            (outside, "what no layer holds, e.g. attention products"),
        ],
        alone,
        reasons,
    )
