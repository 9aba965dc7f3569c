# SPDX-License-Identifier: Apache-2.0
"""Whatever costs something that goes with the widths of groups."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Protocol

import numpy as np

from slimrank.records import Form, LayerSpec
from slimrank.select.joint._counts import Dim, Places
from slimrank.select.layers._table import Floats, Ints

GRID = 2


class Piece(Protocol):
    """Whatever costs something that goes with the widths of groups."""

    @property
    def groups(self) -> frozenset[int]:
        """Places of the groups that it goes with."""
        ...

    @property
    def blocks(self) -> tuple[int, ...]:
        """Places of the blocks that it is in."""
        ...

    @property
    def unit(self) -> Floats:
        """(B,) float64, cost of one number or MAC of it."""
        ...

    def cost(self, at: Places) -> Floats:
        """(..., B) float64, at places of widths that broadcast."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorPiece:
    """A tensor, or a bias that is made where a consumer is fitted anew.

    Attributes:
        groups: places of the groups that it goes with.
        blocks: places of the blocks that it is in.
        dims: its dimensions that groups touch.
        unit: (B,) float64, cost of one number of these.
        once: (group, place of its whole width) pairs: it is only there where one of these is slimmed; ()
            where it always is.
    """

    groups: frozenset[int]
    blocks: tuple[int, ...]
    dims: tuple[Dim, ...]
    unit: Floats
    once: tuple[tuple[int, int], ...] = ()

    def cost(self, at: Places) -> Floats:
        """(..., B) float64, at places of widths that broadcast."""
        numbers: int | Ints = 1
        for dim in self.dims:
            numbers = numbers * dim.count(at)
        if self.once and not any(isinstance(at[g], int) and at[g] < whole for g, whole in self.once):
            slimmed = [np.asarray(at[group] < whole) for group, whole in self.once]
            numbers = numbers * np.any(np.broadcast_arrays(*slimmed), axis=0)
        return np.multiply.outer(np.asarray(numbers, dtype=np.float64), self.unit)

    def split(self) -> Iterator["TensorPiece"]:
        """Pieces of fewer groups each, whose costs add up to this one's."""
        if self.once or len(self.groups) <= GRID:
            yield self
            return
        for dims in product(*(dim.split() for dim in self.dims)):
            groups = frozenset[int]().union(*(dim.groups for dim in dims))
            yield TensorPiece(groups=groups, blocks=self.blocks, dims=dims, unit=self.unit)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProductPiece:
    """A product of two activations.

    Attributes:
        groups: places of the groups that it goes with.
        blocks: places of the blocks that it is in.
        macs: of the whole product.
        kept: (group, its (W,) numbers of units kept, its units) triples.
        unit: (B,) float64, cost of one MAC.
    """

    groups: frozenset[int]
    blocks: tuple[int, ...]
    macs: int
    kept: tuple[tuple[int, Ints, int], ...]
    unit: Floats

    def cost(self, at: Places) -> Floats:
        """(..., B) float64, at places of widths that broadcast."""
        macs: Ints = np.asarray(self.macs, dtype=np.int64)
        for group, kept, _ in self.kept:
            macs = macs * kept[at[group]]
        macs = macs // prod(units for _, _, units in self.kept)
        return np.multiply.outer(macs.astype(np.float64), self.unit)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """A form that one layer can take.

    Attributes:
        form: how the pair is split.
        curve: place of its curve.
        ranks: (K,) int64, ascending.
        damage: (K,) float64, at least 0.
        column: (B,) float64, cost per rank and column of the weight.
        row: (B,) float64, cost per rank and row of the weight.
    """

    form: Form
    curve: int
    ranks: Ints
    damage: Floats
    column: Floats
    row: Floats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JointLayer:
    """A layer that a pair may replace.

    Attributes:
        spec: as it stands.
        groups: places of the groups that it goes with.
        blocks: places of the blocks that it is in.
        rows, columns: first two dimensions of its weight.
        dense: weight, bias, and the bias that it gets where it is fitted anew.
        fixed: (B,) float64, what else it costs without a pair.
        forms: that it can take.
        bias: (B,) float64, cost of the pair's bias, per row.
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

    def dense_cost(self, at: Places) -> Floats:
        """(..., B) float64, cost without a pair, at places of widths that broadcast."""
        total = self.fixed
        for piece in self.dense:
            total = total + piece.cost(at)
        return total


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A module that may be replaced by the identity.

    Attributes:
        name: dotted name of the module.
        damage: of doing so.
        cost: (B,) float64, of everything in it.
        rest: (B,) float64, the same less the pieces and layers that are in it.
        outer: places of the blocks that it is in.
    """

    name: str
    damage: float
    cost: Floats
    rest: Floats
    outer: frozenset[int]
