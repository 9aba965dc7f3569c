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
