# SPDX-License-Identifier: Apache-2.0
"""What goes with at most two groups, of all layers at once.

A network has hundreds of layers, and a search looks at thousands of choices: one look at one array for each
of them would take most of its time. So the tables of all lie one behind the other in one array.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimrank.records import step_edge
from slimrank.select.joint._counts import WidthIndices
from slimrank.select.joint._pieces import MAX_TABLE_GROUPS, JointLayer
from slimrank.select.layers._table import UNTOUCHED, Floats, Ints


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Shapes:
    """What is left of layers, without pairs.

    Attributes:
        rows, columns: (...) int64, of the weight; columns of all groups of a grouped convolution.
        kernel_groups: (...) int64, groups of the convolution; 1 of any other layer.
        dense: (..., B) float64, cost.
        stairs: the same rows and columns up to the next step, as times count them; None where no times are
            counted, or every size is a step.
    """

    rows: Ints
    columns: Ints
    kernel_groups: Ints
    dense: Floats
    stairs: tuple[Ints, Ints] | None = None

    def of(self, entries: Ints) -> "Shapes":
        """Those with these indices."""
        stairs = None if self.stairs is None else (self.stairs[0][entries], self.stairs[1][entries])
        return Shapes(
            rows=self.rows[entries],
            columns=self.columns[entries],
            kernel_groups=self.kernel_groups[entries],
            dense=self.dense[entries],
            stairs=stairs,
        )


class LayerGrids:
    """Shapes and costs of all layers at any widths.

    Attributes:
        narrow: (T,) indices of the layers that go with at most two groups.
        wide: indices of the others.
        grids: of the narrow ones.
        table: (N,) int64, the table of each entry of ``grids``.
        own: (N,) int64, the place of each entry in its table.
        layer: (N,) int64, the layer of each entry.
        shapes: (N,) of each entry of ``grids``.
        column: (F, L, B) float64, of each form of each layer, cost per rank and column of the weight.
        row: (F, L, B) float64, the same per row.
        each: (F, L, B) float64, the same per rank alone.
        fixed: (F, L, B) float64, of each form of each layer, cost of any pair.
        any_column: (F, L, B) float64, the same per column of the weight.
        any_row: (F, L, B) float64, the same per row.
        bias: (L, B) float64, cost of the pair's bias, per row.
        latency: index of the latency among the metrics; None where there is none.
        form_of: form in its layer of each curve, ``Ranks.curve``; UNTOUCHED for UNTOUCHED.
    """

    def __init__(
        self, layers: Sequence[JointLayer], sizes: Sequence[int], budgets: int, latency: int | None = None
    ) -> None:
        """Lay layers out.

        Args:
            layers: that a pair may replace.
            sizes: of each group, its number of widths.
            budgets: number of metrics.
            latency: index of the latency among them; None where there is none.
        """
        self.latency = latency
        self._layers = layers
        is_narrow = np.array([len(layer.groups) <= MAX_TABLE_GROUPS for layer in layers], dtype=np.bool_)
        self.narrow: Ints = np.flatnonzero(is_narrow)
        self.wide: Ints = np.flatnonzero(~is_narrow)
        self.grids = Grids([sorted(layers[index].groups) for index in self.narrow.tolist()], sizes)
        counts = self.grids.counts
        self.table: Ints = np.repeat(np.arange(len(counts)), counts)
        self.own: Ints = np.arange(len(self.table)) - (counts.cumsum() - counts)[self.table]
        self.layer: Ints = self.narrow[self.table]
        self.shapes = _joined([_grid_of(layers[index], sizes) for index in self.narrow.tolist()], budgets)
        self._order = np.argsort(np.concatenate([self.narrow, self.wide]))
        forms = max((len(layer.forms) for layer in layers), default=0)
        self.column, self.row, self.each, self.fixed, self.any_column, self.any_row = (
            np.zeros((forms, len(layers), budgets)) for _ in range(6)
        )
        self.bias = np.array([layer.bias for layer in layers]).reshape(len(layers), budgets)
        curves = [form.curve for layer in layers for form in layer.forms]
        # One entry more than the curves: UNTOUCHED looks it up.
        self.form_of: Ints = np.full(max(curves, default=0) + 2, UNTOUCHED)
        for index, layer in enumerate(layers):
            for place, form in enumerate(layer.forms):
                self.column[place, index], self.row[place, index] = form.column, form.row
                self.each[place, index], self.fixed[place, index] = form.each, form.fixed
                self.any_column[place, index], self.any_row[place, index] = form.any_column, form.any_row
                self.form_of[form.curve] = place

    def at(self, widths: Sequence[int], layers: Ints) -> Shapes:
        """(n,) of the layers with these (n,) indices."""
        budgets = self.bias.shape[1]
        wide = _joined([shapes_of(self._layers[index], widths) for index in self.wide.tolist()], budgets)
        every = _joined([self.shapes.of(self.grids.at(widths)), wide], budgets)
        return every.of(self._order[layers])

    def sizes(self, shapes: Shapes) -> tuple[Ints, Ints]:
        """Rows and columns as each metric counts them: twice (..., 1), or (..., B) where times differ."""
        rows, columns = shapes.rows[..., None], shapes.columns[..., None]
        if shapes.stairs is None or self.latency is None:
            return rows, columns
        found = [np.repeat(size, self.bias.shape[1], axis=-1) for size in (rows, columns)]
        for size, stairs in zip(found, shapes.stairs, strict=True):
            size[..., self.latency] = stairs
        return found[0], found[1]

    def cost(self, layer: Ints, shapes: Shapes, form: Ints, rank: Ints) -> Floats:
        """Cost of layers with these options.

        Args:
            layer: (...) int64, index of each layer.
            shapes: (...) of what is left of it.
            form: (...) int64, index of the form in its layer; UNTOUCHED for the layer without a pair.
            rank: (...) int64.

        Returns:
            (..., B) float64, exact.
        """
        rows, columns = self.sizes(shapes)
        unit = self.column[form, layer] * columns + self.row[form, layer] * rows + self.each[form, layer]
        pair = rank[..., None] * unit + self.bias[layer] * rows + self.fixed[form, layer]
        pair += self.any_column[form, layer] * columns + self.any_row[form, layer] * rows
        cost: Floats = np.where(form[..., None] == UNTOUCHED, shapes.dense, pair)
        return cost


def shapes_of(layer: JointLayer, widths: WidthIndices) -> Shapes:
    """What is left of one layer, at indices of widths that broadcast."""
    dense = layer.dense_cost(widths)
    shape = np.broadcast_shapes(*(np.shape(widths[group]) for group in layer.groups))
    rows, columns = (np.broadcast_to(dim.count(widths), shape) for dim in (layer.rows, layer.columns))
    kernel_groups = 1 if layer.inside is None else columns // layer.inside.count(widths)
    return Shapes(
        rows=rows,
        columns=columns,
        kernel_groups=np.broadcast_to(kernel_groups, shape),
        dense=np.broadcast_to(dense, (*shape, dense.shape[-1])),
        stairs=None if layer.step == 1 else (step_edge(rows, layer.step), step_edge(columns, layer.step)),
    )


def _grid_of(layer: JointLayer, sizes: Sequence[int]) -> Shapes:
    groups = sorted(layer.groups)
    widths: list[int | Ints] = [0] * len(sizes)
    for group, indices in zip(groups, np.ix_(*(np.arange(sizes[group]) for group in groups)), strict=True):
        widths[group] = indices
    return shapes_of(layer, widths)


def _joined(shapes: Sequence[Shapes], budgets: int) -> Shapes:
    """One behind the other, (n,)."""
    nothing = np.zeros(0, dtype=np.int64)
    stairs = [each.stairs for each in shapes if each.stairs is not None]
    return Shapes(
        # All layers have them, or none.
        stairs=(
            np.concatenate([rows.reshape(-1) for rows, _ in stairs]),
            np.concatenate([columns.reshape(-1) for _, columns in stairs]),
        )
        if stairs
        else None,
        rows=np.concatenate([nothing, *(each.rows.reshape(-1) for each in shapes)]),
        columns=np.concatenate([nothing, *(each.columns.reshape(-1) for each in shapes)]),
        kernel_groups=np.concatenate([nothing, *(each.kernel_groups.reshape(-1) for each in shapes)]),
        dense=np.concatenate([np.zeros((0, budgets)), *(each.dense.reshape(-1, budgets) for each in shapes)]),
    )
