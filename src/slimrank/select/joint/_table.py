# SPDX-License-Identifier: Apache-2.0
"""Everything that may be chosen together under budgets, and what it costs, exactly.

The values that the phases of the search hand to each other: ``Joint``, the problem, and ``State``, one choice
of widths and blocks. Ranks are chosen last, at given widths (``_ranks.py``).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from slimrank.records import LATENCY, METRICS, Curve, Limited
from slimrank.select.joint._counts import WidthIndices, Widths
from slimrank.select.joint._grids import Grids
from slimrank.select.joint._layer_grids import LayerGrids
from slimrank.select.joint._pieces import Block, FitPiece, JointLayer, Piece
from slimrank.select.layers._table import Flags, Floats, Ints

Key = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Touching:
    """A table that goes with a group.

    Attributes:
        table: its index in ``Joint.keys``.
        axis: of the group in it.
        other: the other group that it goes with; None where there is none.
        blocks: that it is in.
    """

    table: int
    axis: int
    other: int | None
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Joint:
    """Everything that may be chosen under B budgets.

    Attributes:
        metrics: of the budgets.
        widths: of each group.
        whole: index of the whole width of each group: the last.
        homes: of each group, the blocks that hold each of its tensors, each combination once.
        blocks: that may go.
        layers: that a pair may replace.
        grids: what is left of them at any widths.
        keys: groups and blocks of each table: of what goes with at most two groups.
        tables: where the entries of these tables stand.
        cost: (N, B) float64, of each entry: all pieces but the layers, added.
        entries: of each entry of ``grids``, the entry of ``tables`` with the same key and widths.
        touching: of each group, the tables that go with it.
        linked: of each group, the others that it shares a table or anything wide with.
        near: of each group, the blocks that hold anything that goes with it.
        standing: tells what is still there without some blocks.
        wide: the pieces that go with more groups.
        curves: that ``Ranks.curve`` points into.
        room: (B,) float64, what the budgets leave for layers, cells and wide pieces.
        scale: (B,) float64, cost of the whole model.
        fits: the pieces that forbid widths at which a fixed pair cannot be.
    """

    metrics: tuple[Limited, ...]
    widths: tuple[Widths, ...]
    whole: tuple[int, ...]
    homes: tuple[tuple[tuple[int, ...], ...], ...]
    blocks: tuple[Block, ...]
    layers: tuple[JointLayer, ...]
    grids: LayerGrids
    keys: tuple[Key, ...]
    tables: Grids
    cost: Floats
    entries: Ints
    touching: tuple[tuple[Touching, ...], ...]
    linked: tuple[tuple[int, ...], ...]
    near: tuple[frozenset[int], ...]
    standing: "Standing"
    wide: tuple[Piece, ...]
    curves: tuple[Curve, ...]
    room: Floats
    scale: Floats
    fits: tuple[FitPiece, ...] = ()

    @property
    def latency(self) -> int | None:
        """Index of the latency among the metrics; None where there is none."""
        return self.metrics.index(LATENCY) if LATENCY in self.metrics else None

    @property
    def counted(self) -> list[int]:
        """Indices of the metrics that are counted from weights: all but a latency and bytes at places."""
        return [index for index, metric in enumerate(self.metrics) if metric in METRICS]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Left:
    """What is still there without some blocks, by indices.

    Attributes:
        layers: (n,) int64.
        tables: (n,) int64.
        groups: those with a tensor outside the blocks.
        gone: the others.
    """

    layers: Ints
    tables: Ints
    groups: tuple[int, ...]
    gone: tuple[int, ...]


def is_there(blocks: Iterable[int], dropped: Collection[int]) -> bool:
    """Whether what is in these blocks is still there."""
    return not dropped or not any(block in dropped for block in blocks)


class Standing:
    """Tells what is still there without some blocks; of each set of blocks it is found once."""

    def __init__(
        self,
        homes: Sequence[Sequence[Sequence[int]]],
        layers: Sequence[Sequence[int]],
        tables: Sequence[Sequence[int]],
        blocks: int,
    ) -> None:
        """Keep what is where.

        Args:
            homes: of each group, the blocks that hold each of its tensors.
            layers: of each layer, the blocks that it is in.
            tables: of each table, the blocks that it is in.
            blocks: their number.
        """
        self._layers, self._tables = _inside(layers, blocks), _inside(tables, blocks)
        self._homes = _inside(list(chain(*homes)), blocks)
        self._group: Ints = np.repeat(np.arange(len(homes)), [len(own) for own in homes])
        # A group without tensors is in no block.
        self._has_home = np.array([bool(own) for own in homes], dtype=np.bool_)
        self._known: dict[frozenset[int], Left] = {}

    def without(self, dropped: frozenset[int]) -> Left:
        """What is there without these blocks."""
        known = self._known.get(dropped)
        if known is None:
            gone = list(dropped)
            is_gone = self._has_home.copy()
            is_gone[self._group[~self._homes[:, gone].any(axis=1)]] = False
            known = self._known[dropped] = Left(
                layers=np.flatnonzero(~self._layers[:, gone].any(axis=1)),
                tables=np.flatnonzero(~self._tables[:, gone].any(axis=1)),
                groups=tuple(np.flatnonzero(~is_gone).tolist()),
                gone=tuple(np.flatnonzero(is_gone).tolist()),
            )
        return known


def _inside(blocks: Sequence[Sequence[int]], many: int) -> Flags:
    """(n, many) bool, which blocks each of n is in."""
    found = np.zeros((len(blocks), many), dtype=np.bool_)
    for place, own in enumerate(blocks):
        found[place, list(own)] = True
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Widths and blocks, chosen.

    Attributes:
        widths: of each group, the index of its width in ``Joint.widths``.
        dropped: indices of the blocks that go; none is inside another.
    """

    widths: tuple[int, ...]
    dropped: frozenset[int] = frozenset()


def normalised(joint: Joint, widths: Sequence[int], dropped: Collection[int]) -> State:
    """The same choice, with blocks inside dropped ones not dropped and groups inside them whole."""
    every = frozenset(dropped)
    outermost = frozenset(block for block in every if not joint.blocks[block].outer & every)
    chosen = list(widths)
    for group in joint.standing.without(outermost).gone:
        chosen[group] = joint.whole[group]
    return State(widths=tuple(chosen), dropped=outermost)


def width_grid(joint: Joint, groups: Sequence[int]) -> list[int | Ints]:
    """Indices of every width of these groups, one axis for each, and the first of all others."""
    widths: list[int | Ints] = [0] * len(joint.widths)
    for axis, group in enumerate(groups):
        size = len(joint.widths[group].kept)
        widths[group] = np.arange(size).reshape([-1 if other == axis else 1 for other in range(len(groups))])
    return widths


def whole_cost(joint: Joint, state: State) -> Floats:
    """(B,) cost of a choice with every layer in one piece, as ``room`` counts it."""
    there = joint.standing.without(state.dropped).layers
    layers = joint.grids.at(state.widths, there).dense.sum(axis=0)
    total: Floats = standing_cost(joint, state.widths, state.dropped) + layers
    return total


def standing_cost(joint: Joint, widths: WidthIndices, dropped: frozenset[int]) -> Floats:
    """Cost of all but the layers, as ``room`` counts it.

    Args:
        joint: everything.
        widths: indices of widths, all of one shape.
        dropped: indices of the blocks that go; none is inside another.

    Returns:
        (..., B) float64, exact.
    """
    total: Floats = joint.cost[joint.tables.at(widths)[joint.standing.without(dropped).tables]].sum(axis=0)
    for piece in joint.wide:
        if is_there(piece.blocks, dropped):
            total = total + piece.cost(widths)
    for block in dropped:
        total = total - joint.blocks[block].rest
    return total
