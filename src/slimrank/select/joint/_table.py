# SPDX-License-Identifier: Apache-2.0
"""Everything that may be chosen together under budgets, and what it costs, exactly.

The values that the phases of the search hand to each other: ``Joint``, the problem, and ``State``, one choice
of widths and blocks. Ranks are chosen last, at given widths (``_ranks.py``).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from slimrank.records import LATENCY, METRICS, Curve, Limited
from slimrank.select.joint._counts import WidthIndices, Widths
from slimrank.select.joint._grids import Grids, LayerGrids
from slimrank.select.joint._pieces import Block, FitPiece, JointLayer, Piece
from slimrank.select.layers._table import Floats, Ints

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


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Widths and blocks, chosen.

    Attributes:
        widths: of each group, the index of its width in ``Joint.widths``.
        dropped: indices of the blocks that go; none is inside another.
    """

    widths: tuple[int, ...]
    dropped: frozenset[int] = frozenset()


def is_there(blocks: Iterable[int], dropped: Collection[int]) -> bool:
    """Whether what is in these blocks is still there."""
    return not dropped or not any(block in dropped for block in blocks)


def normalised(joint: Joint, widths: Sequence[int], dropped: Collection[int]) -> State:
    """The same choice, with blocks inside dropped ones not dropped and groups inside them whole."""
    outermost = frozenset(block for block in dropped if not joint.blocks[block].outer & frozenset(dropped))
    chosen = [
        whole if is_gone(homes, outermost) else width
        for width, whole, homes in zip(widths, joint.whole, joint.homes, strict=True)
    ]
    return State(widths=tuple(chosen), dropped=outermost)


def is_gone(homes: Collection[Sequence[int]], dropped: Collection[int]) -> bool:
    """Whether every tensor of a group is in a dropped block."""
    return bool(dropped) and bool(homes) and not any(is_there(home, dropped) for home in homes)


def width_grid(joint: Joint, groups: Sequence[int]) -> list[int | Ints]:
    """Indices of every width of these groups, one axis for each, and the first of all others."""
    widths: list[int | Ints] = [0] * len(joint.widths)
    for axis, group in enumerate(groups):
        size = len(joint.widths[group].kept)
        widths[group] = np.arange(size).reshape([-1 if other == axis else 1 for other in range(len(groups))])
    return widths


def layers_there(joint: Joint, dropped: Collection[int]) -> Ints:
    """Indices of the layers that are outside the dropped blocks."""
    there = [index for index, layer in enumerate(joint.layers) if is_there(layer.blocks, dropped)]
    return np.array(there, dtype=np.int64)


def tables_there(joint: Joint, dropped: Collection[int]) -> Ints:
    """Indices of the tables that are outside the dropped blocks."""
    there = [index for index, (_, blocks) in enumerate(joint.keys) if is_there(blocks, dropped)]
    return np.array(there, dtype=np.int64)


def whole_cost(joint: Joint, state: State) -> Floats:
    """(B,) cost of a choice with every layer in one piece, as ``room`` counts it."""
    there = layers_there(joint, state.dropped)
    layers = joint.grids.at(state.widths, there).dense.sum(axis=0)
    total: Floats = standing_cost(joint, state.widths, state.dropped) + layers
    return total


def standing_cost(joint: Joint, widths: WidthIndices, dropped: Collection[int]) -> Floats:
    """Cost of all but the layers, as ``room`` counts it.

    Args:
        joint: everything.
        widths: indices of widths, all of one shape.
        dropped: indices of the blocks that go; none is inside another.

    Returns:
        (..., B) float64, exact.
    """
    total: Floats = joint.cost[joint.tables.at(widths)[tables_there(joint, dropped)]].sum(axis=0)
    for piece in joint.wide:
        if is_there(piece.blocks, dropped):
            total = total + piece.cost(widths)
    for block in dropped:
        total = total - joint.blocks[block].rest
    return total
