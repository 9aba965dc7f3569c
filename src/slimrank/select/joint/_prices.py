# SPDX-License-Identifier: Apache-2.0
"""Phase 1: the best widths and blocks at fixed prices: one group at a time, then two that share a layer.

With prices on the budgets no budget has to be kept any more, so layers stop competing: each takes the rank
with the least damage plus price times cost. The sum of that over everything is called energy here (the
Lagrangian).
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slimrank.select.joint._pieces import MAX_TABLE_GROUPS, Ranks
from slimrank.select.joint._shapes import Shapes
from slimrank.select.joint._table import Joint, Key, State, is_there, normalised
from slimrank.select.layers._table import UNTOUCHED, Floats, Ints

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
        rank: (H,) int64.
        damage: (H,) float64, falling.
        slope: (H - 1,) float64, rising from below: minus the fall in damage per rank to the next one.
    """

    rank: Ints
    damage: Floats
    slope: Floats


def hull_of(ranks: Ranks) -> Hull:
    """The lower hull of damage over rank.

    Args:
        ranks: options of one form.

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
    return Hull(rank=ranks.ranks[kept], damage=damage, slope=np.diff(damage) / np.diff(rank))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Picks:
    """What layers do at fixed prices and shapes.

    Attributes:
        value: (...) float64, damage plus price times cost.
        damage: (...) float64.
        form: (...) int64, index of the form in its layer; UNTOUCHED for the layer without a pair.
        rank: (...) int64; 0 for the layer without a pair.
    """

    value: Floats
    damage: Floats
    form: Ints
    rank: Ints


class Hulls:
    """The hulls of all forms of L layers.

    Attributes:
        of: of each layer, the hull of each of its forms.
    """

    def __init__(self, joint: Joint) -> None:
        """Find the hulls.

        Args:
            joint: everything.
        """
        self._grids = joint.grids
        self.of = tuple(tuple(hull_of(form) for form in layer.forms) for layer in joint.layers)
        forms = max((len(hulls) for hulls in self.of), default=0)
        corners = max((len(hull.rank) for hulls in self.of for hull in hulls), default=1)
        count = len(joint.layers)
        # Forms that a layer does not have never pay; corners that a form does not have are never reached.
        self._damage = np.full((forms, corners, count), np.inf)
        self._rank = np.zeros((forms, corners, count), dtype=np.int64)
        # One less than a power of two: each step of the search halves what is left.
        self._slope = np.full((forms, 2 ** (corners - 1).bit_length() - 1, count), np.inf)
        for index, hulls in enumerate(self.of):
            for place, hull in enumerate(hulls):
                size = len(hull.rank)
                self._damage[place, :size, index] = hull.damage
                self._rank[place, :size, index] = hull.rank
                self._slope[place, : size - 1, index] = hull.slope

    def picks(self, layer: Ints, shapes: Shapes, price: Floats) -> Picks:
        """The option of each layer with the least damage plus price times cost.

        Args:
            layer: (...) int64, index of each layer.
            shapes: (...) of what is left of it.
            price: (B,) at least 0.

        Returns:
            The layer without a pair where nothing is better. Ranks above the full one, which never pay, are
            not excluded.
        """
        value: Floats = shapes.dense @ price
        damage, form = np.zeros(value.shape), np.full(value.shape, UNTOUCHED)
        rank = np.zeros(value.shape, dtype=np.int64)
        bias = (self._grids.bias @ price)[layer] * shapes.rows
        for index, slopes in enumerate(self._slope):
            grids = self._grids
            each, fixed = grids.each[index] @ price, grids.fixed[index] @ price
            per_rank = self._by_shape((grids.column[index], grids.row[index]), layer, shapes, price)
            per_rank += each[layer]
            at_any = self._by_shape((grids.any_column[index], grids.any_row[index]), layer, shapes, price)
            corner = np.zeros(value.shape, dtype=np.int64)
            step = (len(slopes) + 1) // 2
            while step:
                corner += step * (slopes[corner + step - 1, layer] < -per_rank)
                step //= 2
            new_damage, new_rank = self._damage[index, corner, layer], self._rank[index, corner, layer]
            new = new_damage + new_rank * per_rank + bias + fixed[layer] + at_any
            pays = new < value
            value, damage = np.where(pays, new, value), np.where(pays, new_damage, damage)
            form, rank = np.where(pays, index, form), np.where(pays, new_rank, rank)
        return Picks(value=value, damage=damage, form=form, rank=rank)

    def _by_shape(self, units: tuple[Floats, Floats], layer: Ints, shapes: Shapes, price: Floats) -> Floats:
        """(...) float64, price of what goes with columns and rows.

        Args:
            units: (L, B) each, cost per column and per row.
            layer: (...) int64, index of each layer.
            shapes: (...) of what is left of it.
            price: (B,).
        """
        column, row = (unit @ price for unit in units)
        found: Floats = column[layer] * shapes.columns + row[layer] * shapes.rows
        latency = self._grids.latency
        if shapes.stairs is not None and latency is not None:
            rows, columns = (
                stairs - size
                for stairs, size in zip(shapes.stairs, (shapes.rows, shapes.columns), strict=True)
            )
            for unit, more in zip(units, (columns, rows), strict=True):
                found += price[latency] * unit[:, latency][layer] * more
        return found


class Picker(Protocol):
    """Tells what layers do at fixed prices and shapes."""

    def picks(self, layer: Ints, shapes: Shapes, price: Floats) -> Picks:
        """The option of each layer with the least damage plus price times cost."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Along:
    """The part of the energy that goes with one group.

    Attributes:
        energy: (W,) at each of its widths.
        best: index of the least.
    """

    energy: Floats
    best: int


class Priced:
    """Damage plus price times cost, of everything.

    Attributes:
        joint: everything.
        price: (B,) at least 0.
        tables: groups (at most two) and blocks -> values, one axis for each group.
    """

    def __init__(self, joint: Joint, hulls: Picker, price: Floats) -> None:
        """Price everything.

        Args:
            joint: everything.
            hulls: of its layers, or what else tells what they do.
            price: (B,) at least 0.
        """
        self.joint = joint
        self.price = price
        self._hulls = hulls
        # In the order of the entries of ``joint.tables``.
        self._values: Floats = joint.cost @ price
        np.add.at(
            self._values, joint.entries, hulls.picks(joint.grids.layer, joint.grids.shapes, price).value
        )
        self._tables = joint.tables.tables(self._values)
        self.tables: Mapping[Key, Floats] = dict(zip(joint.keys, self._tables, strict=True))
        sizes = np.array([len(group.damage) for group in joint.widths], dtype=np.int64)
        # Of each group, its damages and where they begin.
        self._damage: Floats = np.concatenate([np.zeros(0), *(group.damage for group in joint.widths)])
        self._first: Ints = sizes.cumsum() - sizes
        # Of each block, what dropping it adds.
        self._without = [block.damage - float(price @ block.rest) for block in joint.blocks]
        self._pieces_of: dict[int, list[int]] = defaultdict(list)
        for number, piece in enumerate(joint.wide):
            for group in piece.groups:
                self._pieces_of[group].append(number)
        self._known_pieces: dict[tuple[int, int | None, tuple[int, ...]], Floats] = {}
        self._known_layers: dict[tuple[int | None, tuple[int, ...]], Floats] = {}
        self._known: dict[tuple[int, tuple[int, ...], frozenset[int]], _Along] = {}

    def energy(self, state: State) -> float:
        """Damage plus price times cost of a choice, layers at their best."""
        return float(self.energies([state])[0])

    def energies(self, states: Sequence[State]) -> Floats:
        """(n,) the same of n choices."""
        joint = self.joint
        widths = np.array([state.widths for state in states], dtype=np.int64).T
        total: Floats = self._damage[self._first[:, None] + widths].sum(axis=0)
        values = self._values[joint.tables.at(widths)]
        for place, state in enumerate(states):
            widths_now, dropped = state.widths, state.dropped
            total[place] += values[joint.standing.without(dropped).tables, place].sum()
            for number, piece in enumerate(joint.wide):
                if is_there(piece.blocks, dropped):
                    total[place] += self._piece_along(number, widths_now)
            if joint.grids.wide_layers is not None:
                total[place] += self._wide_layers_along(widths_now, dropped)
            total[place] += sum(self._without[index] for index in sorted(dropped))
        return total

    def _piece_along(self, number: int, widths: Sequence[int], group: int | None = None) -> Floats:
        """The price of ``joint.wide[number]``, or its prices (W,) at each width of one of its groups.

        Each is found once: sweeps come back to the same few groups while others change.
        """
        piece = self.joint.wide[number]
        key = (number, group, tuple([widths[other] for other in piece.groups if other != group]))
        known = self._known_pieces.get(key)
        if known is None:
            along: list[int | Ints] = list(widths)
            if group is not None:
                along[group] = np.arange(len(self.joint.widths[group].damage))
            known = self._known_pieces[key] = piece.cost(along) @ self.price
        return known

    def _wide_layers_along(
        self, widths: Sequence[int], dropped: frozenset[int], group: int | None = None
    ) -> Floats:
        """The value of all wide layers that are there, or their values (W,) at each width of one group."""
        grids = self.joint.grids
        wide = grids.wide_layers if group is None else grids.reading[group]
        if wide is None:
            return np.zeros(())
        key = (group, tuple([widths[other] for other in wide.groups if other != group]))
        known = self._known_layers.get(key)
        if known is None:
            shapes = wide.at(np.array(widths)) if group is None else wide.along(widths, group)
            index = wide.index if group is None else wide.index[:, None]
            known = self._known_layers[key] = self._hulls.picks(index, shapes, self.price).value
        if dropped:
            known = known[np.isin(wide.index, self.joint.standing.without(dropped).layers)]
        total: Floats = known.sum(axis=0)
        return total

    def energy_by_width(self, state: State, group: int) -> Floats:
        """(W,) the part of the energy that goes with one group, at each of its widths; not to be changed."""
        return self._along(state.widths, state.dropped, group).energy

    def _along(self, widths: Sequence[int], dropped: frozenset[int], group: int) -> "_Along":
        # Sweeps come back to the same choice of what is around one many times.
        key = (
            group,
            tuple([widths[other] for other in self.joint.linked[group]]),
            dropped & self.joint.near[group],
        )
        known = self._known.get(key)
        if known is None:
            energy = self._energy_along(widths, dropped, group)
            known = self._known[key] = _Along(energy=energy, best=int(energy.argmin()))
        return known

    def _energy_along(self, widths: Sequence[int], dropped: frozenset[int], group: int) -> Floats:
        found = self.joint.widths[group].damage.copy()
        for touching in self.joint.touching[group]:
            if is_there(touching.blocks, dropped):
                table = self._tables[touching.table]
                if touching.other is not None:
                    other = widths[touching.other]
                    table = table[:, other] if touching.axis == 0 else table[other]
                found += table
        for number in self._pieces_of[group]:
            if is_there(self.joint.wide[number].blocks, dropped):
                found += self._piece_along(number, widths, group)
        if group in self.joint.grids.reading:
            found += self._wide_layers_along(widths, dropped, group)
        return found

    def energy_by_pair(self, state: State, first: int, second: int) -> Floats:
        """(W, V) the part of the energy that goes with two groups, tables only for what both term."""
        shared = np.zeros((len(self.joint.widths[first].kept), len(self.joint.widths[second].kept)))
        for touching in self.joint.touching[first]:
            if touching.other == second and is_there(touching.blocks, state.dropped):
                table = self._tables[touching.table]
                shared += table if touching.axis == 0 else table.T
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

    def _move_each_group(self, state: State, held: Collection[int] = ()) -> State:
        widths = list(state.widths)
        for group in self.joint.standing.without(state.dropped).groups:
            if group in held:
                continue
            along = self._along(widths, state.dropped, group)
            if along.best == widths[group]:
                continue
            now = along.energy[widths[group]]
            if along.energy[along.best] < now - _ROUNDING * abs(now):
                widths[group] = along.best
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
        free = set(self.joint.standing.without(state.dropped).groups) - set(held)
        has_wide = bool(self.joint.wide) or self.joint.grids.wide_layers is not None
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
                if not has_wide or self.energy(moved) < self.energy(state):
                    state = moved
        return state
