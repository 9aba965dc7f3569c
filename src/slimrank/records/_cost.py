# SPDX-License-Identifier: Apache-2.0
"""What a layer or a model costs."""

from dataclasses import dataclass
from typing import Literal

Metric = Literal["macs", "params", "bytes"]
METRICS: tuple[Metric, ...] = ("macs", "params", "bytes")


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
