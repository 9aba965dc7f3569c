# SPDX-License-Identifier: Apache-2.0
"""Times of what a plan can change: factors of layers, and what follows channels or is in a block."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Place:
    """Where a node is that belongs to no layer.

    Attributes:
        block: the innermost block that can be dropped around it; "" for none.
        groups: that its channels come from, in order; those that reach out of its block are left out.
    """

    block: str
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Times of the parts of one variant, ns for one run of the batch.

    Attributes:
        factors: by layer: of the layer in one piece, or of each factor of its pair, in order.
        others: of all that belongs to no layer, by place.
    """

    factors: Mapping[str, tuple[float, ...]]
    others: Mapping[Place, float]

    @property
    def total(self) -> float:
        """Of all nodes together."""
        return sum(sum(times) for times in self.factors.values()) + sum(self.others.values())

    def scaled(self, factor: float) -> "Parts":
        """Every time multiplied."""
        return Parts(
            factors={name: tuple(factor * time for time in times) for name, times in self.factors.items()},
            others={place: factor * time for place, time in self.others.items()},
        )

    def least(self, other: "Parts") -> "Parts":
        """Of every part the shorter time, of two profiles of one file: other work only adds.

        A part that one profile does not have, because it was over at once, has the time of the other.
        """
        factors, others = {**self.factors, **other.factors}, {**self.others, **other.others}
        for name in self.factors.keys() & other.factors.keys():
            pairs = zip(self.factors[name], other.factors[name], strict=True)
            factors[name] = tuple(min(pair) for pair in pairs)
        for place in self.others.keys() & other.others.keys():
            others[place] = min(self.others[place], other.others[place])
        return Parts(factors=factors, others=others)
