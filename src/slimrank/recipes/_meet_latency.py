# SPDX-License-Identifier: Apache-2.0
"""A latency budget that is kept by the clock: planned, built, measured, corrected, planned again."""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Literal

import numpy as np
from torch import nn

from slimrank._errors import BudgetError, LatencyError, OptionError
from slimrank._numbers import whole_number
from slimrank._result import Result
from slimrank._study import Study, session_of, shown_live_of_study
from slimrank.deploy import (
    Comparison,
    OpenFile,
    Precision,
    Reading,
    compare_in_turns,
    machine_name,
    write_open,
)
from slimrank.forward import Batch, outside_inference_mode
from slimrank.latencies import Latencies
from slimrank.latency import BACKENDS, PRECISIONS, package_versions, quantize_of
from slimrank.plan import (
    FixedSettings,
    LatencyTable,
    MultipleOf,
    Plan,
    Structure,
    are_same_steps,
    check_table,
    latency_ratio,
    latency_words,
    milliseconds_of,
    planned_latency,
)
from slimrank.records import Method, NetworkTimes, Note, PlannedLatency, ReachedLatency
from slimrank.scores import Scores
from slimrank.survey import Skip

# A result meets a budget where its measured ratio is at most so many times what was asked: less is within
# what machines repeat. Rounds go on until the first holds; where none reaches it, the second is still called
# met.
_MET, _STILL_MET = 1.02, 1.05
# A result below this share of what was asked lost more than it had to.
_FAR_BELOW = 0.95
# By how much tables are off, as standard deviations: all times alike, as a share of what was asked; what a
# plan saves, as a share of it; and each plan for itself, as a share of what was asked.
_OFFSET, _SLOPE, _EACH = 0.03, 0.25, 0.01
# What is saved is corrected by a factor between these, and no less is allowed by a table than this share of
# what was asked: beyond, a measurement is more likely wrong than a table.
_LEAST_SAVED, _MOST_SAVED, _LEAST_ALLOWED = 0.25, 2.0, 0.25
# Sums of times in another order differ by such a share.
_EXACT = 1e-9
# Seconds that the original and a result take turns: building takes longer on all but tiny networks. Where
# these do not tell whether a budget is met, they take turns once more, for longer.
_SECONDS, _LONGER = 3.0, 9.0
# From this spread of the ratio on, or where the original takes so much longer or shorter than in the table, a
# note says so.
_NOISY, _OTHER_MACHINE = 0.2, 1.3

Build = Callable[[LatencyTable], Result]


@shown_live_of_study
@outside_inference_mode
def meet_latency(
    study: Study,
    latency: float | str,
    *,
    latencies: LatencyTable,
    rounds: int = 3,
    macs: float | str | None = None,
    params: float | str | None = None,
    bytes: float | str | None = None,
    select: Literal["optimal", "greedy", "uniform"] = "optimal",
    multiple_of: MultipleOf = "auto",
    methods: Sequence[Method] | None = None,
    skip: Skip = (),
    scores: Scores | None = None,
    monotonic: bool = False,
    interpolate: bool = False,
    fixed: FixedSettings | None = None,
    serve: bool = False,
) -> Result:
    """Plans by measured times, builds, and measures the whole model in its runtime, until the budget holds.

    Original and result take turns in the runtime of the table. Where the result is slower than was asked, or
    faster by more than it had to be, the table is corrected by all that was measured so far, and another
    plan is made and built.

    Args:
        study: with its model.
        latency: keep ratio of the time of the original in float32, in (0, 1]; or a time, such as "4.5ms".
        latencies: a table of times of this network, measured on this machine
            (``slimrank.measure_latency``).
        rounds: how many plans are built at most.
        macs: as in ``Study.plan``, and so are all others.
        params: see there.
        bytes: see there.
        select: see there.
        multiple_of: see there.
        methods: see there.
        skip: see there.
        scores: see there.
        monotonic: see there.
        interpolate: see there.
        fixed: see there.
        serve: as in ``slimrank.study``; shows the study's ``run_dir``.

    Returns:
        Of the results that hold the budget the one with the lowest divergence, else the fastest, with a
        warning in its notes; ``Result.latency`` has what was asked, predicted and measured.

    Raises:
        BudgetError: a budget that no plan meets; the message names the floor.
        LatencyError: a table of another network or another machine, or of a batch that the file does not
            take.
        OptionError: no table, a runtime that cannot be run here, or rounds below 1.
        StudyError: the study was loaded without a model.
        SlimrankError: as in ``Study.plan``, ``Study.apply`` and ``slimrank.export``.
    """
    session_of(study)
    table = check_table(latencies, study.structure)
    check_same_machine(table)
    asked = latency_ratio(latency, table.times)

    def planned(table: LatencyTable) -> Plan:
        plan = study.plan(
            latency=asked,
            latencies=table,
            macs=macs,
            params=params,
            bytes=bytes,
            select=select,
            multiple_of=multiple_of,
            methods=methods,
            skip=skip,
            scores=scores,
            monotonic=monotonic,
            interpolate=interpolate,
            fixed=fixed,
        )
        # Corrected times are of the same ratio, which the words were read as.
        told = None if plan.latency is None else replace(plan.latency, words=latency_words(latency))
        return replace(plan, latency=told)

    # Refuses what makes no plan, before the original is opened in the runtime and timed.
    first = planned(table)

    def build(current: LatencyTable) -> Result:
        return study.apply(first if current is table else planned(current))

    return within_latency(study, build, table, asked, rounds=rounds, milliseconds=milliseconds_of(latency))


def within_latency(
    study: Study,
    build: Build,
    table: LatencyTable,
    asked: float,
    *,
    rounds: int,
    milliseconds: float | None,
) -> Result:
    """Builds and measures, with corrected times, until a latency holds.

    Args:
        study: with its model.
        build: makes a result with the times of a table.
        table: of the network, checked.
        asked: keep ratio.
        rounds: how many results are built at most.
        milliseconds: that were asked for, of which ``asked`` is the ratio by the table; None for a ratio.

    Returns:
        As ``meet_latency``.

    Raises:
        SlimrankError: as ``meet_latency``.
    """
    n_rounds = whole_number(rounds)
    if n_rounds is None or n_rounds < 1:
        raise OptionError(f"rounds={rounds!r}; give a whole number of at least 1, e.g. 3")
    phases = session_of(study).phases()
    tried: list[_Tried] = []
    seen: list[tuple[float, float]] = []
    notes: list[Note] = []
    with timed_beside(study, table, asked) as measure:
        current = table
        for number in range(1, n_rounds + 1):
            try:
                result = build(current)
            except BudgetError as error:
                if not tried:
                    raise
                # Only the corrected times are out of reach: what was built before is what there is.
                notes.append(Note(where="latency", text=f"round {number}: {error}"))
                break
            if any(are_same_steps(result.plan.steps, known.result.plan.steps) for known in tried):
                break
            planned = planned_latency(current, result.plan.steps[-1], asked)
            tried.append(_Tried(result=result, planned=planned, timed=measure(result.model)))
            notes.append(_round_note(number, tried[-1]))
            phases.tell(str(notes[-1]))
            if _is_done(tried[-1], asked):
                break
            told = planned_latency(table, result.plan.steps[-1], asked).predicted
            seen.append((told, tried[-1].compared.ratio))
            times = corrected(table.times, seen, asked)
            if times is None:
                break
            current = Corrected(table=table, times=times)
    result = _best(tried, asked, table, notes)
    return result if milliseconds is None else _held_to_time(result, milliseconds, table)


def measured_beside(study: Study, table: LatencyTable, result: Result, asked: float) -> Result:
    """A result with its latency, measured once.

    Args:
        study: with its model.
        table: that the plan was chosen by.
        result: to measure.
        asked: keep ratio that its plan was chosen for.

    Returns:
        The same with ``latency``.

    Raises:
        SlimrankError: as ``meet_latency``.
    """
    planned = planned_latency(table, result.plan.steps[-1], asked)
    with timed_beside(study, table, asked) as measure:
        tried = _Tried(result=result, planned=planned, timed=measure(result.model))
    return _best([tried], asked, table, [_round_note(1, tried)])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Corrected:
    """A table whose times were corrected by what was measured.

    Attributes:
        table: as it was measured.
        times: corrected.
    """

    table: LatencyTable
    times: NetworkTimes

    @property
    def backend(self) -> str:
        """The runtime."""
        return self.table.backend

    @property
    def threads(self) -> int:
        """That the runtime had."""
        return self.table.threads

    @property
    def batch(self) -> int:
        """Samples of the batch."""
        return self.table.batch

    @property
    def precision(self) -> str:
        """Of the files that were run."""
        return self.table.precision

    def check(self, structure: Structure) -> None:
        """Raises LatencyError where the table is of another network."""
        self.table.check(structure)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Timed:
    """What was measured of a model.

    Attributes:
        compared: times of its file beside those of the original.
        notes: of an int8 file: what it keeps of the outputs.
    """

    compared: Comparison
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tried:
    """A result that was measured."""

    result: Result
    planned: PlannedLatency
    timed: _Timed

    @property
    def compared(self) -> Comparison:
        """Its times beside those of the original."""
        return self.timed.compared


def corrected(times: NetworkTimes, seen: Sequence[tuple[float, float]], asked: float) -> NetworkTimes | None:
    """Times by which plans keep a budget where the most likely line through what was measured says so.

    Measured ratios are taken to be those of the table, an offset, and a share of what the plan saves; both
    are drawn to nothing, as far as tables are usually right. With a factor of what is saved alone, a plan
    that saves little would tell of a table that is far off; with an offset alone, one that saves much would
    be believed too little.

    Args:
        times: of the table, as they were measured.
        seen: keep ratio that they say, and the one that was measured, of each plan so far.
        asked: keep ratio of the budget.

    Returns:
        The times, all multiplied by one factor; None where no plan saved anything, so that nothing can be
        learnt of them.

    Source: a linear regression with a normal prior; Bishop 2006, "Pattern Recognition", 3.3.
    """
    before = times.before / times.reference
    told, measured = np.array(seen, dtype=np.float64).T
    saving = told[told < before * (1 - _EXACT)]
    if not len(saving):
        return None
    each = _EACH * asked
    matrix = np.vstack(
        [
            np.column_stack([np.ones_like(told), before - told]) / each,
            np.diag([1 / (_OFFSET * asked), 1 / _SLOPE]),
        ]
    )
    wanted = np.concatenate([(measured - told) / each, np.zeros(2)])
    (offset, slope), *_ = np.linalg.lstsq(matrix, wanted, rcond=None)
    saved = min(max(1 - slope, _LEAST_SAVED), _MOST_SAVED)
    # What a plan may take by the table: then ``before - saved * (before - allowed) + offset`` is asked.
    allowed = before - (before + offset - asked) / saved
    # The network as it stands saves nothing, whatever a line says of it.
    allowed = min(max(allowed, _LEAST_ALLOWED * asked), (float(saving.max()) + before) / 2)
    share = float(asked / allowed)
    return replace(times.scaled(share), fixed=share * times.fixed, before=share * times.before)


@contextmanager
def timed_beside(study: Study, table: LatencyTable, asked: float) -> Iterator[Callable[[nn.Module], _Timed]]:
    """Opens the original in the runtime of a table; what comes out times a model beside it.

    Args:
        study: with its model.
        table: of the network.
        asked: keep ratio: where noise hides whether it is met, a model is timed once more, for longer.

    Raises:
        OptionError: a runtime or a precision that models cannot be measured in.
        LatencyError: the file takes another batch only.
    """
    session = session_of(study)
    row = BACKENDS.get(table.backend)
    if row is None:
        raise OptionError(
            f"latencies: backend {table.backend!r} cannot be run here; measure a table with one of "
            f"{', '.join(BACKENDS)}"
        )
    if table.precision not in PRECISIONS:
        raise OptionError(
            f"latencies: precision {table.precision!r} cannot be run here; measure a table in one of "
            f"{', '.join(PRECISIONS)}"
        )

    def batches() -> Iterable[Batch]:
        return session.feed.stream(range(session.feed.n_samples))

    with tempfile.TemporaryDirectory(prefix="slimrank-latency-") as draft:
        folder = Path(draft)

        def opened(model: nn.Module, name: str, quantize: Precision | None) -> OpenFile:
            if quantize is None:
                file = row.open(model, batches(), folder / name, batch=table.batch, threads=table.threads)
            else:
                # The file that an export gives, calibrated and judged; a table's variants are neither.
                file = write_open(
                    model,
                    batches(),
                    folder / name,
                    format=row.format,
                    batch=table.batch,
                    threads=table.threads,
                    quantize=quantize,
                    reading=Reading(outputs=session.outputs, likelihood=session.likelihood),
                )
            if file.batch != table.batch:
                raise LatencyError(
                    f"latencies: the table is of batches of {table.batch}, and a file of this network takes "
                    f"{file.batch} only; measure a table with batch={file.batch}"
                )
            return file

        original = opened(session.original, "original", None)
        quantize = quantize_of(table.precision)
        names = (f"result{number}" for number in range(1_000_000))

        def measure(model: nn.Module) -> _Timed:
            file = opened(model, next(names), quantize)
            take_turns = partial(
                compare_in_turns, original.run, file.run, threads=row.clock_threads(table.threads)
            )
            compared = take_turns(seconds=_SECONDS)
            if _is_hidden(compared.ratio, compared.spread, asked):
                compared = min(compared, take_turns(seconds=_LONGER), key=lambda found: found.spread)
            return _Timed(compared=compared, notes=file.notes)

        yield measure


def check_same_machine(table: LatencyTable) -> None:
    """Refuses a table of another machine, which would be corrected by measurements of this one.

    Args:
        table: to plan by and to correct. A table that does not say its machine is taken as it is.

    Raises:
        LatencyError: it says another machine.
    """
    if isinstance(table, Latencies) and table.machine != _machine_here(table):
        raise LatencyError(
            f"{_other_machine(table)}: what is measured here tells nothing of times there; plan with "
            "study.plan(latency=, latencies=), build with study.apply, and measure its export there, or "
            "measure a table here with slimrank.measure_latency(study)"
        )


def not_measured_note(table: LatencyTable) -> Note | None:
    """Says that a result was not measured, where its table is of another machine; None where it is not."""
    if not isinstance(table, Latencies) or table.machine == _machine_here(table):
        return None
    text = (
        f"{_other_machine(table)}: the result was not measured, its latency is a prediction; export it, and "
        "measure it there"
    )
    return Note(where="latency", text=text, is_warning=True)


def _machine_here(table: Latencies) -> str:
    """This machine, as tables of that runtime call it."""
    row = BACKENDS.get(table.backend)
    return machine_name() if row is None else row.machine(machine_name())


def _other_machine(table: Latencies) -> str:
    here = _machine_here(table)
    return f"latencies: the table was measured on another machine ({table.machine}) than this ({here})"


def _other_versions(table: LatencyTable) -> list[str]:
    """In words, which packages are here in other versions than where the table was measured."""
    if not isinstance(table, Latencies):
        return []
    here = package_versions(tuple(table.versions))
    return [
        f"{name} {number} there, {here[name]} here"
        for name, number in sorted(table.versions.items())
        if here[name] != number
    ]


def _is_hidden(ratio: float, spread: float, asked: float) -> bool:
    """Whether noise hides if a budget is met: the limit is nearer than half of the spread of the turns."""
    limit = _STILL_MET * asked
    return ratio * (1 - spread / 2) <= limit < ratio * (1 + spread / 2)


def _round_note(number: int, tried: _Tried) -> Note:
    planned, compared = tried.planned, tried.compared
    text = (
        f"round {number}: asked {planned.asked:.4f}, predicted {planned.predicted:.4f}, measured "
        f"{compared.ratio:.4f} (spread {compared.spread:.1%}): {compared.before.milliseconds:.3f} ms to "
        f"{compared.after.milliseconds:.3f} ms"
    )
    return Note(where="latency", text=text)


def _is_done(tried: _Tried, asked: float) -> bool:
    """Whether a result holds the budget, and is not much faster than it had to be."""
    ratio = tried.compared.ratio
    is_untouched = not tried.result.plan.damage and tried.result.plan.damage is not None
    return ratio <= _MET * asked and (ratio >= _FAR_BELOW * asked or is_untouched)


def _best(tried: Sequence[_Tried], asked: float, table: LatencyTable, notes: Sequence[Note]) -> Result:
    """The result to return, with its latency and what there is to say of it."""

    def rank(entry: _Tried) -> tuple[float, float]:
        ratio, result = entry.compared.ratio, entry.result
        if ratio > _STILL_MET * asked:
            return (2.0, ratio)
        lost = result.divergence if result.divergence is not None else result.damage
        return (0.0 if ratio <= _MET * asked else 1.0, inf if lost is None else lost)

    best = min(tried, key=rank)
    compared, planned = best.compared, best.planned
    latency = ReachedLatency(
        asked=asked,
        predicted=planned.predicted,
        measured=compared.ratio,
        before_ms=compared.before.milliseconds,
        after_ms=compared.after.milliseconds,
        spread=compared.spread,
        rounds=len(tried),
    )
    notes = [*notes, *best.timed.notes, *_warnings(latency, table)]
    result = best.result.with_notes(notes, best.result.seconds)
    return replace(result, latency=latency)


def _held_to_time(result: Result, milliseconds: float, table: LatencyTable) -> Result:
    """A result with a warning where it takes longer than was asked, since the original does, too."""
    latency = result.latency
    if latency is None or latency.after_ms <= _STILL_MET * milliseconds:
        return result
    text = (
        f"above the budget: takes {latency.after_ms:.3g} ms, asked {milliseconds:.3g} ms; the original takes "
        f"{latency.before_ms:.3g} ms now and {table.times.reference / 1e6:.3g} ms in the table: measure the "
        "table anew, or ask for a ratio"
    )
    return result.with_notes([Note(where="latency", text=text, is_warning=True)], result.seconds)


def _warnings(latency: ReachedLatency, table: LatencyTable) -> list[Note]:
    found = []
    if _is_hidden(latency.measured, latency.spread, latency.asked):
        low, high = (latency.measured * (1 + side * latency.spread / 2) for side in (-1, 1))
        text = (
            f"too noisy to tell whether the budget is met: measured {latency.measured:.4f}, but "
            f"turns spread by {latency.spread:.0%}, so it may be from {low:.4f} to {high:.4f}, and "
            f"{latency.asked:.4f} is met up to {_STILL_MET * latency.asked:.4f}; measure again on a quiet "
            "machine, or with a larger batch="
        )
        found.append(Note(where="latency", text=text, is_warning=True))
    elif latency.measured > _STILL_MET * latency.asked:
        text = (
            f"above the budget: measured {latency.measured:.4f}, asked {latency.asked:.4f}; measure the "
            "table anew on a quiet machine, or ask for less and measure again"
        )
        found.append(Note(where="latency", text=text, is_warning=True))
    elif latency.measured > _MET * latency.asked:
        text = (
            f"met only just: measured {latency.measured:.4f}, {latency.measured / latency.asked - 1:.1%} "
            f"above the {latency.asked:.4f} that was asked for, and {_STILL_MET - 1:.0%} still counts as "
            "met; where that is too much, ask for less, or allow more rounds"
        )
        found.append(Note(where="latency", text=text, is_warning=True))
    other = _other_versions(table)
    if other:
        text = f"the table was measured with other packages ({'; '.join(other)}); measure it anew"
        found.append(Note(where="latency", text=text, is_warning=True))
    if latency.spread > _NOISY:
        text = f"the measured ratio spreads by {latency.spread:.0%}: the machine does other work"
        found.append(Note(where="latency", text=text))
    before_ms = table.times.reference / 1e6
    if not before_ms / _OTHER_MACHINE <= latency.before_ms <= before_ms * _OTHER_MACHINE:
        text = (
            f"the original takes {latency.before_ms:.3g} ms here, and {before_ms:.3g} ms in the table: was "
            "it measured on another machine, or on a busy one?"
        )
        found.append(Note(where="latency", text=text))
    return found
