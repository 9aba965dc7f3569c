# SPDX-License-Identifier: Apache-2.0
"""Whatever costs something that goes with the widths of groups.

The parts that the table of the search is made of: tensors, products of activations, layers that a pair may
replace, and blocks. Each knows which groups and blocks it goes with, and what it costs at any widths.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Protocol

import numpy as np

from slimrank.records import Form, LayerSpec, Steps
from slimrank.select.joint._counts import Dim, WidthIndices
from slimrank.select.layers._table import Flags, Floats, Ints

# Costs of at most so many groups are added up in one table, whose size is the product of their numbers of
# widths; what goes with more is counted at each call. Moving two groups together and the bound rely on
# tables of two.
MAX_TABLE_GROUPS = 2


class Piece(Protocol):
    """Whatever costs something that goes with the widths of groups."""

    @property
    def groups(self) -> frozenset[int]:
        """Indices of the groups that it goes with."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """Indices of the blocks that it is in."""
        ...

    @property
    def unit(self) -> Floats:
        """(B,) float64, cost of one number or MAC of it."""
        ...

    def cost(self, widths: WidthIndices) -> Floats:
        """(..., B) float64, at indices of widths that broadcast."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorPiece:
    """A tensor, or a bias that is made where a consumer is fitted anew.

    Attributes:
        groups: indices of the groups that it goes with.
        blocks: indices of the blocks that it is in.
        dims: its dimensions that groups touch.
        unit: (B,) float64, cost of one number of these.
        once: (group, index of its whole width) pairs: it is only there where one of these is slimmed; ()
            where it always is.
    """

    groups: frozenset[int]
    blocks: tuple[int, ...]
    dims: tuple[Dim, ...]
    unit: Floats
    once: tuple[tuple[int, int], ...] = ()

    def cost(self, widths: WidthIndices) -> Floats:
        """(..., B) float64, at indices of widths that broadcast."""
        numbers: int | Ints = 1
        for dim in self.dims:
            numbers = numbers * dim.count(widths)
        if self.once and not any(isinstance(widths[g], int) and widths[g] < whole for g, whole in self.once):
            slimmed = [np.asarray(widths[group] < whole) for group, whole in self.once]
            numbers = numbers * np.any(np.broadcast_arrays(*slimmed), axis=0)
        return np.multiply.outer(np.asarray(numbers, dtype=np.float64), self.unit)

    def split(self) -> Iterator["TensorPiece"]:
        """Pieces of fewer groups each, whose costs add up to this one's."""
        if self.once or len(self.groups) <= MAX_TABLE_GROUPS:
            yield self
            return
        for dims in product(*(dim.split() for dim in self.dims)):
            groups = frozenset[int]().union(*(dim.groups for dim in dims))
            yield TensorPiece(groups=groups, blocks=self.blocks, dims=dims, unit=self.unit)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductPiece:
    """A product of two activations.

    Attributes:
        groups: indices of the groups that it goes with.
        blocks: indices of the blocks that it is in.
        macs: of the whole product.
        kept: (group, its (W,) numbers of units kept, its units) triples.
        unit: (B,) float64, cost of one MAC.
        fixed: (units kept, units) of groups whose width is fixed.
    """

    groups: frozenset[int]
    blocks: tuple[int, ...]
    macs: int
    kept: tuple[tuple[int, Ints, int], ...]
    unit: Floats
    fixed: tuple[tuple[int, int], ...] = ()

    def cost(self, widths: WidthIndices) -> Floats:
        """(..., B) float64, at indices of widths that broadcast."""
        macs: Ints = np.asarray(self.macs * prod(count for count, _ in self.fixed), dtype=np.int64)
        for group, kept, _ in self.kept:
            macs = macs * kept[widths[group]]
        macs = macs // (prod(units for _, _, units in self.kept) * prod(units for _, units in self.fixed))
        return np.multiply.outer(macs.astype(np.float64), self.unit)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FitPiece:
    """What forbids widths at which a layer cannot take its fixed pair: a cost above every budget.

    Attributes:
        groups: indices of the groups that the layer goes with.
        blocks: (); a block that holds a fixed layer stays.
        unit: (B,) float64, more than any budget leaves.
        rows, columns: first two dimensions of its weight; of a grouped convolution, columns of all groups.
        inside: of a grouped convolution, columns of one group; None for any other layer.
        least: columns and rows that a weight of that rank has, of one group of a grouped convolution.
        params: of the pair, at any shape, for each column and for each row.
        macs: of the pair, likewise.
        taps: of the kernel.
        macs_of_number: of the layer, for each number of its weight.
        whole: rows and columns at which nothing of the layer is slimmed: there the pair was checked.
    """

    groups: frozenset[int]
    unit: Floats
    rows: Dim
    columns: Dim
    inside: Dim | None
    least: tuple[int, int]
    params: tuple[int, int, int]
    macs: tuple[int, int, int]
    taps: int
    macs_of_number: int
    whole: tuple[int, int]
    blocks: tuple[int, ...] = ()

    def fits(self, widths: WidthIndices) -> Flags:
        """(...) bool, as ``check_pair`` of a plan: the rank is there, and the pair saves something."""
        rows, columns = np.asarray(self.rows.count(widths)), np.asarray(self.columns.count(widths))
        kernel_groups = 1 if self.inside is None else columns // self.inside.count(widths)
        numbers = columns * rows * self.taps // kernel_groups
        params, macs = (at + columns * each + rows * other for at, each, other in (self.params, self.macs))
        is_less = (params < numbers) | (macs < numbers * self.macs_of_number)
        is_there = (columns // kernel_groups >= self.least[0]) & (rows // kernel_groups >= self.least[1])
        is_whole = (rows == self.whole[0]) & (columns == self.whole[1])
        fits: Flags = is_whole | (is_there & is_less)
        return fits

    def cost(self, widths: WidthIndices) -> Floats:
        """(..., B) float64, at indices of widths that broadcast."""
        return np.multiply.outer((~self.fits(widths)).astype(np.float64), self.unit)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """A form that one layer can take.

    Attributes:
        form: how the pair is split.
        curve: index of its curve in ``Joint.curves``.
        ranks: (K,) int64, ascending.
        damage: (K,) float64, at least 0.
        least_columns, least_rows: (K,) int64, the narrowest weight that still has each of them, of one group
            of a grouped convolution.
        column: (B,) float64, cost per rank and column of the weight, of all groups of a grouped convolution.
        row: (B,) float64, cost per rank and row of the weight.
        each: (B,) float64, cost per rank, whatever the shape.
        fixed: (B,) float64, cost of any pair of this form.
        any_column: (B,) float64, the same per column of the weight.
        any_row: (B,) float64, the same per row.
    """

    form: Form
    curve: int
    ranks: Ints
    damage: Floats
    least_columns: Ints
    least_rows: Ints
    column: Floats
    row: Floats
    each: Floats
    fixed: Floats
    any_column: Floats
    any_row: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointLayer:
    """A layer that a pair may replace.

    Attributes:
        spec: as it stands.
        groups: indices of the groups that it goes with.
        blocks: indices of the blocks that it is in.
        rows, columns: first two dimensions of its weight; of a grouped convolution, columns of all groups.
        dense: weight, bias, and the bias that it gets where it is fitted anew; what of its time goes with its
            shape.
        fixed: (B,) float64, what else it costs without a pair.
        forms: that it can take.
        bias: (B,) float64, cost of the pair's bias, per row.
        steps: where times are stairs, rows and columns count for them up to the next multiples of these.
        inside: of a grouped convolution, columns of one group; None for any other layer.
    """

    spec: LayerSpec
    groups: frozenset[int]
    blocks: tuple[int, ...]
    rows: Dim
    columns: Dim
    dense: tuple[TensorPiece, ...]
    fixed: Floats
    forms: tuple[Ranks, ...]
    bias: Floats
    steps: Steps
    inside: Dim | None = None

    def dense_cost(self, widths: WidthIndices) -> Floats:
        """(..., B) float64, cost without a pair, at indices of widths that broadcast."""
        total = self.fixed
        for piece in self.dense:
            total = total + piece.cost(widths)
        return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A module that may be replaced by the identity.

    Attributes:
        name: dotted name of the module.
        damage: of doing so.
        cost: (B,) float64, of everything in it.
        rest: (B,) float64, the same less the pieces and layers that are in it.
        outer: indices of the blocks that it is in.
    """

    name: str
    damage: float
    cost: Floats
    rest: Floats
    outer: frozenset[int]
