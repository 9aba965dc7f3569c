# SPDX-License-Identifier: Apache-2.0
"""Latencies that plans are chosen for: what was asked, the table of times, and what it predicts."""

import re
from collections.abc import Mapping
from math import inf
from typing import Protocol, runtime_checkable

from slimrank._errors import BudgetError, LatencyError, OptionError
from slimrank._numbers import percent_ratio, quotes_hint, real_number
from slimrank.cost import network_time
from slimrank.plan._structure import Step, Structure
from slimrank.records import NetworkTimes, PlannedLatency

_NANOSECONDS: Mapping[str, float] = {"ns": 1.0, "us": 1e3, "µs": 1e3, "ms": 1e6, "s": 1e9}
_TIME = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(ns|us|µs|ms|s)\s*")
# Times are shown with three digits: up to so much above is still what the model was shown to take.
_SAME_TIME = 1.005
_EXAMPLE = 'latency=0.6 for 60 % of the time of the original, or latency="4.5ms"'


@runtime_checkable
class LatencyTable(Protocol):
    """A table of measured times: what ``slimrank.measure_latency`` returns, or anything like it."""

    @property
    def times(self) -> NetworkTimes:
        """The formulas."""
        ...

    @property
    def backend(self) -> str:
        """The runtime."""
        ...

    @property
    def threads(self) -> int:
        """That the runtime had."""
        ...

    @property
    def batch(self) -> int:
        """Samples of the batch that all times are of."""
        ...

    @property
    def precision(self) -> str:
        """Of the files that were run."""
        ...

    def check(self, structure: Structure) -> None:
        """Raises LatencyError where the table is of another network; the message names what differs."""
        ...


def check_table(table: object, structure: Structure) -> LatencyTable:
    """The table of times of a network.

    Args:
        table: as the caller gave it.
        structure: of the network.

    Returns:
        The same.

    Raises:
        OptionError: no table.
        LatencyError: it is of another network.
    """
    if not isinstance(table, LatencyTable) or not isinstance(table.times, NetworkTimes):
        raise OptionError(
            f"latencies is a {type(table).__name__}; give a table, e.g. slimrank.measure_latency(study) or "
            "slimrank.Latencies.load(path)"
        )
    table.check(structure)
    unknown = [name for name in table.times.layers if name not in structure.layers]
    if unknown:
        raise LatencyError(
            f"the latency table has times of {unknown[0]!r}, which this study does not have; measure one for "
            "this study with slimrank.measure_latency(study)"
        )
    return table


def latency_ratio(latency: object, times: NetworkTimes) -> float:
    """A latency that was asked for, as a keep ratio.

    Args:
        latency: a ratio in (0, 1], also as "60%", or a time such as "4.5ms".
        times: measured.

    Returns:
        The ratio to the original in float32.

    Raises:
        BudgetError: neither, or a longer time than the original takes.
    """
    value, is_time = _number_of(latency)
    if not is_time:
        return value
    if value > _SAME_TIME * times.reference:
        raise BudgetError(
            f"budget: latency={latency!r} is above what the model takes: it takes less already, "
            f"{times.reference / _NANOSECONDS['ms']:.4g} ms by the table; give less, or leave this budget out"
        )
    return min(value / times.reference, 1.0)


def milliseconds_of(latency: object) -> float | None:
    """The time that was asked for; None for a ratio.

    Raises:
        BudgetError: neither a ratio in (0, 1] nor a time.
    """
    value, is_time = _number_of(latency)
    return value / _NANOSECONDS["ms"] if is_time else None


def check_latency(latency: object) -> None:
    """Refuses what is no latency, before there are times.

    Raises:
        BudgetError: neither a ratio in (0, 1] nor a time.
    """
    _number_of(latency)


def _number_of(latency: object) -> tuple[float, bool]:
    """A ratio, or ns, and whether it is the latter."""
    if isinstance(latency, str):
        found = _TIME.fullmatch(latency)
        time = float(found[1]) * _NANOSECONDS[found[2]] if found else 0.0
        if 0 < time < inf:
            return time, True
        share = percent_ratio(latency)
        if share is not None and 0 < share <= 1:
            return share, False
    else:
        ratio = real_number(latency)
        if ratio is not None and 0 < ratio <= 1:
            return ratio, False
    # A number above 1 would be no latency without quotes either.
    hint = quotes_hint(latency, "latency") if str(latency).strip()[:1] in ("0", ".") else ""
    raise BudgetError(
        f"budget: latency={latency!r} is neither a ratio in (0, 1] nor a time; give {_EXAMPLE}{hint}"
    )


def predicted_time(times: NetworkTimes, step: Step) -> float:
    """The time of a network once a step of a plan is done.

    Args:
        times: of the network.
        step: what is done to it.

    Returns:
        ns for one run of the batch.
    """
    return network_time(
        times,
        step.structure.layers,
        step.structure.channels,
        settings=step.settings,
        kept=step.groups,
        dropped=step.dropped,
    )


def latency_words(latency: object) -> str:
    """A latency that was asked for, where that was no plain ratio, in one spelling; else ""."""
    return " ".join(latency.split()) if isinstance(latency, str) else ""


def planned_latency(table: LatencyTable, step: Step, asked: float, words: str = "") -> PlannedLatency:
    """What a table predicts for a step, beside what was asked for.

    Args:
        table: of the network that the step starts from.
        step: what is done to it.
        asked: keep ratio.
        words: what was asked for, where that was no plain ratio.

    Returns:
        The two, and what they are of.
    """
    return PlannedLatency(
        asked=asked,
        predicted=predicted_time(table.times, step) / table.times.reference,
        before_ms=table.times.reference / 1e6,
        backend=table.backend,
        threads=table.threads,
        batch=table.batch,
        precision=table.precision,
        words=words,
    )
