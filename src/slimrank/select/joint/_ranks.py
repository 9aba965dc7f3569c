# SPDX-License-Identifier: Apache-2.0
"""Phases 2 and 7: the ranks that layers take once widths and blocks are chosen.

At given widths what is left is a choice over layers alone, so this makes the ``Table`` of ``select/layers``
and hands it to the knapsack there: the quick one to compare choices, the exact one for the last few.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimrank.cost import factor_taps
from slimrank.select.joint._pieces import JointLayer, Ranks
from slimrank.select.joint._prices import Hull, Hulls
from slimrank.select.joint._table import Joint, State, standing_cost
from slimrank.select.layers._optimal import choose_optimal, quick_choice
from slimrank.select.layers._table import UNTOUCHED, Ints, Table, added, saves, total_damage

# Ranks of a form in the small tables, beside those that are best at some price: from the lowest to the
# highest, in even steps. More fill what the prices leave better, and every evaluation of a choice takes
# longer.
_RANKS_BETWEEN = 24


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """Widths, blocks and ranks within every budget.

    Attributes:
        state: widths and blocks.
        table: of the layers that are still there, at these widths.
        choice: (L,) option of each of them.
        damage: predicted, of everything.
    """

    state: State
    table: Table
    choice: Ints
    damage: float


class RankTables:
    """Tables of the layers at any widths."""

    def __init__(self, joint: Joint, hulls: Hulls | None = None) -> None:
        """Lay the options out.

        Args:
            joint: everything.
            hulls: of the layers, where a few ranks beside these are enough; None for all ranks.
        """
        self._joint = joint
        taken = [
            [
                _taken(form, None if hulls is None else hulls.of[index][place])
                for place, form in enumerate(layer.forms)
            ]
            for index, layer in enumerate(joint.layers)
        ]
        # The first option of each layer is the whole layer.
        widest = 1 + max((sum(len(indices) for indices in every) for every in taken), default=0)
        shape = (len(joint.layers), widest)
        self._damage, self._rank = np.full(shape, np.inf), np.zeros(shape, dtype=np.int64)
        self._form, self._curve = np.full(shape, UNTOUCHED), np.full(shape, UNTOUCHED)
        self._least_columns, self._least_rows = (np.zeros(shape, dtype=np.int64) for _ in range(2))
        for index, (every, layer) in enumerate(zip(taken, joint.layers, strict=True)):
            self._damage[index, 0] = 0.0
            end = 1
            for place, (indices, form) in enumerate(zip(every, layer.forms, strict=True)):
                start, end = end, end + len(indices)
                self._damage[index, start:end] = form.damage[indices]
                self._rank[index, start:end] = form.ranks[indices]
                self._least_columns[index, start:end] = form.least_columns[indices]
                self._least_rows[index, start:end] = form.least_rows[indices]
                self._form[index, start:end], self._curve[index, start:end] = place, form.curve
        # (L, K, B) made (B, L, K).
        layers, grids = np.arange(len(joint.layers))[:, None], joint.grids
        self._column, self._row, self._alone = (
            np.moveaxis(per_rank[self._form, layers], -1, 0) * self._rank
            + np.moveaxis(at_any[self._form, layers], -1, 0) * (self._form != UNTOUCHED)
            for per_rank, at_any in (
                (grids.column, grids.any_column),
                (grids.row, grids.any_row + grids.bias),
                (grids.each, grids.fixed),
            )
        )
        self._first_taps, self._second_taps = taps_of(joint.layers)

    @property
    def size(self) -> int:
        """Number of options that a table has room for: what filling one costs."""
        return self._damage.size

    def table_for(self, state: State) -> Table:
        """The table at some widths.

        Args:
            state: widths and blocks.

        Returns:
            Of the layers that are still there; only ranks that the slimmed layer has and that save something
            of it.
        """
        joint = self._joint
        there = joint.standing.without(state.dropped).layers
        shapes = joint.grids.at(state.widths, there)
        rows, columns, whole = shapes.rows, shapes.columns, shapes.dense.T
        row_sizes, column_sizes = (np.moveaxis(size, -1, 0)[..., None] for size in joint.grids.sizes(shapes))
        cost = self._column[:, there] * column_sizes + self._row[:, there] * row_sizes
        cost += self._alone[:, there]
        damage = self._damage[there]
        # Columns and rows count all groups of a grouped convolution, ranks and the weight one of them.
        kernel_groups = shapes.kernel_groups
        good = np.isfinite(damage) & saves(cost, whole[:, :, None], joint.latency)
        counted = joint.counted
        if len(counted) < len(cost):
            # What is faster must also be smaller: a plan takes no pair that saves neither params nor MACs.
            smaller = (cost[counted] < whole[counted][:, :, None]).any(axis=0)
            first = columns[:, None] * self._first_taps[there]
            second = rows[:, None] * self._second_taps[there]
            places = self._form[there]
            pair = self._rank[there] * np.take_along_axis(first + second, places, axis=1)
            good &= smaller | (
                pair < np.take_along_axis(first * second // kernel_groups[:, None], places, axis=1)
            )
        # Ranks that the slimmed layer has.
        good &= self._least_columns[there] <= (columns // kernel_groups)[:, None]
        good &= self._least_rows[there] <= (rows // kernel_groups)[:, None]
        if len(there):
            cost[:, :, 0], good[:, 0] = whole, True
        weighted = np.where(good, added(1 / joint.scale, cost), np.inf)
        damage = np.where(good, damage, np.inf)
        order = np.lexsort((damage, weighted), axis=-1)[:, : max(int(good.sum(axis=1).max(initial=1)), 1)]
        kept = np.take_along_axis(good, order, axis=1)
        return Table(
            names=tuple(joint.layers[index].spec.name for index in there),
            curves=joint.curves,
            cost=np.where(kept, np.take_along_axis(cost, order[None], axis=2), 0.0),
            damage=np.take_along_axis(damage, order, axis=1),
            curve=np.take_along_axis(self._curve[there], order, axis=1),
            rank=np.take_along_axis(self._rank[there], order, axis=1),
            whole=whole,
            room=joint.room - standing_cost(joint, state.widths, state.dropped),
            scale=joint.scale,
        )

    def answer(self, state: State, *, exact: bool) -> Answer | None:
        """The best ranks at some widths.

        Args:
            state: widths and blocks.
            exact: whether to look for the very best.

        Returns:
            None where no ranks were found that keep every budget.
        """
        table = self.table_for(state)
        if not table.names:
            choice: Ints | None = np.zeros(0, dtype=np.int64) if (table.room >= 0).all() else None
        elif exact:
            found = choose_optimal(table)
            choice = found[0] if found else None
        else:
            choice = quick_choice(table)
        if choice is None:
            return None
        damage = standing_damage(self._joint, state) + total_damage(table, choice)
        return Answer(state=state, table=table, choice=choice, damage=damage)


def standing_damage(joint: Joint, state: State) -> float:
    """Damage of the widths and blocks alone."""
    groups = sum(float(group.damage[width]) for group, width in zip(joint.widths, state.widths, strict=True))
    return groups + sum(joint.blocks[block].damage for block in state.dropped)


def _taken(form: Ranks, hull: Hull | None) -> Ints:
    """Indices of the ranks of a form that a table holds: all, or those of its hull and some between."""
    count = len(form.ranks)
    if hull is None:
        return np.arange(count)
    between = np.linspace(0, count - 1, min(count, _RANKS_BETWEEN)).astype(np.int64)
    return np.union1d(np.searchsorted(form.ranks, hull.rank), between)


def taps_of(layers: Sequence[JointLayer]) -> tuple[Ints, Ints]:
    """Twice (L, F + 1): taps of the first and of the second factor of each form; 0 where there is no form."""
    widest = max((len(layer.forms) for layer in layers), default=0)
    first, second = (np.zeros((len(layers), widest + 1), dtype=np.int64) for _ in range(2))
    for index, layer in enumerate(layers):
        for form_index, form in enumerate(layer.forms):
            taps = factor_taps(layer.spec, form.form)
            first[index, form_index], second[index, form_index] = taps
    return first, second
