# SPDX-License-Identifier: Apache-2.0
"""The smallest model within a drop."""

import math
from collections.abc import Callable, Sequence
from functools import partial

from slimrank._errors import BudgetError, OptionError, UnknownNameError
from slimrank._names import nearest
from slimrank._numbers import real_number
from slimrank._result import Result
from slimrank._study import (
    Study,
    planned_without_new_bias,
    session_of,
    shown_live_of_study,
    skipped_globs,
)
from slimrank.plan import (
    NOTHING_FIXED,
    FixedSettings,
    LatencyTable,
    MultipleOf,
    Plan,
    check_table,
    fixed_of,
    without_auto,
)
from slimrank.recipes._builds import Builds
from slimrank.recipes._gauge import gauge_of
from slimrank.recipes._meet_latency import measured_beside, not_measured_note
from slimrank.records import LATENCY, METRICS, Budgeted, Method, Note, ratio_of
from slimrank.scoring import ScoreFn
from slimrank.select import Select, reachable_floor
from slimrank.survey import Skip

# A ratio to try stays this share of the gap away from both bounds: nearer, a wrong prediction would hardly
# move the bound that it meets.
_NEAR_END = 0.1
# Halvings that find the ratio whose predicted damage is just allowed, to 1 / 4096 of the gap. Each makes a
# plan.
_HALVINGS = 12
# What a try halves the gap between the bounds by, about: five of them find most models.
_HALVINGS_OF_A_TRY = 1.4


@shown_live_of_study
def smallest(
    study: Study,
    *,
    max_drop: float = 0.01,
    score_fn: ScoreFn | None = None,
    lower_is_better: bool = False,
    metric: Budgeted = "macs",
    latencies: LatencyTable | None = None,
    tolerance: float = 0.01,
    select: Select = "optimal",
    multiple_of: MultipleOf = "auto",
    methods: Sequence[Method] | None = None,
    skip: Skip = (),
    uniform_widths: bool = False,
    new_bias: bool = True,
    fixed: FixedSettings | None = None,
    serve: bool = False,
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
        metric: "macs", "params" or "bytes", to be made small; or "latency", for the fastest model by the
            times of ``latencies``, which is measured at the end (``Result.latency``); not with a table of
            another machine, as a warning in the notes says. With a table of int8 files the drop is that of
            the float model, and what int8 adds is in the notes.
        latencies: a table of times of this network (``slimrank.measure_latency``), for "latency".
        tolerance: the search ends when a keep ratio that holds is this close above one that does not.
        select: as in ``Study.plan``.
        multiple_of: as in ``Study.plan``; where no plan with the multiples of "auto" stays within the drop,
            any ranks and widths are tried.
        methods: as in ``Study.plan``.
        skip: as in ``Study.plan``.
        uniform_widths: as in ``Study.plan``.
        new_bias: as in ``Study.plan``.
        fixed: as in ``Study.plan``.
        serve: as in ``slimrank.study``; shows the study's ``run_dir``.

    Returns:
        The result; its notes list what was tried.

    Raises:
        BudgetError: no budget that was tried stays within the drop.
        UnknownNameError: no such metric.
        OptionError: a drop or tolerance that makes no sense, "latency" without ``latencies``, or they without
            it; or as in ``Study.plan``.
        LatencyError: a table of another network.
        ScoreError: ``score_fn`` fails or returns no finite number.
        StudyError: the study was loaded without a model.
    """
    session = session_of(study)
    max_drop, tolerance = checked_drop(max_drop, tolerance)
    table = _table_for(metric, latencies, study)
    times = None if table is None else table.times
    # Of times, the network as it stands may be well below the original in float32.
    whole = 1.0 if times is None else min(1.0, times.before / times.reference)
    held = NOTHING_FIXED if fixed is None else fixed_of(study, fixed)

    def planned_with(multiple_of: MultipleOf, ratio: float) -> Plan:
        budget: dict[str, float] = {metric: ratio}
        return study.plan(
            select=select,
            multiple_of=multiple_of,
            methods=methods,
            skip=skip,
            fixed=held,
            latencies=table,
            uniform_widths=uniform_widths,
            new_bias=new_bias,
            **budget,  # type: ignore[arg-type]
        )

    # Refuses what makes no plan, before the score is asked for.
    planned_with(multiple_of, 1.0)
    gauge = gauge_of(session, score_fn, lower_is_better)
    phases = session.phases()
    builds = Builds(study, "smallest")

    tried: list[Note] = []

    def smallest_with(multiple_of: MultipleOf) -> Result | None:
        """The smallest model with these multiples; None where none that was tried holds."""
        planned = partial(planned_with, multiple_of)
        floor = reachable_floor(
            study if new_bias else planned_without_new_bias(study),
            metric,
            multiple_of=multiple_of,
            methods=methods,
            skip=skipped_globs(study, skip),
            times=times,
            uniform_widths=uniform_widths,
            fixed=held,
        )
        search = _Bisection(low=floor, high=1.0, max_drop=max_drop, per_damage=gauge.per_damage)
        best: Result | None = None
        is_first = True
        while is_first or search.high - search.low > tolerance * whole:
            is_first = False
            asked = search.next_ratio(lambda ratio: planned(ratio).damage or 0.0)
            plan = planned(asked)
            reached = _reached(plan, metric)
            if search.knows(reached):
                # Ranks are whole: no plan lies between the bounds here, only one that was built already.
                search.skip(asked, reached)
                continue
            builds.begin(plan, search.tries_left(tolerance * whole))
            result = builds.study.apply(plan)
            drop = gauge.drop(result)
            is_within = drop <= max_drop
            note = Note(
                where="smallest",
                text=f"{metric} {_shown(plan, metric):.4f}: drop {drop:.4g} {gauge.unit}, "
                f"{'within' if is_within else 'above'} {max_drop:g}{gauge.agreement_of(result)}",
            )
            tried.append(note)
            phases.tell(str(note))
            search.learn(asked, reached, plan.damage or 0.0, drop)
            if is_within:
                best = result
        return best

    best = smallest_with(multiple_of)
    finest = without_auto(multiple_of)
    # With times "auto" means the step of the table, and so does every lower number.
    if best is None and table is None and finest != multiple_of:
        # A small network has few multiples, and the first of them may lose more than is allowed.
        best = smallest_with(finest)
    if best is None:
        raise BudgetError(
            f"smallest: no model stays within a drop of {max_drop:g} {gauge.unit}; tried "
            f"{'; '.join(note.text for note in tried)}; raise max_drop, or give the study more samples"
        )
    best = best.with_notes(tried, best.seconds)
    if table is None:
        return best
    warning = not_measured_note(table)
    if warning is not None:
        return best.with_notes([warning], best.seconds)
    asked = 1.0 if best.plan.latency is None else best.plan.latency.asked
    return measured_beside(study, table, best, asked)


def checked_drop(max_drop: object, tolerance: object = 0.01) -> tuple[float, float]:
    """Both as floats.

    Raises:
        OptionError: a drop or tolerance that makes no sense.
    """
    drop, share = real_number(max_drop), real_number(tolerance)
    if drop is None or not 0 <= drop < math.inf:
        raise OptionError(f"max_drop={max_drop!r}; give a number of at least 0, such as 0.01")
    if share is None or not 0 < share < 1:
        raise OptionError(f"tolerance={tolerance!r}; give a share of the cost between 0 and 1, such as 0.01")
    return drop, share


def _table_for(metric: Budgeted, latencies: LatencyTable | None, study: Study) -> LatencyTable | None:
    """The table of times, where a latency is to be made small; else None."""
    if metric not in (*METRICS, LATENCY):
        close = nearest(str(metric), (*METRICS, LATENCY))
        raise UnknownNameError(f"smallest: metric {metric!r} does not exist; {close}")
    if metric == LATENCY and latencies is None:
        raise OptionError(
            "metric='latency' needs measured times; pass latencies=slimrank.measure_latency(study)"
        )
    if metric != LATENCY and latencies is not None:
        raise OptionError(
            f"latencies= is given with metric={metric!r}; pass metric='latency', or leave it out"
        )
    return None if latencies is None else check_table(latencies, study.structure)


def _reached(plan: Plan, metric: Budgeted) -> float:
    """Keep ratio of the model that the study is of."""
    if metric != LATENCY:
        return ratio_of(plan.start, plan.after, metric)
    return 1.0 if plan.latency is None else plan.latency.predicted


def _shown(plan: Plan, metric: Budgeted) -> float:
    """Keep ratio of the original, for people."""
    return _reached(plan, metric) if metric == LATENCY else plan.keep_ratio(metric)


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
        self._last_gap = 2 * (high - low)

    def next_ratio(self, damage_at: Callable[[float], float]) -> float:
        """Where to try: where the predicted damage says that the drop is just allowed, or in the middle.

        The middle is taken where predictions have told nothing: nothing was lost, or the bounds have not come
        closer by half. So the bounds halve at every second try at the latest.
        """
        gap = self.high - self.low
        has_halved, self._last_gap = gap <= self._last_gap / 2, gap
        if self._per_damage is None or not has_halved:
            return (self.low + self.high) / 2
        wanted = self._max_drop / self._per_damage
        low, high = self.low, self.high
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if damage_at(middle) <= wanted else (middle, high)
        margin = _NEAR_END * gap
        # Before the first measurement nothing is known of the floor, so it may be tried itself.
        lowest = self.low + margin if self._known else self.low
        return min(max(high, lowest), self.high - margin)

    def tries_left(self, gap: float) -> int:
        """About how many models will be built until the bounds are so close."""
        halvings = math.log2(max((self.high - self.low) / gap, 2.0))
        return math.ceil(halvings / _HALVINGS_OF_A_TRY)

    def knows(self, reached: float) -> bool:
        """Whether a plan of this keep ratio was measured."""
        return reached in self._known

    def skip(self, asked: float, reached: float) -> None:
        """Moves the bounds where a ratio gives a plan that was measured: no plan lies between the two."""
        if reached >= self.high:
            self.low = max(self.low, min(asked, self.high))
        elif reached <= self.low:
            self.low = max(self.low, asked)
        else:
            self.low = self.high

    def learn(self, asked: float, reached: float, damage: float, drop: float) -> None:
        """Moves the bounds by a measurement.

        Args:
            asked: keep ratio that was asked for.
            reached: keep ratio of the plan.
            damage: predicted.
            drop: measured.
        """
        self._known.add(reached)
        if drop <= self._max_drop:
            self.high = min(self.high, reached)
        else:
            # No plan lies between what was reached and what was asked for.
            self.low = max(self.low, min(asked, self.high))
        self._per_damage = drop / damage if damage > 0 and drop > 0 else None
