# SPDX-License-Identifier: Apache-2.0
"""Which budgets are tried, and which plans of them are kept."""

from collections.abc import Callable, Iterable

import numpy as np

from slimrank._errors import BudgetError
from slimrank.pareto._point import ParetoPoint
from slimrank.plan import Plan, are_same_steps

# Share of the way between both ends that stays free at each: on the smallest model that can be reached every
# layer has its lowest rank, and on the whole model nothing is done.
_MARGIN = 0.02


def budgets_between(floor: float, whole: float, count: int) -> tuple[float, ...]:
    """Budgets at even distances.

    Args:
        floor: smallest keep ratio that can be reached.
        whole: keep ratio of the model as it stands.
        count: how many, at least 2.

    Returns:
        Ascending, a little inside of both ends.
    """
    margin = _MARGIN * (whole - floor)
    return tuple(np.linspace(floor + margin, whole - margin, count).tolist())


def trace(
    budgets: Iterable[float], plan_at: Callable[[float], Plan], cost_of: Callable[[Plan], float]
) -> tuple[ParetoPoint, ...]:
    """The plans of some budgets, not measured.

    Args:
        budgets: ascending.
        plan_at: makes the plan of a budget; what is out of reach is left out.
        cost_of: keep ratio of a plan.

    Returns:
        One point for each different plan, by ascending cost.
    """
    points = []
    for budget in budgets:
        try:
            plan = plan_at(budget)
        except BudgetError:
            # Near the floor of one budget, multiples or a second metric may leave no plan.
            continue
        points.append(
            ParetoPoint(budget=budget, cost=cost_of(plan), predicted=plan.damage, measured=None, plan=plan)
        )
    return merged(points)


def merged(points: Iterable[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    """Points with one plan each, by ascending cost; of equal plans the one with the smallest budget."""
    different: list[ParetoPoint] = []
    for point in sorted(points, key=lambda point: (point.cost, point.budget)):
        if not any(are_same_steps(point.plan.steps, other.plan.steps) for other in different):
            different.append(point)
    return tuple(different)
