# SPDX-License-Identifier: Apache-2.0
"""Latencies that were asked for, predicted and measured."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedLatency:
    """The latency that a plan was chosen for.

    Attributes:
        asked: keep ratio that was asked for: time after over time of the original in float32.
        predicted: the same ratio, by the table of times.
        before_ms: time of one batch through the original in float32, by the table.
        backend: the runtime.
        threads: that the runtime had.
        batch: samples of the batch.
        precision: of the file that is run: "float32" or "int8".
        words: what was asked for, where that was no plain ratio, such as "4.5ms"; else "".
    """

    asked: float
    predicted: float
    before_ms: float
    backend: str
    threads: int
    batch: int
    precision: str
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReachedLatency:
    """The latency of a result, measured with the original taking turns. Ratios are to it in float32.

    Attributes:
        asked: keep ratio that was asked for.
        predicted: by the table of times, before this result was measured, with what earlier rounds corrected.
        measured: time after over time before, each run with warm caches: the median over their turns, and
            over those that other work disturbed least where it disturbed some.
        before_ms: median time of one batch through the original, in these turns.
        after_ms: the same of the result.
        spread: interquartile range over median of the ratio, of all turns.
        rounds: how many plans were built and measured.
    """

    asked: float
    predicted: float
    measured: float
    before_ms: float
    after_ms: float
    spread: float
    rounds: int
