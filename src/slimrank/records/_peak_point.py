# SPDX-License-Identifier: Apache-2.0
"""Bytes that are alive at one place of a forward pass, as a formula that a plan can be chosen by."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from slimrank.records._cost import Budgeted
from slimrank.records._setting import Form, Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class PairBytes:
    """What a pair in the place of a layer adds to the bytes that are alive: ``fixed + rank * per_rank``.

    Attributes:
        fixed: bytes; below 0 where less is alive at once than in the layer in one piece.
        per_rank: bytes for each rank, at least 0.
    """

    fixed: int
    per_rank: int

    def more(self, rank: int) -> int:
        """Bytes more than with the layer in one piece."""
        return self.fixed + rank * self.per_rank


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PeakPoint:
    """Bytes that are alive at the worst moment of one place of a forward pass of one sample.

    A formula: exact for the network as it stands, and nearly so for what plans leave of it. Two points are
    equal only where they are the same object, so that each is a budget of its own.

    Attributes:
        module: dotted name of the module that runs there, or that ran last; "" before the first.
        is_inside: whether the module runs, else it was the last to end.
        peak: bytes at the worst place of all, which keep ratios are shares of.
        whole: bytes here, of the network as it stands.
        units: group -> bytes that go with each of its units.
        group_units: group -> how many it has.
        pairs: form -> what a pair in the place of ``module`` adds.
    """

    module: str
    is_inside: bool
    peak: int
    whole: int
    units: Mapping[str, int] = field(default_factory=dict)
    group_units: Mapping[str, int] = field(default_factory=dict)
    pairs: Mapping[Form, PairBytes] = field(default_factory=dict)

    @property
    def dense(self) -> int:
        """Bytes that count as those of the layer in one piece, so that no pair of it has less than none."""
        return max((-pair.fixed for pair in self.pairs.values()), default=0)

    def bytes_left(
        self, settings: Mapping[str, Setting], kept: Mapping[str, Collection[int]], dropped: Collection[str]
    ) -> int:
        """Bytes here once a plan is carried out.

        Args:
            settings: layer -> setting.
            kept: group -> units that stay.
            dropped: blocks.

        Returns:
            The bytes; 0 where the place is in a dropped block.
        """
        if self.is_gone_with(dropped):
            return 0
        left = self.whole
        for name, each in self.units.items():
            if name in kept:
                left -= each * (self.group_units[name] - len(kept[name]))
        setting = settings.get(self.module)
        if setting is not None and setting.form in self.pairs:
            left += self.pairs[setting.form].more(setting.rank)
        return left

    def is_gone_with(self, blocks: Collection[str]) -> bool:
        """Whether the place is inside one of these blocks."""
        return f"{self.module}.".startswith(tuple(f"{block}." for block in blocks))

    def raised(self, more: int) -> "PeakPoint":
        """The same place with so many bytes more, whatever is chosen."""
        return replace(self, whole=self.whole + more)


# What a limit may be for: a metric, measured time, or the bytes alive at one place.
Limited = Budgeted | PeakPoint
