# SPDX-License-Identifier: Apache-2.0
"""How low a budget can go, and what holds it up."""

from collections.abc import Collection, Mapping, Sequence
from math import ceil

import numpy as np

from slimrank._errors import BudgetError
from slimrank.plan import PlanSource
from slimrank.records import LATENCY, Limited, PeakPoint
from slimrank.select._budget import Budget, meant_percent, name_of
from slimrank.select._option_costs import Costing
from slimrank.select.layers._table import Floats, Table

# Layers named in a message about a budget out of reach: the largest. More would bury what to do.
_MAX_NAMED = 4
# What to do about a counted budget out of reach.
HOW_TO_REACH = "Raise the budget, or allow more: fewer layers in skip, more methods, a smaller multiple_of"


def lowest_cost(table: Table, whole: float, index: int) -> float:
    """The smallest cost of the whole model, in one metric, whatever the damage.

    Args:
        table: of the options.
        whole: cost of the model as it stands.
        index: of the metric in the table.

    Returns:
        The cost: for one sample, or ns for the batch that was measured.
    """
    lowest = np.where(np.isfinite(table.damage), table.cost[index], np.inf).min(axis=1, initial=np.inf)
    return float(whole - table.whole[index].sum() + lowest.sum())


def check_reachable(
    table: Table,
    source: PlanSource,
    costing: Costing,
    budgets: Mapping[Limited, Budget],
    *,
    skipped: Collection[str],
    of: Floats,
) -> None:
    """Check that each budget alone can be met.

    Args:
        table: of the options.
        source: what it was made from.
        costing: of its metrics.
        budgets: metric -> what was asked for.
        skipped: layers that the caller wants left alone.
        of: (B,) cost that keep ratios are shares of.

    Raises:
        BudgetError: a budget that no choice meets.
    """
    wholes = costing.whole_model(source)
    for index, metric in enumerate(budgets):
        room = table.room[index] + wholes[index] - table.whole[index].sum()
        if lowest_cost(table, wholes[index], index) > room:
            raise BudgetError(
                f"budget: {budgets[metric].text(metric)} cannot be met; "
                f"{floors(table, source, costing, of, budgets)}. "
                f"{_holding_up(table, source, costing, index, skipped, of)}. {how_to_reach(metric)}"
                f"{meant_percent(budgets[metric], name_of(metric))}"
            )


def how_to_reach(metric: Limited, fixed: Sequence[str] = ()) -> str:
    """What to do about a budget out of reach, for people, beside what is fixed."""
    if fixed:
        shown = ", ".join(repr(name) for name in fixed[:_MAX_NAMED])
        more = f" and {len(fixed) - _MAX_NAMED} more" if len(fixed) > _MAX_NAMED else ""
        return f"Fixed: {shown}{more}; fix less or other settings. {how_to_reach(metric)}"
    if metric == LATENCY:
        return (
            "Raise the budget, or allow more: fewer layers in skip, more methods; another backend, more "
            "threads or precision='int8' may lower the floor"
        )
    return HOW_TO_REACH


def floors(
    table: Table, source: PlanSource, costing: Costing, of: Floats, budgets: Mapping[Limited, Budget]
) -> str:
    """The smallest that can be reached of each metric, for people."""
    wholes = costing.whole_model(source)
    lowest = {
        metric: lowest_cost(table, wholes[index], index) for index, metric in enumerate(costing.metrics)
    }
    return reachable(lowest, of, budgets)


def reachable(lowest: Mapping[Limited, float], of: Floats, budgets: Mapping[Limited, Budget]) -> str:
    """Smallest costs as keep ratios, or as numbers where numbers were asked for, for people.

    Args:
        lowest: metric -> smallest cost of the whole model.
        of: (B,) cost that keep ratios are shares of.
        budgets: metric -> what was asked for.

    Returns:
        One sentence without its stop.
    """
    found = [
        (name_of(metric), budgets[metric].number is not None, cost, whole)
        for (metric, cost), whole in zip(lowest.items(), of.tolist(), strict=True)
    ]
    # Of several places, the one that holds most.
    highest = {name: (is_number, cost, whole) for name, is_number, cost, whole in sorted(found, key=_cost_of)}
    # Rounded up, so that the number shown can be asked for.
    parts = [
        f"{name}={ceil(cost):_}" if is_number else f"{name}={ceil(cost / max(whole, 1) * 1e4) / 1e4:.4f}"
        for name in dict.fromkeys(name for name, *_ in found)
        for is_number, cost, whole in [highest[name]]
    ]
    return f"the smallest reachable is {', '.join(parts)}"


def _cost_of(row: tuple[str, bool, float, float]) -> float:
    return row[2]


def what_remains(
    metric: Limited,
    whole: float,
    parts: Sequence[tuple[float, str]],
    alone: Mapping[str, float],
    reasons: Mapping[str, str],
) -> str:
    """What remains of a metric, the largest parts first, for people.

    Args:
        metric: that this is about.
        whole: what shares are of, as those of the floor, at least 1.
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
    return f"Of the {name_of(metric)}, these remain: {', '.join(listed)}"


def outside_layers(metric: Limited) -> str:
    """What no layer holds, in words."""
    if isinstance(metric, PeakPoint):
        return "what no plan changes there"
    if metric == LATENCY:
        return "what no layer holds: norms, activations, sums and what the runtime does between them"
    return "what no layer holds, e.g. attention products"


def _holding_up(
    table: Table, source: PlanSource, costing: Costing, index: int, skipped: Collection[str], of: Floats
) -> str:
    layers, metric = source.structure.layers, costing.metrics[index]
    whole = float(costing.whole_model(source)[index])
    costs = {name: float(costing.whole_layer(spec)[index]) for name, spec in layers.items()}
    alone = {name: cost for name, cost in costs.items() if name not in table.names and cost > 0}
    outside = whole - sum(costs.values())
    smallest = lowest_cost(table, whole, index) - whole + float(table.whole[index].sum())
    reasons = {
        name: "in skip" if name in skipped else layers[name].reason or "no rank allowed saves anything"
        for name in alone
    }
    return what_remains(
        metric,
        max(float(of[index]), 1),
        [
            (smallest, f"compressible layers ({len(table.names)}) at their smallest"),
            (outside, outside_layers(metric)),
        ],
        alone,
        reasons,
    )
