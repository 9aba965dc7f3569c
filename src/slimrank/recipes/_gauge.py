# SPDX-License-Identifier: Apache-2.0
"""How a compressed model is judged."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from slimrank._errors import OptionError
from slimrank._result import Result
from slimrank.forward import eval_mode
from slimrank.report import agreement_text
from slimrank.scoring import ScoreFn, score_model
from slimrank.survey import Session, restored_copy

# Nats of divergence per unit of score. On the networks tried a nat cost about a quarter of the accuracy: only
# the first guess of the search follows from it.
_NATS_PER_SCORE = 4.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gauge:
    """How a model is judged.

    Attributes:
        drop: what a result has lost against the original; more is worse.
        unit: of the drop, for people.
        per_damage: first guess of drop / predicted damage.
        is_divergence: the drop is the held-out divergence, so that an agreement goes with it.
    """

    drop: Callable[[Result], float]
    unit: str
    per_damage: float
    is_divergence: bool = False

    def agreement_of(self, result: Result) -> str:
        """What stands behind the drop of a result: ", 98.91 % same top-1"; "" where a score judges."""
        return f", {agreement_text(result.agreement)}" if self.is_divergence and result.agreement else ""


def gauge_of(session: Session, score_fn: ScoreFn | None, lower_is_better: bool) -> Gauge:
    """A gauge by the caller's score, or by the held-out divergence where there is none.

    Raises:
        OptionError: ``score_fn`` is no function.
        ScoreError: ``score_fn`` fails on the original, or returns no finite number.
    """
    if score_fn is None:
        return Gauge(
            drop=lambda result: math.inf if result.divergence is None else result.divergence,
            unit=session.likelihood.unit,
            per_damage=1.0,
            is_divergence=True,
        )
    if not callable(score_fn):
        raise OptionError(f"score_fn is a {type(score_fn).__name__}; give a function fn(model) -> float")
    sign = -1.0 if lower_is_better else 1.0
    baseline = score_model(restored_copy(session), score_fn, "the original")

    def drop(result: Result) -> float:
        with eval_mode(result.model):
            return sign * (baseline - score_model(result.model, score_fn, "a compressed model"))

    return Gauge(drop=drop, unit=f"of the score (original {baseline:.6g})", per_damage=1 / _NATS_PER_SCORE)
