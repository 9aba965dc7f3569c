# SPDX-License-Identifier: Apache-2.0
"""Ranks, widths and blocks chosen together, under every budget.

At fixed prices on the budgets every layer has a best option at any widths, so what is left to choose are the
widths and the blocks: one at a time, and two that share a layer together, until nothing moves. Prices come
from bisection. Around the widths found on the way all groups are then moved at once, by the knapsack, which
spends what the prices leave; widths are held and the ranks chosen by the exact knapsack; last, single groups,
blocks and pairs of groups are moved wherever the prices do not rule out a gain. Where only groups and blocks
are open and the bound leaves few choices, all of these are looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.optimize import linprog

from slimrank.select.joint._all_at_once import moved_at_once
from slimrank.select.joint._bound import bound_of, bounds_of
from slimrank.select.joint._enumerate import best_of_few
from slimrank.select.joint._prices import Priced, hull_of, pick_of
from slimrank.select.joint._ranks import Answer, RankTables, standing_damage
from slimrank.select.joint._table import Joint, State, is_there, proper, standing_cost
from slimrank.select.layers._table import Floats, added, used

_TRIES = 24
_RISES = 8
_STEP = 16.0
_CLOSE = 1.02
_ROUNDS = 10
_LOOKED_AT = 12
_FINALISTS = 3
_FINAL_WORK = 200_000
_MOVES = 100_000
_NEAR = 1e-3
_WORK = 1_000_000
_OVERHEAD = 5_000
_FEWEST = 20
_BARE_LOOKS = 100
_PAIR_MOVES = 1000
_BETTER = 1e-9
_BOUNDS = 6
_FACTOR = 1.3
_STARTS = 6
_TURNS = 6
_FAR = 0.01
_JUMPS = 8


def choose_joint(joint: Joint, pruned: Joint | None = None) -> tuple[Answer | None, float]:
    """The joint choice with the least damage that was found.

    Args:
        joint: everything that may be chosen.
        pruned: the same without the ranks; None where there are none.

    Returns:
        The choice, None where none was found that keeps every budget; and what the damage of no choice can
        undercut. The damage is at most that of the best ranks alone, and of what is found without ranks.
    """
    alone = choose_joint(pruned)[0] if pruned is not None and joint.layers else None
    search = _Search(joint)
    best = search.run([alone.state] if alone else [])
    return search.bounded(*best) if best else (None, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Met:
    """A choice met at some prices.

    Attributes:
        price: (B,) at least 0.
        state: its widths and blocks.
        over: (B,) float64, its cost above the room.
        damage: of it, layers at what these prices ask for.
    """

    price: Floats
    state: State
    over: Floats
    damage: float

    @property
    def value(self) -> float:
        """Damage plus the price of what is over: if nothing is less at these prices, a bound."""
        return self.damage + float(self.price @ self.over)


class _Search:
    """One search: what was looked at, and what came of it."""

    def __init__(self, joint: Joint) -> None:
        self._joint = joint
        self._hulls = [
            tuple(hull_of(place, form) for place, form in enumerate(layer.forms)) for layer in joint.layers
        ]
        self._some = RankTables(joint, self._hulls)
        self._all = RankTables(joint)
        self._answers: dict[State, Answer | None] = {}
        self._spent: set[State] = set()
        self._is_exact = not joint.layers
        self._whole = State(at=joint.whole)

    def run(self, starts: Sequence[State] = ()) -> tuple[Answer, Floats] | None:
        """The best choice found, as good as the starts with the best ranks, and prices near it."""
        must = [self._exact(state) for state in (self._whole, *starts)]
        price, visited = self._prices()
        for state in (self._whole, State(at=(0,) * len(self._joint.widths)), *starts, *visited):
            self._look(state)
        if self._best() is None:
            for state in self._bare():
                self._look(state)
        priced = self._priced(price)
        bound = bound_of(priced)
        for state in visited[:_STARTS]:
            best = self._best()
            if best is None or best.damage * (1 - _NEAR) > bound:
                self._spend(price, state)
        self._drop(priced, bound)
        self._jump(priced, bound)
        self._improve(priced, bound)
        answers = [*self._finals(priced), *(answer for answer in must if answer is not None)]
        return (min(answers, key=lambda answer: answer.damage), price) if answers else None

    def _finals(self, priced: Priced) -> list[Answer]:
        """The most hopeful of the choices looked at, each with the ranks that suit it best."""
        best = self._best()
        if best is None:
            return []
        room = float(priced.price @ self._joint.room)
        hopeful = [
            (np.inf if answer is None else answer.damage, low, state)
            for state, answer in self._answers.items()
            if (low := priced.energy(state) - room) < best.damage
        ]
        count = max(_FINAL_WORK // (self._all.size + _OVERHEAD), _FINALISTS)
        # The quick choice of ranks may miss much where few layers have any: what prices allow counts as well.
        near = sorted(hopeful, key=lambda entry: entry[:2])[: (count + 1) // 2]
        allowed = sorted(hopeful, key=lambda entry: entry[1::-1])
        states = dict.fromkeys(state for _, _, state in (*near, *allowed))
        exact = [self._exact(state) for state in islice(states, count)]
        return [best, *(answer for answer in exact if answer is not None)]

    def _best(self) -> Answer | None:
        known = [answer for answer in self._answers.values() if answer is not None]
        return min(known, key=lambda answer: answer.damage) if known else None

    def _look(self, state: State) -> Answer | None:
        if state not in self._answers:
            self._answers[state] = self._some.answer(state, exact=False)
        return self._answers[state]

    def _priced(self, price: Floats) -> Priced:
        return Priced(self._joint, self._hulls, price)

    def _prices(self) -> tuple[Floats, list[State]]:
        """Prices at which the choice they ask for is about within the budgets, and choices met on the way."""
        level = max((one.damage.max() for one in self._joint.widths), default=0.0) or 1.0
        met = self._bisected(level)
        most = max(float(np.max(one.price)) for one in met)
        rounds = _ROUNDS if len(self._joint.metrics) > 1 else 0
        for _ in range(rounds):
            cut = self._cut(met, most)
            if cut is None:
                break
            price, value = cut
            met += self._at(price, (met[-1].state,))
            if met[-1].value >= value - _NEAR * abs(value):
                break
        best = max(met, key=lambda one: one.value)
        # The last prices are the nearest.
        return best.price, list(dict.fromkeys(one.state for one in reversed(met)))[:_LOOKED_AT]

    def _at(self, price: Floats, starts: Sequence[State]) -> list[_Met]:
        """Where starts settle at some prices, the best last."""
        priced = self._priced(price)
        found = []
        for state in dict.fromkeys(priced.settled(start) for start in (*starts, self._whole)):
            cost = standing_cost(self._joint, state.at, state.dropped)
            damage = standing_damage(self._joint, state)
            for layer, hulls in zip(self._joint.layers, self._hulls, strict=True):
                if is_there(layer.blocks, state.dropped):
                    pick = pick_of(layer, hulls, price, state.at)
                    cost, damage = cost + pick.cost, damage + pick.damage
            over = cost - self._joint.room
            found.append(_Met(price=price, state=state, over=over, damage=damage))
        return sorted(found, key=lambda one: -one.value)

    def _bisected(self, level: float) -> list[_Met]:
        """Choices met while looking for the lowest level of prices that keeps the budgets, in that order."""
        low, high, step = 0.0, np.inf, _STEP
        met: list[_Met] = []
        for tries in range(_TRIES):
            met += self._at(level / self._joint.scale, [one.state for one in met[-1:]])
            if (met[-1].over <= 0).all():
                high = level
            else:
                low = level
            if (high < np.inf and low > 0 and high < _CLOSE * low) or (high == np.inf and tries > _RISES):
                break
            level = low * step if high == np.inf else high / step if low == 0 else (low * high) ** 0.5
        return met

    def _cut(self, met: Sequence[_Met], most: float) -> tuple[Floats, float] | None:
        """The prices at which the choices met leave the highest bound, and that bound."""
        scale = self._joint.scale
        over = np.array([one.over for one in met]) / scale
        solved = linprog(
            np.append(np.zeros(len(scale)), -1.0),
            A_ub=np.column_stack([-over, np.ones(len(met))]),
            b_ub=np.array([one.damage for one in met]),
            bounds=[*((0.0, _STEP * most * unit) for unit in scale), (None, None)],
            method="highs-ds",
        )
        if solved.status != 0:
            return None
        return np.maximum(solved.x[:-1], 0.0) / scale, float(solved.x[-1])

    def _bare(self) -> list[State]:
        """The smallest widths, without blocks: what is left where budgets are hard to keep."""
        joint = self._joint
        every = range(len(joint.blocks))
        lowest = (0,) * len(joint.widths)
        return [proper(joint, lowest, every), *(proper(joint, lowest, {block}) for block in every)]

    def _spend(self, price: Floats, state: State) -> None:
        """Move all widths at once, around a choice and around what comes of it, until nothing new comes."""
        spare = np.zeros(len(price))
        for turn in range(_TURNS):
            answer = self._look(state)
            if answer is None:
                table = self._some.at(state)
                choice = np.argmin(table.damage + added(price, table.cost), axis=1)
                if turn:
                    # What moved together costs more than each alone.
                    spare += np.maximum(used(table, choice) - table.room, 0.0)
            else:
                table, choice = answer.table, answer.choice
                spare[:] = 0.0
            if state in self._spent and not spare.any():
                return
            self._spent.add(state)
            found = moved_at_once(self._joint, table, state, choice, spare=spare, exact=self._is_exact)
            if found is None:
                return
            state, gap = found
            # One that was cut short takes long.
            self._is_exact &= gap <= _NEAR

    def _drop(self, priced: Priced, bound: float) -> None:
        """Let blocks go, one or the first few by their damage, and all groups follow.

        What one saves may be of use only once groups that went for it are whole again.
        """
        best = self._best()
        if best is None or best.damage * (1 - _FAR) <= bound:
            return
        damages = [block.damage for block in self._joint.blocks]
        order = sorted(range(len(damages)), key=lambda block: damages[block])
        some = dict.fromkeys(
            frozenset(order[start:end]) for end in range(1, len(order) + 1) for start in (0, end - 1)
        )
        found = dict.fromkeys(
            proper(self._joint, widths, dropped)
            for dropped in some
            for widths in (best.state.at, self._joint.whole)
        )
        starts = [one for one in found if sum(damages[block] for block in one.dropped) < best.damage]
        for start in sorted(starts, key=priced.energy)[: 2 * _JUMPS]:
            self._spend(priced.price, start)

    def _jump(self, priced: Priced, bound: float) -> None:
        """Hold one group at a width far from its own that the bound allows, and let all others follow."""
        best = self._best()
        if best is None or best.damage * (1 - _FAR) <= bound:
            return
        found = []
        for group, values in enumerate(bounds_of(priced).by_width):
            for place in _across(values, best.state.at[group], _FAR * best.damage):
                found.append((float(values[place]), group, place))
        for value, group, place in sorted(found)[:_JUMPS]:
            if value < best.damage:
                start = _with(best.state, {group: place})
                self._spend(priced.price, priced.settled(start, held=(group,)))

    def _improve(self, priced: Priced, bound: float) -> None:
        """Move single groups, blocks and pairs of groups: from the best choice, then from the next."""
        left = max(_WORK // (self._some.size + _OVERHEAD), _FEWEST) if self._joint.layers else _BARE_LOOKS
        # Every two widths of any two groups are one move.
        effort = sum(len(one.kept) for one in self._joint.widths) ** 2 // _MOVES
        expanded: set[State] = set()
        while left > 0:
            known = [answer for answer in self._answers.values() if answer is not None]
            fresh = [answer for answer in known if answer.state not in expanded]
            if not fresh:
                return
            best = min(answer.damage for answer in known)
            start = min(fresh, key=lambda answer: answer.damage)
            if best * (1 - _NEAR) <= bound:
                return
            if start.damage == best and start.state not in self._spent:
                self._spend(priced.price, start.state)
                continue
            expanded.add(start.state)
            left -= effort
            for state in self._moves(priced, start.state, best * (1 - _BETTER)):
                if left > 0 and state not in self._answers:
                    left -= 1
                    answer = self._look(state)
                    if answer is not None and answer.damage < best * (1 - _BETTER):
                        # What is left of this start is looked at again if its turn comes.
                        expanded.discard(start.state)
                        break

    def _moves(self, priced: Priced, state: State, below: float) -> list[State]:
        """Choices near one that its prices do not rule out, the most hopeful first."""
        joint = self._joint
        energy = priced.energy(state)
        # No ranks at these widths undercut the energy less the price of the room.
        gain = below - energy + float(priced.price @ joint.room)
        steps = []
        for group in priced.free(state):
            values = priced.by_width(state, group)
            steps.append((group, values - values[state.at[group]]))
        found = [
            (float(values[place]), _with(state, {group: int(place)}))
            for group, values in steps
            for place in np.flatnonzero(values < gain)
            if place != state.at[group]
        ]
        found += [(priced.energy(moved) - energy, moved) for moved in self._block_moves(priced, state)]
        found += self._pair_moves(priced, state, steps, gain)
        found.sort(key=lambda entry: entry[0])
        return list(dict.fromkeys(one for value, one in found if value < gain))

    def _block_moves(self, priced: Priced, state: State) -> list[State]:
        """One block dropped, put back, or dropped in the place of another."""
        found = []
        for start in (state, *(priced.toggled(state, block) for block in sorted(state.dropped))):
            for block, one in enumerate(self._joint.blocks):
                if not one.outer & start.dropped:
                    found.append(priced.toggled(start, block))
        return found

    def _pair_moves(
        self, priced: Priced, state: State, steps: list[tuple[int, Floats]], gain: float
    ) -> list[tuple[float, State]]:
        shared = set(priced.pairs())
        found: list[tuple[float, int, int, int, int]] = []
        each = max(_PAIR_MOVES // max(len(steps), 1) ** 2, 2)
        for one, (first, mine) in enumerate(steps):
            for second, theirs in steps[one + 1 :]:
                if (first, second) in shared:
                    values = priced.by_pair(state, first, second)
                    values = values - values[state.at[first], state.at[second]]
                elif mine.min() + theirs.min() < gain:
                    values = mine[:, None] + theirs[None]
                else:
                    continue
                places = np.flatnonzero(values < gain)
                places = places[np.argsort(values.flat[places], kind="stable")[:each]]
                for a, b in zip(*np.unravel_index(places, values.shape), strict=True):
                    found.append((float(values[a, b]), first, int(a), second, int(b)))
        found.sort()
        return [(value, _with(state, {one: a, two: b})) for value, one, a, two, b in found[:_PAIR_MOVES]]

    def _exact(self, state: State) -> Answer | None:
        """The choice with the ranks that suit it best."""
        return self._all.answer(state, exact=True)

    def bounded(self, best: Answer, price: Floats) -> tuple[Answer, float]:
        """The best choice, and what no choice can undercut: found where few are left, else a bound."""
        bound, price = self._bound(price, best.damage)
        if bound >= best.damage * (1 - _BETTER) or self._joint.layers:
            return best, bound
        found = best_of_few(self._joint, bounds_of(self._priced(price)), best.state, best.damage)
        answer = None if found is None else self._exact(found)
        return (best, bound) if answer is None else (answer, answer.damage)

    def _bound(self, price: Floats, damage: float) -> tuple[float, Floats]:
        """The highest bound over a few prices, and its prices."""
        best = bound_of(self._priced(price))
        tries = 0
        for metric in range(len(price)):
            factor = _FACTOR
            while tries < _BOUNDS and best < damage * (1 - _BETTER):
                tries += 1
                moved = price.copy()
                moved[metric] *= factor
                value = bound_of(self._priced(moved))
                if value > best:
                    best, price = value, moved
                elif factor > 1:
                    factor = 1 / factor
                else:
                    break
        return best, price


def _across(values: Floats, place: int, height: float) -> list[int]:
    """On both sides of a place, the lowest one behind a wall of some height above it and the place."""
    found = []
    for side in (np.arange(place, -1, -1), np.arange(place, len(values))):
        walls = np.maximum.accumulate(values[side]) - np.maximum(values[side], values[place])
        behind = side[walls > height]
        if len(behind):
            found.append(int(behind[np.argmin(values[behind])]))
    return found


def _with(state: State, places: dict[int, int]) -> State:
    at = list(state.at)
    for group, place in places.items():
        at[group] = place
    return State(at=tuple(at), dropped=state.dropped)
