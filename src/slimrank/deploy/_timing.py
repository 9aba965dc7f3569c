# SPDX-License-Identifier: Apache-2.0
"""Times of runs that take turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

# Rounds before any is timed: memory is asked for and kernels are chosen in the first ones.
_WARM_UP = 3
# Rounds of all runs: at least so many, and more while the seconds last.
_MIN_ROUNDS, _MAX_ROUNDS = 10, 200
_SECONDS = 1.0
# A single thread takes no more of the processor than of the clock, but for what clocks repeat.
_BUSY = 1.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """What one batch takes.

    Attributes:
        milliseconds: median, by the clock.
        spread: interquartile range over the median.
    """

    milliseconds: float
    spread: float


def time_in_turns(
    runs: Sequence[Callable[[], object]], *, clock: Callable[[], float] = time.perf_counter
) -> tuple[Times, ...]:
    """Times runs that take turns, so that other load on the machine meets all alike.

    Args:
        runs: each runs one batch.
        clock: in seconds.

    Returns:
        The times of each.
    """
    for _ in range(_WARM_UP):
        for run in runs:
            run()
    seconds: list[list[float]] = [[] for _ in runs]
    start = clock()
    for count in range(_MAX_ROUNDS):
        if count >= _MIN_ROUNDS and clock() - start > _SECONDS:
            break
        for number, run in enumerate(runs):
            began = clock()
            run()
            seconds[number].append(clock() - began)
    return tuple(_told(entries) for entries in seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Times of two runs that took turns.

    Attributes:
        before: of the first.
        after: of the second.
        ratio: median of after over before, turn by turn.
        spread: interquartile range of that ratio over its median.
    """

    before: Times
    after: Times
    ratio: float
    spread: float


def compare_in_turns(
    before: Callable[[], object],
    after: Callable[[], object],
    *,
    threads: int,
    seconds: float,
    clocks: tuple[Callable[[], float], Callable[[], float]] = (time.perf_counter, time.process_time),
) -> Comparison:
    """Compares two runs that take turns.

    Runs of one thread are timed in seconds of the processor, which other work on the machine does not
    stretch; those of several, and of runtimes whose second thread waits busily, by the clock.

    Args:
        before: runs one batch.
        after: likewise.
        threads: that both have.
        seconds: that it takes, or as long as ten turns do.
        clocks: of the wall and of the processor, in seconds.

    Returns:
        Times and their ratio.
    """
    wall, processor = clocks
    for _ in range(_WARM_UP):
        before()
        after()
    turns: list[tuple[tuple[float, float], tuple[float, float]]] = []
    start = wall()
    while len(turns) < _MIN_ROUNDS or (wall() - start < seconds and len(turns) < _MAX_ROUNDS):
        readings = [(wall(), processor())]
        for run in (before, after):
            run()
            readings.append((wall(), processor()))
        first, second = ((later[0] - sooner[0], later[1] - sooner[1]) for sooner, later in pairwise(readings))
        turns.append((first, second))
    middles = [median(first[clock] for first, _ in turns) for clock in (0, 1)]
    clock = 1 if threads == 1 and 0 < middles[1] <= _BUSY * middles[0] else 0
    ratios = [second[clock] / first[clock] for first, second in turns]
    told = _told(ratios)
    return Comparison(
        before=_told([first[clock] for first, _ in turns]),
        after=_told([second[clock] for _, second in turns]),
        ratio=told.milliseconds / 1000,
        spread=told.spread,
    )


def _told(seconds: Sequence[float]) -> Times:
    middle = median(seconds)
    first, _, third = quantiles(seconds, n=4)
    return Times(milliseconds=1000 * middle, spread=(third - first) / middle if middle else 0.0)
