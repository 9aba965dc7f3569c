# SPDX-License-Identifier: Apache-2.0
"""Times of runs that take turns."""

import time
from collections.abc import Callable, Sequence

from slimrank.deploy._measure_script import Times, take_turns, told_times

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
    found = take_turns(runs, seconds=_SECONDS, clocks=(clock,))
    return tuple(told_times([seconds for (seconds,) in turns]) for turns in found)
