# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar per phase on stderr or lines in a log, the seconds of each, and events."""

import contextlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from slimrank._errors import FileError
from slimrank._version import __version__

# What happened, as JSON can hold it; docs/howto/progress.md has the keys.
Event = dict[str, str | int | float | None]
Listener = Callable[[Event], None]
# In a run's directory.
EVENTS_FILE = "events.jsonl"
_LOG = logging.getLogger("slimrank.progress")
# Seconds between two events of one phase, and between two lines of a log.
_BETWEEN_EVENTS, _BETWEEN_LINES = 0.25, 60.0
# Seconds of a phase below which its end is no line of a log.
_BRIEF = 1.0
# Share of the expected work from which on its pace, and not the estimate alone, tells what is left.
_KNOWN_PACE = 0.05


class Advance(Protocol):
    """Tells a running phase how many more steps are done."""

    def __call__(self, steps: int, text: str = "") -> None:
        """Adds to the steps that are done, and shows a text beside the bar."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a phase is expected to take in all, however often it begins.

    Attributes:
        seconds: its time.
        steps: that it takes.
    """

    seconds: float
    steps: int


class Overall:
    """How far a whole call is: its phases weighted by the time that they are expected to take.

    Args:
        name: of the call.
        expected: by phase.
    """

    def __init__(self, name: str, expected: Mapping[str, Expected]) -> None:
        self._name = name
        self._steps: dict[str, int] = {}
        self._start = time.perf_counter()
        self._most = 0.0
        self.expect(expected)

    def expect(self, expected: Mapping[str, Expected]) -> None:
        """Takes other expectations, as more becomes known; what is done stays done."""
        self._expected = dict(expected)
        self._steps = {name: self._steps.get(name, 0) for name in expected}
        self._whole = sum(phase.seconds for phase in expected.values())

    @property
    def steps(self) -> Mapping[str, int]:
        """That are done of each phase."""
        return self._steps

    def add(self, phase: str, steps: int) -> None:
        """Tells that steps of a phase are done; those of a phase that was not expected count nothing."""
        if phase in self._steps:
            self._steps[phase] += steps

    @property
    def share(self) -> float:
        """Of the expected work that is done, 0 to 1; it never falls, also where more work becomes known."""
        self._most = max(self._most, self._done / self._whole if self._whole > 0 else 0.0)
        return self._most

    @property
    def seconds_left(self) -> float:
        """At the pace so far; in the beginning as expected."""
        taken = time.perf_counter() - self._start
        pace = taken / self._done if self._done > _KNOWN_PACE * self._whole else 1.0
        return max(0.0, (self._whole - self._done) * pace)

    @property
    def _done(self) -> float:
        return sum(
            phase.seconds * min(1.0, self._steps[name] / max(1, phase.steps))
            for name, phase in self._expected.items()
        )

    def __str__(self) -> str:
        if self.share >= 1:
            return f"{self._name} 100%"
        return f"{self._name} {self.share:.0%}, about {seconds_text(self.seconds_left)} left"


def seconds_text(seconds: float) -> str:
    """A time that is known roughly, in words."""
    if seconds < 100:
        return f"{max(1, round(seconds, -1 if seconds > 30 else 0)):.0f} s"
    return f"{seconds / 60:.0f} min"


class Phases:
    """Phases of one run.

    Attributes:
        is_shown: whether bars and lines are shown.
        seconds: wall time by phase.
        name: of the phase that began last; "" before the first one.
        overall: how far the whole call is; None where that cannot be estimated (yet).

    Args:
        shown: draw bars where stderr is a terminal, else log a line per phase and minute; False only takes
            the time.
        listeners: each is called with every event.
    """

    def __init__(self, *, shown: bool, listeners: Sequence[Listener] = ()) -> None:
        self.is_shown = shown
        self.seconds: dict[str, float] = {}
        self.name = ""
        self.overall: Overall | None = None
        self._listeners = list(listeners)

    def add_listener(self, listener: Listener) -> None:
        """Calls one more function with every event from now on."""
        self._listeners.append(listener)

    def emit(self, event: str, **values: str | float | None) -> None:
        """Tells all listeners what happened.

        Args:
            event: what kind of thing.
            values: more keys; what is not finite is told as None, since JSON has no word for it.
        """
        finite = {key: None if _is_odd(value) else value for key, value in values.items()}
        told: Event = {"event": event, "time": round(time.time(), 3), **finite}
        for listener in self._listeners:
            listener(dict(told))

    @contextlib.contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """One phase.

        Args:
            name: shown beside the bar; seconds of equal names add up.
            total: steps in all.

        Yields:
            A function to tell how many more steps are done, and what stands beside the bar.
        """
        self.name = name
        running = _Running(self, name, total)
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[overall]}", markup=False),
            TextColumn("{task.fields[text]}", markup=False),
        )
        console = Console(stderr=True)
        # A bar that cannot be redrawn would leave a blank line in the log for every phase.
        has_bar = self.is_shown and console.is_terminal
        running.is_logged = self.is_shown and not has_bar
        progress = Progress(*columns, console=console, disable=not has_bar, transient=True)
        running.begin()
        outcome = "stopped"
        try:
            with progress:
                task = progress.add_task(name, total=total, text="", overall=self._overall_text)

                def advance(steps: int, text: str = "") -> None:
                    if self.overall is not None:
                        self.overall.add(name, steps)
                    progress.update(task, advance=steps, text=text, overall=self._overall_text)
                    running.advance(steps, text)

                yield advance
            outcome = "end"
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + running.seconds
            running.finish(outcome)

    @property
    def _overall_text(self) -> str:
        return "" if self.overall is None else f"({self.overall}, estimated)"

    def tell(self, text: str) -> None:
        """One line on stderr, where progress is shown."""
        self.emit("message", text=text)
        if self.is_shown:
            console = Console(stderr=True)
            # Only a terminal has a width at which lines can be broken.
            console.print(text, highlight=False, markup=False, soft_wrap=not console.is_terminal)

    @contextlib.contextmanager
    def part(self, name: str, of: str) -> Iterator[None]:
        """A part of a running phase whose seconds are counted apart.

        Args:
            name: of the part; seconds of equal names add up.
            of: the phase; the part's seconds are not in it.
        """
        start = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - start
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            # The phase adds all of its seconds when it ends, so the sum is right then.
            self.seconds[of] = self.seconds.get(of, 0.0) - taken


def _is_odd(value: str | float | None) -> bool:
    """Whether it is a number that is not finite."""
    return isinstance(value, float) and not math.isfinite(value)


class _Running:
    """One phase while it runs: how far it is, told in events and lines that are not too many."""

    def __init__(self, phases: Phases, name: str, total: int) -> None:
        self._phases, self._name, self._total = phases, name, total
        self._start = time.perf_counter()
        self._done = 0
        self._last_event = self._last_line = self._start
        self.is_logged = False

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._start

    def begin(self) -> None:
        """Tells that it begins."""
        self._phases.emit("phase", phase=self._name, total=self._total)

    def advance(self, steps: int, text: str) -> None:
        """Adds steps, and tells now and then."""
        self._done += steps
        now = time.perf_counter()
        if now - self._last_event >= _BETWEEN_EVENTS or self._done == self._total:
            self._last_event = now
            overall = self._phases.overall
            whole: dict[str, float] = {}
            if overall is not None:
                whole = {"overall": round(overall.share, 4), "seconds_left": round(overall.seconds_left, 1)}
            self._phases.emit(
                "step",
                phase=self._name,
                done=self._done,
                total=self._total,
                seconds=round(self.seconds, 3),
                text=text,
                **whole,
            )
        if self.is_logged and now - self._last_line >= _BETWEEN_LINES:
            self._last_line = now
            left = self.seconds * (self._total - self._done) / self._done if self._done else None
            rest = "" if left is None else f", about {left:.0f} s left"
            overall = self._phases.overall
            beside = f" ({text})" if text else ""
            beside += "" if overall is None else f"; {overall} (estimated)"
            _LOG.info("%s: %d of %d%s%s", self._name, self._done, self._total, rest, beside)

    def finish(self, outcome: str) -> None:
        """Tells that it ended, or was stopped."""
        self._phases.emit(
            outcome, phase=self._name, done=self._done, total=self._total, seconds=round(self.seconds, 3)
        )
        if self.is_logged and (self.seconds >= _BRIEF or outcome != "end"):
            word = "done" if outcome == "end" else "stopped"
            _LOG.info("%s: %s after %.1f s", self._name, word, self.seconds)


class EventFile:
    """Writes events to the end of a file, one line of JSON each, and first which process writes them.

    Args:
        path: of the file; its folder is made when the first event comes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_begun = False

    def __call__(self, event: Event) -> None:
        """Writes an event; a line is written in one piece, so that readers never see a half of it.

        Raises:
            FileError: it cannot be written.
        """
        lines = [event]
        if not self._has_begun:
            run: Event = {"event": "run", "time": event["time"], "slimrank": __version__}
            lines.insert(0, {**run, "machine": platform.node(), "pid": os.getpid()})
        try:
            self._path.parent.mkdir(exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))
        except OSError as error:
            raise FileError(
                f"{self._path} cannot be written ({error.strerror}); give a run_dir with room and rights"
            ) from error
        self._has_begun = True
