# SPDX-License-Identifier: Apache-2.0
"""One plan among those of a curve."""

from dataclasses import dataclass

from slimrank.plan import Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoPoint:
    """One plan of a study, what it costs and what it loses.

    Attributes:
        budget: keep ratio that was asked for, of the model that was studied; of budgets that gave this plan,
            the smallest.
        cost: keep ratio of the plan in the same metric, never above the budget.
        predicted: damage that the plan predicts; None where it predicts none.
        measured: held-out divergence of the model that was built, or its score where a score function was
            given; None where nothing was measured.
        plan: to be applied; where a model was built, as it was built.
    """

    budget: float
    cost: float
    predicted: float | None
    measured: float | None
    plan: Plan
