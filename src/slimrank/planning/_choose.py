# SPDX-License-Identifier: Apache-2.0
"""The plan that a caller asks for, chosen from what a study measured."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from slimrank._errors import OptionError
from slimrank.measured import StudyRecord
from slimrank.plan import (
    NOTHING_FIXED,
    FixedSettings,
    LatencyTable,
    MultipleOf,
    Plan,
    PlanSource,
    Rounding,
    Structure,
    check_table,
    chosen_on,
    fixed_of,
    latency_ratio,
    latency_words,
    planned_latency,
)
from slimrank.records import Method, Metric, PeakPoint, replaces_groups
from slimrank.scores import Scores, scored_source
from slimrank.select import (
    Budget,
    check_budgets,
    reachable_floor,
    select_plan_and_rounding,
    without_new_bias,
)

# The plan of least damage within budgets and within limits at places of the forward pass, and what its ranks
# are multiples of.
Selected = Callable[[Mapping[PeakPoint, Budget]], tuple[Plan, Rounding]]
# Chooses, by the first function, a plan whose peak of activations is within a budget; the second one tells
# the least that a place can be brought to.
WithinPeak = Callable[[Selected, Callable[[PeakPoint], float]], tuple[Plan, Rounding]]

# How often a plan is chosen whose predicted time is above the budget, before it is taken as it is: each takes
# off what the one before was above.
_MAX_LATENCY_TRIES = 4
# A share of a time below which a difference is rounding: coefficients are rounded before a plan is chosen.
_LATENCY_ROUNDING = 1e-9


def choose_plan(  # noqa: D417 - the others are those of Study.plan
    record: StudyRecord,
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    bytes: float | str | None = None,
    latency: float | str | None = None,
    select: Literal["optimal", "greedy", "uniform"] = "optimal",
    multiple_of: MultipleOf = "auto",
    methods: Sequence[Method] | None = None,
    skip: Sequence[str] = (),
    scores: Scores | None = None,
    latencies: LatencyTable | None = None,
    monotonic: bool = False,
    interpolate: bool = False,
    relative_to: Literal["model", "original"] = "model",
    fixed: FixedSettings | None = None,
    uniform_widths: bool = False,
    new_bias: bool = True,
    within_peak: WithinPeak | None = None,
) -> Plan:
    """Chooses a rank for every layer under a budget; ``Study.plan`` says what each option means.

    Args:
        record: of the study.
        skip: globs.
        within_peak: keeps to a budget of activations, which takes the model; None for no such budget.

    Returns:
        The plan.

    Raises:
        SlimrankError: as in ``Study.plan``.
    """
    ratios: dict[Metric, float | str | None] = {"macs": macs, "params": params, "bytes": bytes}
    asked, table = _asked_latency(latency, latencies, relative_to, record.structure)
    has_other = asked is not None or within_peak is not None
    if not has_other or any(ratio is not None for ratio in ratios.values()):
        check_budgets(ratios)
    budgets = {metric: ratio for metric, ratio in ratios.items() if ratio is not None}
    if relative_to not in ("model", "original"):
        raise OptionError(f"relative_to={relative_to!r}; give 'model' or 'original'")
    whole = record.previous.before if record.previous and relative_to == "original" else None
    _check_scores(scores, are_treated=monotonic or interpolate)
    held = NOTHING_FIXED if fixed is None else fixed_of(record, fixed)
    measured = record if new_bias else without_new_biases(record)

    def source(rounding: Rounding, *, walk_down: bool = select == "greedy") -> PlanSource:
        """What the plan is chosen from."""
        if scores is None:
            return measured
        return scored_source(
            measured,
            scores,
            fingerprint=record.fingerprint,
            monotonic=monotonic,
            interpolate=interpolate,
            walk_down=walk_down,
            rounding=rounding,
        )

    allowed = comparable_methods(record) if methods is None and scores is None else methods

    def selected(latency: float | None, points: Mapping[PeakPoint, Budget]) -> tuple[Plan, Rounding]:
        return select_plan_and_rounding(
            source,
            record.structure,
            budgets=budgets,
            select=select,
            multiple_of=multiple_of,
            methods=allowed,
            skip=skip,
            of=whole,
            latency=latency,
            times=None if table is None else table.times,
            points=points,
            fixed=held,
            uniform_widths=uniform_widths,
        )

    def within_time(points: Mapping[PeakPoint, Budget]) -> tuple[Plan, Rounding]:
        if asked is None or table is None:
            return selected(None, points)
        words = latency_words(latency)
        return _within_latency(lambda ratio: selected(ratio, points), table, asked, words)

    def lowest_at(point: PeakPoint) -> float:
        return reachable_floor(
            measured,
            point,
            multiple_of=multiple_of,
            methods=allowed,
            skip=skip,
            fixed=held,
            uniform_widths=uniform_widths,
        )

    chosen, rounding = within_time({}) if within_peak is None else within_peak(within_time, lowest_at)
    chosen = replace(chosen, fixed=held.by_kind)
    if scores is None:
        return chosen
    # The losses as they stand in the table, whatever rule chose; the damage beside them is the study's.
    losses = chosen_on(source(rounding, walk_down=False), chosen).damage
    return replace(chosen_on(measured, chosen), score_loss=losses)


def comparable_methods(record: StudyRecord) -> tuple[Method, ...] | None:
    """Methods whose damages are in one unit; None for all."""
    options = record.options
    is_data_free = not record.has_bias if options is None else options.data_free
    if not is_data_free or not record.curves:
        return None
    return tuple(method for method in record.methods if not replaces_groups(method))


def without_new_biases(record: StudyRecord) -> StudyRecord:
    """The same study, whose plans count no bias where a layer has none.

    Raises:
        OptionError: an earlier step made new biases.
    """
    if not record.has_bias:
        return record
    if record.previous is not None:
        raise OptionError(
            "new_bias=False: the model was compressed before by a plan that counts new biases, and a "
            "plan has one rule for all its steps; leave it out"
        )
    curves = without_new_bias(record.curves, record.structure.layers)
    return replace(record, has_bias=False, curves=tuple(curves))


def _asked_latency(
    latency: float | str | None, latencies: LatencyTable | None, relative_to: str, structure: Structure
) -> tuple[float | None, LatencyTable | None]:
    """The keep ratio of the time that is asked for, and the table; None where there is none."""
    if latency is None and latencies is None:
        return None, None
    if latencies is None:
        raise OptionError(
            f"latency={latency!r} needs measured times; pass latencies=slimrank.measure_latency(study), "
            "or a table that was saved: slimrank.Latencies.load(path)"
        )
    table = check_table(latencies, structure)
    if latency is None:
        raise OptionError("latencies= is given without a latency; add one, e.g. latency=0.6")
    if relative_to == "original":
        raise OptionError(
            "relative_to='original' is for counted costs: the table has times of the model that was "
            "studied; leave it out beside latency="
        )
    return latency_ratio(latency, table.times), table


def _within_latency(
    selected: Callable[[float | None], tuple[Plan, Rounding]], table: LatencyTable, asked: float, words: str
) -> tuple[Plan, Rounding]:
    """The plan whose predicted time is within a keep ratio, and what its ranks are multiples of.

    Where three groups and more make the width of a layer, a whole one between two steps counts a little less
    while a plan is chosen than it takes: what that comes to is taken off the budget, and the plan is chosen
    again.
    """
    budget = asked
    for tries_left in reversed(range(_MAX_LATENCY_TRIES)):
        plan, rounding = selected(budget)
        latency = planned_latency(table, plan.steps[-1], asked, words)
        if latency.predicted <= asked * (1 + _LATENCY_ROUNDING) or not tries_left:
            break
        budget *= asked / latency.predicted
    return replace(plan, latency=latency), rounding


def _check_scores(scores: object, *, are_treated: bool) -> None:
    """Refuses what is no table of scores, and its options where there is none.

    Raises:
        OptionError: either.
    """
    if scores is None:
        if are_treated:
            raise OptionError(
                "monotonic= and interpolate= treat eval scores; pass scores= from slimrank.measure_scores"
            )
    elif not isinstance(scores, Scores):
        raise OptionError(
            f"scores is a {type(scores).__name__}; give a table, e.g. slimrank.Scores.load(path)"
        )
