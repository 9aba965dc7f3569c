# SPDX-License-Identifier: Apache-2.0
"""What was measured of layers, groups and blocks: cost and damage of every choice."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from slimrank.records._setting import Form, Method, Setting


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Curve:
    """Cost and damage of one layer in one form, at every rank that saves something.

    Attributes:
        layer: dotted name.
        method: the method the form belongs to.
        form: how the pair is split.
        ranks: (K,) int64, ascending.
        ranks_in: (K,) int64, never falling: ``Setting.rank_in`` at each rank, of a form with three factors;
            None for the others.
        macs, params, bytes: (K,) int64, cost of the pair at each rank (all calls, one sample).
        error: (K,) float64, the quadratic form E, never rising; no unit across layers.
        damage: (K,) float64, predicted divergence from the original; nats per sample once anchored.
        anchors: rank -> divergence that was measured with the pair of this rank in place of the layer,
            everything else as in the original; empty where none was measured, or none was kept.
    """

    layer: str
    method: Method
    form: Form
    ranks: NDArray[np.int64]
    macs: NDArray[np.int64]
    params: NDArray[np.int64]
    bytes: NDArray[np.int64]
    error: NDArray[np.float64]
    damage: NDArray[np.float64]
    ranks_in: NDArray[np.int64] | None = None
    anchors: Mapping[int, float] = field(default_factory=dict)

    def setting(self, rank: int) -> Setting:
        """What a plan says of one rank of the curve."""
        index = int(np.searchsorted(self.ranks, rank))
        rank_in = None if self.ranks_in is None else int(self.ranks_in[index])
        return Setting(method=self.method, form=self.form, rank=rank, rank_in=rank_in)

    def damage_of(self, setting: Setting) -> float | None:
        """The damage that the curve predicts for a setting of its form; None where it holds none.

        Of two ranks that do not stand together in the curve, an upper bound: the damage of the largest of
        which neither is above them.
        """
        if self.ranks_in is not None and setting.rank_in is not None:
            last = min(
                int(np.searchsorted(ranks, rank, side="right"))
                for ranks, rank in ((self.ranks_in, setting.rank_in), (self.ranks, setting.rank))
            )
            return float(self.damage[last - 1]) if last else None
        index = int(np.searchsorted(self.ranks, setting.rank))
        is_there = index < len(self.ranks) and self.ranks[index] == setting.rank
        return float(self.damage[index]) if is_there else None

    def __repr__(self) -> str:
        kind = f"{self.method} {self.form}"
        return f"Curve({self.layer!r}, {kind}: {_range_text(self.ranks, 'rank', self)})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class GroupCurve:
    """Damage of one group at every number of units that it may keep.

    Attributes:
        group: name.
        order: every unit, in the order in which they go, the first to go first.
        kept: (K,) int64, how many units stay: ascending, each at least 1 and below the number of units.
        error: (K,) float64, the quadratic form, never rising with ``kept``; no unit across groups.
        damage: (K,) float64, predicted divergence from the original; nats per sample once anchored.
        anchors: units that stay -> divergence that was measured with this group alone slimmed; empty where
            none was measured, or none was kept.
    """

    group: str
    order: tuple[int, ...]
    kept: NDArray[np.int64]
    error: NDArray[np.float64]
    damage: NDArray[np.float64]
    anchors: Mapping[int, float] = field(default_factory=dict)

    def channels_kept(self, count: int) -> tuple[int, ...]:
        """The units that stay when ``count`` of them do, ascending."""
        return tuple(sorted(self.order[len(self.order) - count :]))

    def __repr__(self) -> str:
        units = f", of {len(self.order)} units"
        return f"GroupCurve({self.group!r}{units}: {_range_text(self.kept, 'width', self)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockDamage:
    """Damage of replacing one block by the identity.

    Attributes:
        block: name of the module.
        damage: what dropping it adds to the divergence once every block with less damage is gone, and at
            least its damage alone. Measured on held-out samples, with the layers behind it fitted anew as by
            ``apply`` and everything else as in the original.
    """

    block: str
    damage: float


def _range_text(choices: NDArray[np.int64], noun: str, curve: Curve | GroupCurve) -> str:
    """How many choices a curve has, from which to which, and what they lose: its arrays are for programs."""
    if not len(choices):
        return f"no {noun} saves anything"
    many = f"{len(choices)} {noun}s from {choices[0]} to {choices[-1]}"
    count = many if len(choices) > 1 else f"{noun} {choices[0]}"
    losses = " to ".join(f"{value:.3g}" for value in dict.fromkeys(curve.damage[[0, -1]].tolist()))
    return f"{count}, damage {losses}, {len(curve.anchors)} measured"
