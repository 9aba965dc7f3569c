# SPDX-License-Identifier: Apache-2.0
"""What a layer or a model costs."""

from dataclasses import dataclass
from typing import Final, Literal

from slimrank._errors import UnknownNameError
from slimrank._names import nearest

Metric = Literal["macs", "params", "bytes"]
# In the order in which reports show them.
METRICS: tuple[Metric, ...] = ("macs", "params", "bytes")
# What a budget may also be for: it is measured, not counted.
LATENCY: Final = "latency"
Budgeted = Literal["macs", "params", "bytes", "latency"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a layer or a model costs.

    Attributes:
        macs: multiply-accumulates for ONE input sample (1 MAC = 2 FLOPs).
        params: stored weights and biases; a shared tensor counts once.
        bytes: params x width of their dtype.
    """

    macs: int
    params: int
    bytes: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            macs=self.macs + other.macs, params=self.params + other.params, bytes=self.bytes + other.bytes
        )

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(
            macs=self.macs - other.macs, params=self.params - other.params, bytes=self.bytes - other.bytes
        )

    def metric(self, name: Metric) -> int:
        """The named number."""
        return {"macs": self.macs, "params": self.params, "bytes": self.bytes}[name]


def ratio_of(before: Cost, after: Cost, metric: Metric) -> float:
    """Cost after / cost before.

    Args:
        before: cost of the whole original model.
        after: cost of the whole compressed model.
        metric: "macs", "params" or "bytes".

    Returns:
        The ratio; 1.0 where the model costs nothing.

    Raises:
        UnknownNameError: no such metric.
    """
    if metric not in METRICS:
        raise UnknownNameError(f"metric {metric!r} does not exist; {nearest(metric, METRICS)}")
    cost = before.metric(metric)
    return after.metric(metric) / cost if cost else 1.0
