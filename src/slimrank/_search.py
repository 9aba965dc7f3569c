# SPDX-License-Identifier: Apache-2.0
"""Budgets found by trying: the smallest model within a drop, and the best split between two methods."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import nn

from slimrank._build import Session, measured_from
from slimrank._errors import BudgetError, OptionError, StudyError
from slimrank._opened import restored_copy
from slimrank._result import Result
from slimrank._study import Study, session_of, study_with
from slimrank.graph import Batch, eval_mode
from slimrank.plan import Plan, ratio_of
from slimrank.records import Method, Metric, Note
from slimrank.report import Phases
from slimrank.scores import ScoreFn, score_model
from slimrank.select import Select, check_methods, reachable_floor

Tune = Callable[[nn.Module], object]
# Points of accuracy lost per nat of divergence were seen to be about a quarter: a first guess, no more.
_NATS_PER_SCORE = 4.0
_NEAR_END = 0.1
_HALVINGS = 12
_N_SPLITS = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Gauge:
    """How a model is judged.

    Attributes:
        drop: what a result has lost against the original; more is worse.
        unit: of the drop, for people.
        per_damage: first guess of drop / predicted damage.
    """

    drop: Callable[[Result], float]
    unit: str
    per_damage: float


def smallest(
    study: Study,
    *,
    max_drop: float = 0.01,
    score_fn: ScoreFn | None = None,
    lower_is_better: bool = False,
    metric: Metric = "macs",
    tolerance: float = 0.01,
    select: Select = "optimal",
    multiple_of: int | Mapping[str, int] = 1,
    methods: Sequence[Method] | None = None,
    skip: Sequence[str] = (),
) -> Result:
    """The smallest model whose measured loss stays within a drop.

    Budgets are searched by bisection. Where to try next is read off the damage that plans predict, scaled by
    what was measured so far, so that few models are built: about five. Where predictions tell nothing (a
    score that is flat, then falls) the bounds are halved: about ten.

    Args:
        study: of the model.
        max_drop: largest loss allowed, at least 0: of the score with ``score_fn``, else held-out divergence
            in the study's unit.
        score_fn: ``score_fn(model) -> float``, higher is better; None for the held-out divergence.
        lower_is_better: the score is a loss, an error rate or the like.
        metric: "macs", "params" or "bytes", to be made small.
        tolerance: the search ends when a keep ratio that holds is this close above one that does not.
        select: as in ``Study.plan``.
        multiple_of: as in ``Study.plan``.
        methods: as in ``Study.plan``.
        skip: as in ``Study.plan``.

    Returns:
        The result; its notes list what was tried.

    Raises:
        BudgetError: no budget that was tried stays within the drop.
        OptionError: a drop or tolerance that makes no sense.
        ScoreError: ``score_fn`` fails or returns no finite number.
        StudyError: the study was loaded without a model.
    """
    session = session_of(study)
    if not isinstance(max_drop, int | float) or isinstance(max_drop, bool) or not 0 <= max_drop < math.inf:
        raise OptionError(f"max_drop={max_drop!r}; give a number of at least 0, such as 0.01")
    if not isinstance(tolerance, int | float) or not 0 < tolerance < 1:
        raise OptionError(f"tolerance={tolerance!r}; give a share of the cost between 0 and 1, such as 0.01")
    gauge = _gauge(session, score_fn, lower_is_better)
    phases = Phases(shown=session.progress)

    def planned(ratio: float) -> Plan:
        budget: dict[str, float] = {metric: ratio}
        return study.plan(select=select, multiple_of=multiple_of, methods=methods, skip=skip, **budget)  # type: ignore[arg-type]

    floor = reachable_floor(study, metric, multiple_of=multiple_of, methods=methods, skip=skip)
    search = _Bisection(low=floor, high=1.0, max_drop=max_drop, per_damage=gauge.per_damage)
    best: Result | None = None
    tried: list[Note] = []
    while not tried or search.high - search.low > tolerance:
        asked = search.next_ratio(lambda ratio: planned(ratio).damage or 0.0)
        plan = planned(asked)
        reached = ratio_of(plan.start, plan.after, metric)
        if search.knows(reached):
            # Ranks are whole: no plan lies between the bounds here, only one that was built already.
            search.skip(asked, reached)
            continue
        result = study.apply(plan)
        drop = gauge.drop(result)
        is_within = drop <= max_drop
        note = Note(
            where="smallest",
            text=f"{metric} {plan.keep_ratio(metric):.4f}: drop {drop:.4g} {gauge.unit}, "
            f"{'within' if is_within else 'above'} {max_drop:g}",
        )
        tried.append(note)
        phases.tell(str(note))
        search.learn(asked, reached, plan.damage or 0.0, drop)
        if is_within:
            best = result
    if best is None:
        raise BudgetError(
            f"smallest: no model stays within a drop of {max_drop:g} {gauge.unit}; tried "
            f"{'; '.join(note.text for note in tried)}; raise max_drop, or give the study more samples"
        )
    return best.with_notes(tried, best.seconds)


class _Bisection:
    """Keep ratios between one that fails and one that holds.

    Args:
        low: fails, or cannot be undercut.
        high: holds.
        max_drop: what holds.
        per_damage: drop / predicted damage, until something was measured.
    """

    def __init__(self, *, low: float, high: float, max_drop: float, per_damage: float) -> None:
        self.low, self.high = low, high
        self._max_drop = max_drop
        self._per_damage: float | None = per_damage
        self._known: set[float] = set()
        self._width = 2 * (high - low)

    def next_ratio(self, damage_at: Callable[[float], float]) -> float:
        """Where to try: where the predicted damage says that the drop is just allowed, or in the middle.

        The middle is taken where predictions have told nothing: nothing was lost, or the bounds have not come
        closer by half. So the bounds halve at every second try at the latest.
        """
        width = self.high - self.low
        has_halved, self._width = width <= self._width / 2, width
        if self._per_damage is None or not has_halved:
            return (self.low + self.high) / 2
        wanted = self._max_drop / self._per_damage
        low, high = self.low, self.high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if damage_at(middle) <= wanted else (middle, high)
        margin = _NEAR_END * width
        # The floor itself has not been tried before the first measurement.
        lowest = self.low + margin if self._known else self.low
        return min(max(high, lowest), self.high - margin)

    def knows(self, reached: float) -> bool:
        """Whether a plan of this keep ratio was measured."""
        return reached in self._known

    def skip(self, asked: float, reached: float) -> None:
        """Takes in that a ratio gives a plan that was measured: nothing lies between the two."""
        if reached >= self.high:
            self.low = max(self.low, min(asked, self.high))
        elif reached <= self.low:
            self.low = max(self.low, asked)
        else:
            self.low = self.high

    def learn(self, asked: float, reached: float, damage: float, drop: float) -> None:
        """Takes in a measurement."""
        self._known.add(reached)
        if drop <= self._max_drop:
            self.high = min(self.high, reached)
        else:
            # No plan lies between what was reached and what was asked for.
            self.low = max(self.low, min(asked, self.high))
        self._per_damage = drop / damage if damage > 0 and drop > 0 else None


def search_split(
    study: Study,
    *,
    macs: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    methods: tuple[Method, Method] = ("spatial_svd", "weight_svd"),
    splits: Sequence[float] | None = None,
    score_fn: ScoreFn | None = None,
    lower_is_better: bool = False,
    tune: Tune | None = None,
    multiple_of: int | Mapping[str, int] = 1,
) -> Result:
    """The best way to share one budget between two methods, one after the other.

    For each split the first method brings the model to that keep ratio; then the compressed model is studied
    anew, and the second method brings it to the whole budget. Each method alone competes as well.

    Args:
        study: of the original model, with both methods measured.
        macs: keep ratio of the original's MACs; exactly one budget.
        params: keep ratio of the params.
        bytes: keep ratio of the bytes.
        methods: the first and the second.
        splits: keep ratios after the first step, between the budget and 1; None for three of them, evenly
            spaced as factors.
        score_fn: ``score_fn(model) -> float``, higher is better; None keeps the split with the lowest
            held-out divergence from the original.
        lower_is_better: the score is a loss, an error rate or the like.
        tune: called with the model after each step, to train it further; it may work in place, or return the
            trained model.
        multiple_of: as in ``Study.plan``.

    Returns:
        The best result; its plan holds both steps, its divergence is measured against the original, and its
        notes list every split.

    Raises:
        BudgetError: no split can be built, or not exactly one budget.
        OptionError: splits or methods that make no sense.
        UnknownNameError: a method that the study did not measure.
        ScoreError: ``score_fn`` fails or returns no finite number.
        StudyError: the study was loaded without a model, or is of one that was compressed before.
    """
    session = session_of(study)
    if study.previous is not None:
        raise StudyError(
            "search_split shares the budget of an original model, and this study is of one that was "
            "compressed before; give a study of the original"
        )
    metric, budget = _one_budget(macs, params, bytes)
    if len(methods) != 2 or methods[0] == methods[1]:
        raise OptionError(f"methods={methods!r}; give two different ones, the first and the second")
    check_methods(methods, study.methods)
    ratios = _splits(budget, splits)
    gauge = _gauge(session, score_fn, lower_is_better)
    phases = Phases(shown=session.progress)
    best: tuple[float, str, Result] | None = None
    notes: list[Note] = []
    for label, build in _attempts(study, session, metric, budget, methods, ratios, tune, multiple_of):
        try:
            result = build()
        except BudgetError as error:
            notes.append(Note(where="split", text=f"{label}: out of reach ({str(error).split(';')[0]})"))
            continue
        result = measured_from(session, result)
        loss = gauge.drop(result)
        notes.append(Note(where="split", text=f"{label}: drop {loss:.4g} {gauge.unit}"))
        phases.tell(str(notes[-1]))
        if best is None or loss < best[0]:
            best = (loss, label, result)
    if best is None:
        raise BudgetError(
            f"split: nothing can be built: {'; '.join(note.text for note in notes)}; raise the budget"
        )
    _, winner, result = best
    told = [
        replace(note, text=note.text + " (returned)") if note.text.startswith(f"{winner}:") else note
        for note in notes
    ]
    return result.with_notes(told, result.seconds)


def _attempts(
    first: Study,
    session: Session,
    metric: Metric,
    budget: float,
    methods: tuple[Method, Method],
    ratios: Sequence[float],
    tune: Tune | None,
    multiple_of: int | Mapping[str, int],
) -> list[tuple[str, Callable[[], Result]]]:
    """Every split with what builds it, the methods alone first."""

    def planned(source: Study, ratio: float, method: Method, *, is_second: bool = False) -> Plan:
        budgets: dict[str, float] = {metric: ratio}
        relative = "original" if is_second else "model"
        return source.plan(methods=(method,), multiple_of=multiple_of, relative_to=relative, **budgets)  # type: ignore[arg-type]

    def alone(method: Method) -> Result:
        return _tuned(first.apply(planned(first, budget, method)), tune)

    def split(ratio: float) -> Result:
        halfway = _tuned(first.apply(planned(first, ratio, methods[0])), tune)
        second = _studied_again(halfway, session, methods[1])
        return _tuned(second.apply(planned(second, budget, methods[1], is_second=True)), tune)

    return [
        *((f"{method} alone", partial(alone, method)) for method in methods),
        *((f"{methods[0]} to {ratio:.3f}, then {methods[1]}", partial(split, ratio)) for ratio in ratios),
    ]


def _studied_again(result: Result, session: Session, method: Method) -> Study:
    """A study of a compressed model, on the same data with the same options."""
    feed = session.opened.feed

    def inputs(raw: object) -> object:
        batch: Batch = feed.read(raw)
        return dict(batch.kwargs) if batch.kwargs else batch.args

    return study_with(
        result.model,
        feed.batches,
        inputs=inputs,
        outputs=session.outputs,
        options=replace(session.options, methods=(method,)),
        run_dir=None,
        progress=session.progress,
        previous=result.plan,
    )


def _tuned(result: Result, tune: Tune | None) -> Result:
    if tune is None:
        return result
    found = tune(result.model)
    return result.with_model(found if isinstance(found, nn.Module) else result.model)


def _one_budget(macs: float | None, params: float | None, bytes: float | None) -> tuple[Metric, float]:
    given: dict[Metric, float] = {}
    if macs is not None:
        given["macs"] = macs
    if params is not None:
        given["params"] = params
    if bytes is not None:
        given["bytes"] = bytes
    if len(given) != 1:
        raise BudgetError(f"a split needs exactly one budget, and {len(given)} are given; e.g. macs=0.5")
    ((metric, ratio),) = given.items()
    if not isinstance(ratio, int | float) or isinstance(ratio, bool) or not 0 < ratio < 1:
        raise BudgetError(f"{metric}={ratio!r} is no keep ratio below 1; give e.g. {metric}=0.5")
    return metric, float(ratio)


def _splits(budget: float, splits: Sequence[float] | None) -> tuple[float, ...]:
    if splits is None:
        return tuple(budget ** (step / (_N_SPLITS + 1)) for step in range(_N_SPLITS, 0, -1))
    if not isinstance(splits, Sequence) or isinstance(splits, str):
        raise OptionError(f"splits={splits!r}; give several keep ratios, e.g. (0.8, 0.65)")
    for ratio in splits:
        if not isinstance(ratio, int | float) or not budget < ratio < 1:
            raise OptionError(
                f"splits: {ratio!r} is not between the budget {budget:g} and 1; give what step 1 keeps"
            )
    return tuple(float(ratio) for ratio in splits)


def _gauge(session: Session, score_fn: ScoreFn | None, lower_is_better: bool) -> _Gauge:
    if score_fn is None:
        return _Gauge(
            drop=lambda result: math.inf if result.divergence is None else result.divergence,
            unit=session.opened.likelihood.unit,
            per_damage=1.0,
        )
    if not callable(score_fn):
        raise OptionError(f"score_fn is a {type(score_fn).__name__}; give a function fn(model) -> float")
    sign = -1.0 if lower_is_better else 1.0
    baseline = score_model(restored_copy(session.opened), score_fn, "the original")

    def drop(result: Result) -> float:
        with eval_mode(result.model):
            return sign * (baseline - score_model(result.model, score_fn, "a compressed model"))

    return _Gauge(drop=drop, unit=f"of the score (original {baseline:.6g})", per_damage=1 / _NATS_PER_SCORE)
