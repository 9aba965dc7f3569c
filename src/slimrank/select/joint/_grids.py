# SPDX-License-Identifier: Apache-2.0
"""Tables over the widths of at most two groups, of everything that has one, at once.

A network has hundreds of layers, and a search looks at thousands of choices: one look at one array for each
of them would take most of its time. So the tables of all lie one behind the other in one array.
"""

from collections.abc import Sequence

import numpy as np

from slimrank.select.joint._counts import WidthIndices
from slimrank.select.joint._pieces import MAX_TABLE_GROUPS
from slimrank.select.layers._table import Floats, Ints


class Grids:
    """Where the entries of tables over the widths of at most two groups stand, one table behind the other."""

    def __init__(self, groups: Sequence[Sequence[int]], sizes: Sequence[int]) -> None:
        """Lay tables out.

        Args:
            groups: of each of T tables, ascending, at most two.
            sizes: of each group, its number of widths.
        """
        # One more group, with one width, stands for no group.
        padding = (len(sizes),) * MAX_TABLE_GROUPS
        self._groups = np.array([(*own, *padding)[:MAX_TABLE_GROUPS] for own in groups], dtype=np.int64)
        self._groups = self._groups.reshape(-1, MAX_TABLE_GROUPS)
        many = np.array([*sizes, 1], dtype=np.int64)
        shape = many[self._groups]
        self._steps = np.column_stack([shape[:, 1], np.ones(len(shape), dtype=np.int64)])
        self.shapes = [tuple(sizes[group] for group in own) for own in groups]
        self.counts: Ints = shape.prod(axis=1)
        self._starts = self.counts.cumsum() - self.counts
        table, axis = np.nonzero(self._groups < len(sizes))
        moves = many[self._groups[table, axis]]
        self._moving = np.repeat(self._groups[table, axis], moves)
        self._width = np.arange(len(self._moving)) - np.repeat(moves.cumsum() - moves, moves)
        self._table, self._step = np.repeat(table, moves), np.repeat(self._steps[table, axis], moves)
        self._place = (many.cumsum() - many)[self._moving] + self._width

    def tables(self, entries: Floats) -> list[Floats]:
        """The tables of these entries (N, ...), one axis for each group."""
        parts = np.split(entries, self.counts.cumsum())[:-1]
        return [
            part.reshape((*shape, *part.shape[1:])) for part, shape in zip(parts, self.shapes, strict=True)
        ]

    def at(self, widths: WidthIndices) -> Ints:
        """(T, ...) the entry of each table at these indices of widths, all of one shape."""
        indices = np.array(widths, dtype=np.int64)
        indices = np.concatenate([indices, np.zeros((1, *indices.shape[1:]), dtype=np.int64)])
        first, second = self._groups.T
        shape = (-1, *(1 for _ in indices.shape[1:]))
        starts, steps = self._starts.reshape(shape), self._steps[:, 0].reshape(shape)
        found: Ints = starts + steps * indices[first] + indices[second]
        return found

    def around(self, widths: Sequence[int]) -> tuple[Ints, Ints, Ints]:
        """The entries that are met while one group moves through all its widths, the others as they are.

        Args:
            widths: of each group.

        Returns:
            Three (n,): the entry; its table; and the width of the group that moves, as a place among the
            widths of all groups, one group behind the other.
        """
        moved = (self._width - np.array(widths, dtype=np.int64)[self._moving]) * self._step
        return self.at(widths)[self._table] + moved, self._table, self._place
