# SPDX-License-Identifier: Apache-2.0
"""Times of runs that take turns."""

import time
from collections.abc import Callable, Sequence

from slimrank.deploy._measure_script import MAX_TURNS, MIN_TURNS, WARM_UP_TURNS, Times, told_times

# Seconds that runs take turns, or as long as the fewest turns do.
_SECONDS = 1.0


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
    for _ in range(WARM_UP_TURNS):
        for run in runs:
            run()
    seconds: list[list[float]] = [[] for _ in runs]
    start = clock()
    for count in range(MAX_TURNS):
        if count >= MIN_TURNS and clock() - start > _SECONDS:
            break
        for number, run in enumerate(runs):
            began = clock()
            run()
            seconds[number].append(clock() - began)
    return tuple(told_times(entries) for entries in seconds)
