# SPDX-License-Identifier: Apache-2.0
"""Shapes and costs of all layers at any widths."""

from collections.abc import Mapping, Sequence

import numpy as np

from slimrank.select.joint._grids import Grids
from slimrank.select.joint._pieces import MAX_TABLE_GROUPS, JointLayer
from slimrank.select.joint._shapes import Shapes, shapes_of
from slimrank.select.joint._wide import WideLayers
from slimrank.select.layers._table import UNTOUCHED, Floats, Ints


class LayerGrids:
    """Shapes and costs of all layers at any widths.

    Attributes:
        narrow: (T,) indices of the layers that go with at most two groups.
        wide: indices of the others.
        wide_layers: these; None where there are none.
        reading: group -> those of them that go with it; groups without any are left out.
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
        is_narrow = np.array([len(layer.groups) <= MAX_TABLE_GROUPS for layer in layers], dtype=np.bool_)
        self.narrow: Ints = np.flatnonzero(is_narrow)
        self.wide: Ints = np.flatnonzero(~is_narrow)
        self.grids = Grids([sorted(layers[index].groups) for index in self.narrow.tolist()], sizes)
        counts = self.grids.counts
        self.table: Ints = np.repeat(np.arange(len(counts)), counts)
        self.own: Ints = np.arange(len(self.table)) - (counts.cumsum() - counts)[self.table]
        self.layer: Ints = self.narrow[self.table]
        self.shapes = _joined([_grid_of(layers[index], sizes) for index in self.narrow.tolist()], budgets)
        wide = [(index, layers[index]) for index in self.wide.tolist()]
        self.wide_layers = WideLayers(wide, sizes) if wide else None
        self.reading: Mapping[int, WideLayers] = {
            group: WideLayers([(index, layer) for index, layer in wide if group in layer.groups], sizes)
            for group in (self.wide_layers.groups if self.wide_layers else ())
        }
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
        every = [self.shapes.of(self.grids.at(widths))]
        if self.wide_layers is not None:
            every.append(self.wide_layers.at(np.array(widths)))
        return _joined(every, budgets).of(self._order[layers])

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
