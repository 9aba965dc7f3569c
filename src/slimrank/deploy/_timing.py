# SPDX-License-Identifier: Apache-2.0
"""Times of runs that take turns."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles

# Rounds before any is timed: memory is asked for and kernels are chosen in the first ones.
_WARM_UP = 3
# Rounds of all runs: at least so many, and more while the seconds last.
_MIN_ROUNDS, _MAX_ROUNDS = 10, 200
_SECONDS = 1.0


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


def _told(seconds: Sequence[float]) -> Times:
    middle = median(seconds)
    first, _, third = quantiles(seconds, n=4)
    return Times(milliseconds=1000 * middle, spread=(third - first) / middle if middle else 0.0)
