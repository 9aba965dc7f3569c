# SPDX-License-Identifier: Apache-2.0
"""The best widths and blocks at fixed prices: one group at a time, then two that share a layer."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from slimrank.select.joint._counts import Places
from slimrank.select.joint._pieces import GRID, JointLayer, Piece, Ranks
from slimrank.select.joint._table import Joint, Key, State, grid, is_gone, is_there, proper
from slimrank.select.layers._table import Floats, Ints

_SWEEPS = 20
_EXACT = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Hull:
    """The ranks of one form that are best at some price, by rising rank.

    Attributes:
        place: of the form in its layer.
        rank: (H,) float64.
        damage: (H,) float64, falling.
        slope: (H - 1,) float64, rising from below: minus the fall in damage per rank to the next one.
    """

    place: int
    rank: Floats
    damage: Floats
    slope: Floats


def hull_of(place: int, ranks: Ranks) -> Hull:
    """The lower hull of damage over rank.

    Args:
        place: of the form in its layer.
        ranks: its options.

    Returns:
        The hull, as far as damage falls.
    """
    kept: list[int] = []
    rank, damage = ranks.ranks.astype(np.float64), ranks.damage
    for at in range(len(rank)):
        if kept and damage[at] >= damage[kept[-1]]:
            continue
        while len(kept) > 1:
            before, last = kept[-2], kept[-1]
            # The last one is above the line from the one before it to the new one.
            across = (damage[before] - damage[last]) * (rank[at] - rank[before])
            if across > (damage[before] - damage[at]) * (rank[last] - rank[before]):
                break
            kept.pop()
        kept.append(at)
    rank, damage = rank[kept], damage[kept]
    return Hull(place=place, rank=rank, damage=damage, slope=np.diff(damage) / np.diff(rank))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pick:
    """What a layer does at fixed prices and widths.

    Attributes:
        cost: (B,) float64.
        damage: predicted.
    """

    cost: Floats
    damage: float


def value_of(layer: JointLayer, hulls: Sequence[Hull], price: Floats, at: Places) -> Floats:
    """The least damage plus price times cost of a layer.

    Args:
        layer: the layer.
        hulls: of its forms.
        price: (B,) at least 0.
        at: places of widths that broadcast.

    Returns:
        float64, of the shape that the places broadcast to. Ranks above the full one, which never pay, are
        not excluded.
    """
    value: Floats = layer.dense_cost(at) @ price
    rows, columns = (np.asarray(dim.count(at), dtype=np.float64) for dim in (layer.rows, layer.columns))
    bias = (price @ layer.bias) * rows
    for hull in hulls:
        form = layer.forms[hull.place]
        per_rank = (price @ form.column) * columns + (price @ form.row) * rows
        best = np.searchsorted(hull.slope, -per_rank)
        value = np.minimum(value, hull.damage[best] + hull.rank[best] * per_rank + bias)
    return value


def pick_of(layer: JointLayer, hulls: Sequence[Hull], price: Floats, at: Sequence[int]) -> Pick:
    """What a layer does at these prices and widths; the whole layer where nothing is better."""
    cost = layer.dense_cost(at)
    best, value = Pick(cost=cost, damage=0.0), float(price @ cost)
    rows, columns = int(layer.rows.count(at)), int(layer.columns.count(at))
    for hull in hulls:
        form = layer.forms[hull.place]
        unit = form.column * columns + form.row * rows
        place = int(np.searchsorted(hull.slope, -float(price @ unit)))
        cost = hull.rank[place] * unit + layer.bias * rows
        damage = float(hull.damage[place])
        if damage + float(price @ cost) < value:
            best, value = Pick(cost=cost, damage=damage), damage + float(price @ cost)
    return best


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Touch:
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

    def value(self, price: Floats, at: Places) -> Floats:
        """Its damage plus price times cost."""
        if self.layer is not None:
            return value_of(self.layer, self.hulls, price, at)
        if self.piece is not None:
            priced: Floats = self.piece.cost(at) @ price
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
        for layer, own in zip(joint.layers, hulls, strict=True):
            groups = tuple(sorted(layer.groups))
            if len(groups) > GRID:
                one = Wide(groups=layer.groups, blocks=layer.blocks, piece=None, layer=layer, hulls=own)
                wide.append(one)
                continue
            key = (groups, layer.blocks)
            shape = tuple(len(joint.widths[group].kept) for group in groups)
            value = np.broadcast_to(value_of(layer, own, price, grid(joint, groups)), shape)
            tables[key] = tables[key] + value if key in tables else value
        self.tables: Mapping[Key, Floats] = tables
        self.wide = tuple(wide)
        for one in wide:
            for group in one.groups:
                self._wide_of[group].append(one)
        self._touches: dict[int, list[_Touch]] = defaultdict(list)
        for (groups, blocks), table in tables.items():
            if len(groups) == 1:
                self._touches[groups[0]].append(_Touch(other=None, table=table, blocks=blocks))
            if len(groups) == GRID:
                first, second = groups
                self._touches[first].append(_Touch(other=second, table=table, blocks=blocks))
                self._touches[second].append(
                    _Touch(other=first, table=np.ascontiguousarray(table.T), blocks=blocks)
                )

    def energy(self, state: State) -> float:
        """Damage plus price times cost of a choice, layers at their best."""
        total = sum(float(one.damage[place]) for one, place in zip(self.joint.widths, state.at, strict=True))
        for (groups, blocks), table in self.tables.items():
            if is_there(blocks, state.dropped):
                total += float(table[tuple(state.at[group] for group in groups)])
        for wide in self.wide:
            if is_there(wide.blocks, state.dropped):
                total += float(wide.value(self.price, state.at))
        for place in state.dropped:
            block = self.joint.blocks[place]
            total += block.damage - float(self.price @ block.rest)
        return total

    def by_width(self, state: State, group: int) -> Floats:
        """(W,) the part of the energy that goes with one group, at each of its widths."""
        total = self.joint.widths[group].damage.copy()
        for touch in self._touches[group]:
            if is_there(touch.blocks, state.dropped):
                total += touch.table if touch.other is None else touch.table[:, state.at[touch.other]]
        wide = self._wide_of[group]
        if wide:
            at: list[int | Ints] = list(state.at)
            at[group] = np.arange(len(total))
            for one in wide:
                if is_there(one.blocks, state.dropped):
                    total += one.value(self.price, at)
        return total

    def by_pair(self, state: State, first: int, second: int) -> Floats:
        """(W, V) the part of the energy that goes with two groups, tables only for what both touch."""
        shared = np.zeros((len(self.joint.widths[first].kept), len(self.joint.widths[second].kept)))
        for touch in self._touches[first]:
            if touch.other == second and is_there(touch.blocks, state.dropped):
                shared += touch.table
        one = self.by_width(state, first) - shared[:, state.at[second]]
        other = self.by_width(state, second) - shared[state.at[first]]
        total: Floats = one[:, None] + other[None] + shared
        return total

    def pairs(self) -> list[tuple[int, int]]:
        """Groups that share a table."""
        return list(dict.fromkeys((g[0], g[1]) for g, _ in self.tables if len(g) == GRID))

    def settled(self, state: State, held: Collection[int] = ()) -> State:
        """A choice from which no move of one group, one block or two groups leads to less energy.

        Args:
            state: to start from.
            held: groups that stay as they are, unless their block goes; () for none.

        Returns:
            The choice.
        """
        for _ in range(_SWEEPS):
            moved = self._one_by_one(state, held)
            moved = self._blocks(moved, held)
            if moved == state:
                moved = self._two_by_two(state, held)
            if moved == state:
                return state
            state = moved
        return state

    def free(self, state: State) -> list[int]:
        """Groups that are not inside a dropped block."""
        return [group for group, homes in enumerate(self.joint.homes) if not is_gone(homes, state.dropped)]

    def _one_by_one(self, state: State, held: Collection[int] = ()) -> State:
        at = list(state.at)
        for group in self.free(state):
            if group in held:
                continue
            values = self.by_width(State(at=tuple(at), dropped=state.dropped), group)
            best = int(np.argmin(values))
            if values[best] < values[at[group]] - _EXACT * abs(values[at[group]]):
                at[group] = best
        return State(at=tuple(at), dropped=state.dropped)

    def _blocks(self, state: State, held: Collection[int]) -> State:
        energy = self.energy(state) if self.joint.blocks else 0.0
        for place, block in enumerate(self.joint.blocks):
            if block.outer & state.dropped:
                continue
            moved = self.toggled(state, place, held)
            value = self.energy(moved)
            if value < energy - _EXACT * abs(energy):
                state, energy = moved, value
        return state

    def toggled(self, state: State, block: int, held: Collection[int] = ()) -> State:
        """The choice with one block dropped, or put back."""
        if block not in state.dropped:
            return proper(self.joint, state.at, state.dropped | {block})
        moved = State(at=state.at, dropped=state.dropped - {block})
        return self._one_by_one(moved, held)

    def _two_by_two(self, state: State, held: Collection[int]) -> State:
        free = set(self.free(state)) - set(held)
        for first, second in self.pairs():
            if first not in free or second not in free:
                continue
            values = self.by_pair(state, first, second)
            one, other = np.unravel_index(int(np.argmin(values)), values.shape)
            now = values[state.at[first], state.at[second]]
            if values[one, other] < now - _EXACT * abs(now):
                at = list(state.at)
                at[first], at[second] = int(one), int(other)
                moved = State(at=tuple(at), dropped=state.dropped)
                if not self.wide or self.energy(moved) < self.energy(state):
                    state = moved
        return state
