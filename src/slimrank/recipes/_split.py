# SPDX-License-Identifier: Apache-2.0
"""The best split of a budget between two methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from slimrank._errors import BudgetError, OptionError, StudyError
from slimrank._numbers import real_number
from slimrank._result import Result
from slimrank._study import Study, session_of, shown_live_of_study, study_with
from slimrank._verify import measured_from
from slimrank.forward import Batch
from slimrank.plan import MultipleOf, Plan, check_multiple_of, names_of
from slimrank.recipes._gauge import gauge_of
from slimrank.records import Method, Metric, Note
from slimrank.scoring import ScoreFn
from slimrank.select import Budget, check_below, check_budgets, check_methods
from slimrank.survey import DataSource, Session

Tune = Callable[[nn.Module], object]
# Splits that are tried by default. More of them may find a better one; each takes a study and two builds.
_N_SPLITS = 3


@shown_live_of_study
def search_split(
    study: Study,
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    bytes: float | str | None = None,
    methods: tuple[Method, Method] = ("spatial_svd", "weight_svd"),
    splits: Sequence[float] | None = None,
    score_fn: ScoreFn | None = None,
    lower_is_better: bool = False,
    tune: Tune | None = None,
    multiple_of: MultipleOf = "auto",
    serve: bool = False,
) -> Result:
    """The best way to share one budget between two methods, one after the other.

    For each split the first method brings the model to that keep ratio; then the compressed model is studied
    anew, and the second method brings it to the whole budget. Each method alone competes as well.

    Args:
        study: of the original model, with both methods measured.
        macs: keep ratio of the original's MACs, or so many at most, as in ``Study.plan``; exactly one budget.
        params: of the params, in the same way.
        bytes: of the bytes, in the same way.
        methods: the first and the second.
        splits: keep ratios after the first step, between the budget and 1; None for three of them, evenly
            spaced as factors.
        score_fn: ``score_fn(model) -> float``, higher is better; None keeps the split with the lowest
            held-out divergence from the original.
        lower_is_better: the score is a loss, an error rate or the like.
        tune: called with the model after each step, to train it further; it may work in place, or return the
            trained model.
        multiple_of: as in ``Study.plan``.
        serve: as in ``slimrank.study``; shows the study's ``run_dir``.

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
    budgets: dict[Metric, float | str | None] = {"macs": macs, "params": params, "bytes": bytes}
    metric, wanted = check_split(study, methods, multiple_of, budgets)
    budget = wanted.share(study.before.metric(metric))
    ratios = _splits(budget, splits)
    gauge = gauge_of(session, score_fn, lower_is_better)
    phases = session.phases()
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
        text = f"{label}: drop {loss:.4g} {gauge.unit}{gauge.agreement_of(result)}"
        notes.append(Note(where="split", text=text))
        phases.tell(str(notes[-1]))
        if best is None or loss < best[0]:
            best = (loss, label, result)
    if best is None:
        raise BudgetError(
            f"split: nothing can be built: {'; '.join(note.text for note in notes)}; raise the budget"
        )
    _, winner, result = best
    shown_notes = [
        replace(note, text=note.text + " (returned)") if note.text.startswith(f"{winner}:") else note
        for note in notes
    ]
    return result.with_notes(shown_notes, result.seconds)


def check_split(
    study: Study,
    methods: Sequence[Method],
    multiple_of: MultipleOf,
    budgets: Mapping[Metric, float | str | None],
) -> tuple[Metric, Budget]:
    """Refuses what cannot be split.

    Args:
        study: of the model, or of what may come out of one.
        methods: as in ``search_split``, and so are all others.
        multiple_of: see there.
        budgets: by metric.

    Returns:
        The budget.

    Raises:
        SlimrankError: as in ``search_split``.
    """
    asked = check_budgets(budgets, who="search_split", only_one=True)
    ((metric, wanted),) = asked.items()
    check_below(wanted, metric, study.before.metric(metric))
    if len(methods) != 2 or methods[0] == methods[1]:
        raise OptionError(f"methods={methods!r}; give two different ones, the first and the second")
    check_methods(methods, study.methods)
    check_multiple_of(multiple_of, names_of(study.structure))
    return metric, wanted


def _attempts(
    first: Study,
    session: Session,
    metric: Metric,
    budget: float,
    methods: tuple[Method, Method],
    ratios: Sequence[float],
    tune: Tune | None,
    multiple_of: MultipleOf,
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
    feed = session.feed

    # The batches are the caller's; the feed knows how they are read.
    def inputs(raw: object) -> object:
        batch: Batch = feed.read(raw)
        return dict(batch.kwargs) if batch.kwargs else batch.args

    return study_with(
        result.model,
        DataSource(batches=feed.batches, inputs=inputs, outputs=session.outputs),
        replace(session.options, methods=(method,)),
        run_dir=None,
        progress=session.progress,
        listeners=session.listeners,
        memory=session.memory,
        previous=result.plan,
    )


def _tuned(result: Result, tune: Tune | None) -> Result:
    """The result after the caller's training, which may work in place or return the model."""
    if tune is None:
        return result
    trained = tune(result.model)
    return result.with_model(trained if isinstance(trained, nn.Module) else result.model)


def _splits(budget: float, splits: Sequence[float] | None) -> tuple[float, ...]:
    """Keep ratios after the first step: those given, or some evenly spaced as factors."""
    if splits is None:
        return tuple(budget ** (step / (_N_SPLITS + 1)) for step in range(_N_SPLITS, 0, -1))
    if not isinstance(splits, Sequence) or isinstance(splits, str):
        raise OptionError(f"splits={splits!r}; give several keep ratios, e.g. (0.8, 0.65)")
    found = []
    for ratio in splits:
        number = real_number(ratio)
        if number is None or not budget < number < 1:
            raise OptionError(
                f"splits: {ratio!r} is not between the budget {budget:g} and 1; give what step 1 keeps"
            )
        found.append(number)
    return tuple(found)
