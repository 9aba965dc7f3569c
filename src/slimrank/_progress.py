# SPDX-License-Identifier: Apache-2.0
"""Progress of long work: a bar per phase on stderr, and the seconds each took."""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Advance(Protocol):
    """Tells a running phase how many more steps are done."""

    def __call__(self, steps: int, text: str = "") -> None:
        """Adds to the steps that are done, and shows a text beside the bar."""
        ...


class Phases:
    """Phases of one run.

    Attributes:
        is_shown: whether bars and lines are shown.
        seconds: wall time by phase.
        name: of the phase that began last; "" before the first one.

    Args:
        shown: draw bars where stderr is a terminal; False only takes the time.
    """

    def __init__(self, *, shown: bool) -> None:
        self.is_shown = shown
        self.seconds: dict[str, float] = {}
        self.name = ""

    @contextlib.contextmanager
    def phase(self, name: str, total: int) -> Iterator[Advance]:
        """One phase.

        Args:
            name: shown beside the bar; seconds of equal names add up.
            total: steps in all.

        Yields:
            A function to tell how many more steps are done, and what stands beside the bar.
        """
        start = time.perf_counter()
        self.name = name
        columns = (
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}", markup=False),
        )
        console = Console(stderr=True)
        # A bar that cannot be redrawn would leave a blank line in the log for every phase.
        disable = not (self.is_shown and console.is_terminal)
        progress = Progress(*columns, console=console, disable=disable, transient=True)
        try:
            with progress:
                task = progress.add_task(name, total=total, text="")

                def advance(steps: int, text: str = "") -> None:
                    progress.update(task, advance=steps, text=text)

                yield advance
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def tell(self, text: str) -> None:
        """One line on stderr, where progress is shown."""
        if self.is_shown:
            Console(stderr=True).print(text, highlight=False, markup=False)

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
