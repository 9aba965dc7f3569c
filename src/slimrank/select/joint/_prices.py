# SPDX-License-Identifier: Apache-2.0
"""Phase 1: the best widths and blocks at fixed prices: one group at a time, then two that share a layer.

With prices on the budgets no budget has to be kept any more, so layers stop competing: each takes the rank
with the least damage plus price times cost. The sum of that over everything is called energy here (the
Lagrangian).
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimrank.select.joint._counts import WidthIndices
from slimrank.select.joint._pieces import MAX_TABLE_GROUPS, JointLayer, Piece, Ranks
from slimrank.select.joint._table import Joint, Key, State, is_gone, is_there, normalised, width_grid
from slimrank.select.layers._table import Floats, Ints

# Sweeps over all groups and blocks, at most. Each takes one look at every table; more would only matter where
# moves still lower the energy after so many.
_MAX_SWEEPS = 20
# The least fall of the energy, as a share, that counts: smaller ones are rounding, and could go round in
# circles.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hull:
    """The ranks of one form that are best at some price, by rising rank.

    Attributes:
        form_index: of the form in its layer.
        rank: (H,) float64.
        damage: (H,) float64, falling.
        slope: (H - 1,) float64, rising from below: minus the fall in damage per rank to the next one.
    """

    form_index: int
    rank: Floats
    damage: Floats
    slope: Floats


def hull_of(form_index: int, ranks: Ranks) -> Hull:
    """The lower hull of damage over rank.

    Args:
        form_index: of the form in its layer.
        ranks: its options.

    Returns:
        The hull, as far as damage falls.
    """
    kept: list[int] = []
    rank, damage = ranks.ranks.astype(np.float64), ranks.damage
    for new in range(len(rank)):
        if kept and damage[new] >= damage[kept[-1]]:
            continue
        while len(kept) > 1:
            before, last = kept[-2], kept[-1]
            # The last one is above the line from the one before it to the new one.
            across = (damage[before] - damage[last]) * (rank[new] - rank[before])
            if across > (damage[before] - damage[new]) * (rank[last] - rank[before]):
                break
            kept.pop()
        kept.append(new)
    rank, damage = rank[kept], damage[kept]
    return Hull(form_index=form_index, rank=rank, damage=damage, slope=np.diff(damage) / np.diff(rank))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pick:
    """What a layer does at fixed prices and widths.

    Attributes:
        cost: (B,) float64.
        damage: predicted.
    """

    cost: Floats
    damage: float


def value_of(layer: JointLayer, hulls: Sequence[Hull], price: Floats, widths: WidthIndices) -> Floats:
    """The least damage plus price times cost of a layer.

    Args:
        layer: the layer.
        hulls: of its forms.
        price: (B,) at least 0.
        widths: indices of widths that broadcast.

    Returns:
        float64, of the shape that the indices broadcast to. Ranks above the full one, which never pay, are
        not excluded.
    """
    value: Floats = layer.dense_cost(widths) @ price
    rows, columns = (np.asarray(dim.count(widths), dtype=np.float64) for dim in (layer.rows, layer.columns))
    bias = (price @ layer.bias) * rows
    for hull in hulls:
        form = layer.forms[hull.form_index]
        per_rank = (price @ form.column) * columns + (price @ form.row) * rows
        best = np.searchsorted(hull.slope, -per_rank)
        value = np.minimum(value, hull.damage[best] + hull.rank[best] * per_rank + bias)
    return value


def pick_of(layer: JointLayer, hulls: Sequence[Hull], price: Floats, widths: Sequence[int]) -> Pick:
    """What a layer does at these prices and widths; the whole layer where nothing is better."""
    cost = layer.dense_cost(widths)
    best, value = Pick(cost=cost, damage=0.0), float(price @ cost)
    rows, columns = int(layer.rows.count(widths)), int(layer.columns.count(widths))
    for hull in hulls:
        form = layer.forms[hull.form_index]
        unit = form.column * columns + form.row * rows
        corner = int(np.searchsorted(hull.slope, -float(price @ unit)))
        cost = hull.rank[corner] * unit + layer.bias * rows
        damage = float(hull.damage[corner])
        if damage + float(price @ cost) < value:
            best, value = Pick(cost=cost, damage=damage), damage + float(price @ cost)
    return best


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Term:
    """A table that goes with a group: (own widths, or own times other widths)."""

    other: int | None
    table: Floats
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wide:
    """What goes with more groups than a table holds: a piece, or a layer with the hulls of its forms."""

    groups: frozenset[int]
    blocks: tuple[int, ...]
    piece: Piece | None
    layer: JointLayer | None
    hulls: tuple[Hull, ...]

    def value(self, price: Floats, widths: WidthIndices) -> Floats:
        """Its damage plus price times cost."""
        if self.layer is not None:
            return value_of(self.layer, self.hulls, price, widths)
        if self.piece is not None:
            priced: Floats = self.piece.cost(widths) @ price
            return priced
        return np.zeros(())


class Priced:
    """Damage plus price times cost, of everything.

    Attributes:
        joint: everything.
        price: (B,) at least 0.
        tables: groups (at most two) and blocks -> values, one axis for each group.
    """

    def __init__(self, joint: Joint, hulls: Sequence[tuple[Hull, ...]], price: Floats) -> None:
        """Price everything.

        Args:
            joint: everything.
            hulls: of the forms of each layer.
            price: (B,) at least 0.
        """
        self.joint = joint
        self.price = price
        tables: dict[Key, Floats] = {key: cell @ price for key, cell in joint.cells.items()}
        wide = [
            Wide(groups=piece.groups, blocks=piece.blocks, piece=piece, layer=None, hulls=())
            for piece in joint.wide
        ]
        self._wide_of: dict[int, list[Wide]] = defaultdict(list)
        for layer, layer_hulls in zip(joint.layers, hulls, strict=True):
            groups = tuple(sorted(layer.groups))
            if len(groups) > MAX_TABLE_GROUPS:
                wide.append(
                    Wide(groups=layer.groups, blocks=layer.blocks, piece=None, layer=layer, hulls=layer_hulls)
                )
                continue
            key = (groups, layer.blocks)
            shape = tuple(len(joint.widths[group].kept) for group in groups)
            value = np.broadcast_to(value_of(layer, layer_hulls, price, width_grid(joint, groups)), shape)
            tables[key] = tables[key] + value if key in tables else value
        self.tables: Mapping[Key, Floats] = tables
        self.wide = tuple(wide)
        for item in wide:
            for group in item.groups:
                self._wide_of[group].append(item)
        self._terms: dict[int, list[_Term]] = defaultdict(list)
        for (groups, blocks), table in tables.items():
            if len(groups) == 1:
                self._terms[groups[0]].append(_Term(other=None, table=table, blocks=blocks))
            if len(groups) == MAX_TABLE_GROUPS:
                first, second = groups
                self._terms[first].append(_Term(other=second, table=table, blocks=blocks))
                self._terms[second].append(
                    _Term(other=first, table=np.ascontiguousarray(table.T), blocks=blocks)
                )
        self._linked = [self._linked_to(group) for group in range(len(joint.widths))]
        self._known: dict[tuple[int, tuple[int, ...], frozenset[int]], Floats] = {}

    def _linked_to(self, group: int) -> tuple[int, ...]:
        """The other groups that the energy of one depends on."""
        others = {term.other for term in self._terms[group] if term.other is not None}
        others.update(*(item.groups for item in self._wide_of[group]))
        return tuple(sorted(others - {group}))

    def energy(self, state: State) -> float:
        """Damage plus price times cost of a choice, layers at their best."""
        total = sum(
            float(group.damage[width]) for group, width in zip(self.joint.widths, state.widths, strict=True)
        )
        for (groups, blocks), table in self.tables.items():
            if is_there(blocks, state.dropped):
                total += float(table[tuple(state.widths[group] for group in groups)])
        for wide in self.wide:
            if is_there(wide.blocks, state.dropped):
                total += float(wide.value(self.price, state.widths))
        for index in state.dropped:
            block = self.joint.blocks[index]
            total += block.damage - float(self.price @ block.rest)
        return total

    def energy_by_width(self, state: State, group: int) -> Floats:
        """(W,) the part of the energy that goes with one group, at each of its widths; not to be changed."""
        # Sweeps come back to the same choice of the groups around one many times.
        key = (group, tuple(state.widths[other] for other in self._linked[group]), state.dropped)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._energy_by_width(state, group)
        return known

    def _energy_by_width(self, state: State, group: int) -> Floats:
        total = self.joint.widths[group].damage.copy()
        for term in self._terms[group]:
            if is_there(term.blocks, state.dropped):
                total += term.table if term.other is None else term.table[:, state.widths[term.other]]
        wide = self._wide_of[group]
        if wide:
            widths: list[int | Ints] = list(state.widths)
            widths[group] = np.arange(len(total))
            for item in wide:
                if is_there(item.blocks, state.dropped):
                    total += item.value(self.price, widths)
        return total

    def energy_by_pair(self, state: State, first: int, second: int) -> Floats:
        """(W, V) the part of the energy that goes with two groups, tables only for what both term."""
        shared = np.zeros((len(self.joint.widths[first].kept), len(self.joint.widths[second].kept)))
        for term in self._terms[first]:
            if term.other == second and is_there(term.blocks, state.dropped):
                shared += term.table
        mine = self.energy_by_width(state, first) - shared[:, state.widths[second]]
        theirs = self.energy_by_width(state, second) - shared[state.widths[first]]
        total: Floats = mine[:, None] + theirs[None] + shared
        return total

    def linked_groups(self) -> list[tuple[int, int]]:
        """Groups that share a table."""
        return list(dict.fromkeys((g[0], g[1]) for g, _ in self.tables if len(g) == MAX_TABLE_GROUPS))

    def settled(self, state: State, held: Collection[int] = ()) -> State:
        """A choice from which no move of one group, one block or two groups leads to less energy.

        Args:
            state: to start from.
            held: groups that stay as they are, unless their block goes; () for none.

        Returns:
            The choice.
        """
        for _ in range(_MAX_SWEEPS):
            moved = self._move_each_group(state, held)
            moved = self._toggle_blocks(moved, held)
            if moved == state:
                moved = self._move_pairs(state, held)
            if moved == state:
                return state
            state = moved
        return state

    def free_groups(self, state: State) -> list[int]:
        """Groups that are not inside a dropped block."""
        return [group for group, homes in enumerate(self.joint.homes) if not is_gone(homes, state.dropped)]

    def _move_each_group(self, state: State, held: Collection[int] = ()) -> State:
        widths = list(state.widths)
        for group in self.free_groups(state):
            if group in held:
                continue
            values = self.energy_by_width(State(widths=tuple(widths), dropped=state.dropped), group)
            best = int(np.argmin(values))
            if values[best] < values[widths[group]] - _ROUNDING * abs(values[widths[group]]):
                widths[group] = best
        return State(widths=tuple(widths), dropped=state.dropped)

    def _toggle_blocks(self, state: State, held: Collection[int]) -> State:
        energy = self.energy(state) if self.joint.blocks else 0.0
        for index, block in enumerate(self.joint.blocks):
            if block.outer & state.dropped:
                continue
            moved = self.toggled(state, index, held)
            value = self.energy(moved)
            if value < energy - _ROUNDING * abs(energy):
                state, energy = moved, value
        return state

    def toggled(self, state: State, block: int, held: Collection[int] = ()) -> State:
        """The choice with one block dropped, or put back."""
        if block not in state.dropped:
            return normalised(self.joint, state.widths, state.dropped | {block})
        moved = State(widths=state.widths, dropped=state.dropped - {block})
        return self._move_each_group(moved, held)

    def _move_pairs(self, state: State, held: Collection[int]) -> State:
        free = set(self.free_groups(state)) - set(held)
        for first, second in self.linked_groups():
            if first not in free or second not in free:
                continue
            values = self.energy_by_pair(state, first, second)
            mine, theirs = np.unravel_index(int(np.argmin(values)), values.shape)
            now = values[state.widths[first], state.widths[second]]
            if values[mine, theirs] < now - _ROUNDING * abs(now):
                widths = list(state.widths)
                widths[first], widths[second] = int(mine), int(theirs)
                moved = State(widths=tuple(widths), dropped=state.dropped)
                if not self.wide or self.energy(moved) < self.energy(state):
                    state = moved
        return state
