# SPDX-License-Identifier: Apache-2.0
"""Layers that more groups touch than a table holds: what is left of many of them, at once.

Where branches are joined a layer reads many groups, and a table over all of their widths is out of reach. But
each index of a dimension mostly goes with one group: the counts of all dimensions are sums of small tables.
"""

from collections.abc import Sequence

import numpy as np

from slimrank.records import step_edge
from slimrank.select.joint._counts import Dim
from slimrank.select.joint._grids import Grids
from slimrank.select.joint._pieces import JointLayer, TensorPiece
from slimrank.select.joint._shapes import Shapes
from slimrank.select.layers._table import Floats, Ints


class _Counts:
    """How many indices of each of D dimensions stay, at any widths."""

    def __init__(self, dims: Sequence[Dim], sizes: Sequence[int]) -> None:
        """Lay their tables out, one behind the other.

        Args:
            dims: the dimensions.
            sizes: of each group, its number of widths.
        """
        groups: list[tuple[int, ...]] = []
        values: list[Ints] = []
        starts: list[int] = []
        self._untabled: list[tuple[int, Dim]] = []
        for place, dim in enumerate(dims):
            starts.append(len(groups))
            groups.append(())
            values.append(np.array([dim.fixed]))
            for part in dim.parts:
                if part.table is not None:
                    groups.append(part.groups)
                    values.append(part.table.reshape(-1))
            untabled = tuple(part for part in dim.parts if part.table is None)
            if untabled:
                self._untabled.append((place, Dim(fixed=0, parts=untabled, kept=dim.kept)))
        self._grids = Grids(groups, sizes)
        self._values: Ints = np.concatenate(values)
        self._starts = np.array(starts, dtype=np.int64)
        self._steps = np.array([dim.step for dim in dims], dtype=np.int64)

    def at(self, widths: Ints) -> Ints:
        """(D, ...) int64, exactly or up to the next step, at (G, ...) indices of widths."""
        found: Ints = np.add.reduceat(self._values[self._grids.at(widths)], self._starts, axis=0)
        for place, dim in self._untabled:
            found[place] += dim.count(widths)
        return _up_to_step(found, self._steps)


class WideLayers:
    """The shapes and costs of L layers, however many groups they go with.

    Attributes:
        index: (L,) int64, of each among all layers.
        groups: that any of them goes with, ascending.
    """

    def __init__(self, numbered: Sequence[tuple[int, JointLayer]], sizes: Sequence[int]) -> None:
        """Lay them out.

        Args:
            numbered: at least one layer, each with its index among all.
            sizes: of each group, its number of widths.
        """
        layers = [layer for _, layer in numbered]
        self.index: Ints = np.array([index for index, _ in numbered], dtype=np.int64)
        self.groups = tuple(sorted(frozenset[int]().union(*(layer.groups for layer in layers))))
        # What a layer costs at any shape is a piece of one number.
        pieces = [
            (TensorPiece(groups=frozenset(), blocks=(), dims=(), unit=layer.fixed), *layer.dense)
            for layer in layers
        ]
        ends = np.cumsum([len(own) for own in pieces])
        self._starts: Ints = np.array([0, *ends[:-1]], dtype=np.int64)
        every = [piece for own in pieces for piece in own]
        self._units: Floats = np.array([piece.unit for piece in every])
        # Pieces that are only there where one of some groups is slimmed; the last width of a group is whole.
        once = [(place, group) for place, piece in enumerate(every) for group, _ in piece.once]
        self._once: Ints = np.array(once, dtype=np.int64).reshape(-1, 2)
        self._last: Ints = np.array(sizes, dtype=np.int64) - 1
        # (2, L), of rows and columns.
        self._steps: Ints = np.array([layer.steps for layer in layers], dtype=np.int64).T
        # Each dimension is counted once; one of one index fills pieces up to the same number.
        one = Dim(fixed=1, parts=(), kept=layers[0].rows.kept)
        places = {one: 0}
        most = max(len(piece.dims) for piece in every)
        filled = [(*piece.dims, *(one,) * (most - len(piece.dims))) for piece in every]
        self._dims = _places(filled, places).reshape(len(every), most)
        shapes = [(layer.rows, layer.columns, layer.inside or layer.columns) for layer in layers]
        self._rows, self._columns, self._inside = _places(shapes, places).T
        self._counts = _Counts(tuple(places), sizes)

    def at(self, widths: Ints) -> Shapes:
        """(L, ...) of the layers, at (G, ...) indices of widths."""
        counts = self._counts.at(widths)
        shape = (-1, *(1 for _ in widths.shape[1:]))
        rows, columns = counts[self._rows], counts[self._columns]
        numbers = counts[self._dims].prod(axis=1).astype(np.float64)
        if len(self._once):
            place, group = self._once.T
            slimmed = np.zeros(numbers.shape, dtype=np.bool_)
            np.logical_or.at(slimmed, place, widths[group] < self._last[group].reshape(shape))
            numbers[place] *= slimmed[place]
        units = self._units.reshape(len(self._units), *shape[1:], -1)
        return Shapes(
            rows=rows,
            columns=columns,
            kernel_groups=columns // counts[self._inside],
            dense=np.add.reduceat(numbers[..., None] * units, self._starts, axis=0),
            stairs=None
            if (self._steps == 1).all()
            else (_up_to_step(rows, self._steps[0]), _up_to_step(columns, self._steps[1])),
        )

    def along(self, widths: Sequence[int], group: int) -> Shapes:
        """(L, W) of the layers, at each width of one group and at these indices of widths of the others."""
        many = np.repeat(np.array(widths, dtype=np.int64)[:, None], self._last[group] + 1, axis=1)
        many[group] = np.arange(many.shape[1])
        return self.at(many)


def _places(dims: Sequence[Sequence[Dim]], places: dict[Dim, int]) -> Ints:
    """(n, D) the place of each dimension; new ones are put behind the others."""
    return np.array([[places.setdefault(dim, len(places)) for dim in row] for row in dims], dtype=np.int64)


def _up_to_step(counts: Ints, steps: Ints) -> Ints:
    """(D, ...) counts up to the next step of each of D; those without a step as they are."""
    if (steps == 1).all():
        return counts
    return step_edge(counts, steps.reshape(-1, *(1 for _ in counts.shape[1:])))
