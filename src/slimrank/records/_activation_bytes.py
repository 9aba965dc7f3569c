# SPDX-License-Identifier: Apache-2.0
"""Peaks of activations, before and after."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationBytes:
    """Bytes of all activations that are alive at the worst moment of a forward pass of one sample.

    An activation is alive from the operation that makes it to the last one that reads it. Operations are
    those that torch runs; runtimes that fuse some need less.

    Attributes:
        before: of the original.
        after: of the compressed model.
    """

    before: int
    after: int

    @property
    def keep_ratio(self) -> float:
        """After over before; 1.0 where the original needs none."""
        return self.after / self.before if self.before else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedActivations:
    """The peak of activations that a plan was chosen for.

    Attributes:
        asked: keep ratio that was asked for.
        before: bytes at the peak of the model, for one sample.
        after: the same of what the plan leaves, counted.
        words: what was asked for, where that was no plain ratio, such as "2MB"; else "".
    """

    asked: float
    before: int
    after: int
    words: str = ""

    @property
    def keep_ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else 1.0

    def holds(self, n_bytes: int) -> bool:
        """Whether a peak of so many bytes is within what was asked for."""
        return n_bytes / self.before <= self.asked if self.before else True

    @property
    def text(self) -> str:
        """What was asked for, for people."""
        return f"activation_bytes={self.words or f'{self.asked:.4g}'}"
