# SPDX-License-Identifier: Apache-2.0
"""Searches ranks, widths and blocks together, under every budget.

The phases, in the order in which they run; the README beside this file has the problem in formulas.

1. Prices. At fixed prices on the budgets every layer has a best option at any widths, so only widths and
   blocks are left to choose: one at a time, and two that share a layer together, until nothing moves.
   Bisection finds prices that about use the budgets up; with several budgets a linear program then moves
   each on its own.
2. Evaluation: choices met on the way get ranks that keep every budget.
3. All at once: around the best of these the groups become rows of a knapsack, which spends what prices leave.
4. Blocks: the cheapest ones go together, and all groups follow.
5. Distant widths: one group is held at a width far from its own, and all others follow.
6. Local search: single groups and blocks move, wherever the prices do not rule out a gain.
7. Exact ranks for the most hopeful of all choices that were evaluated.
8. A bound. Where only groups and blocks are open and the bound leaves few choices, each of them is tried.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from slimrank.select.joint._all_at_once import move_all_at_once
from slimrank.select.joint._bound import bound_of, bounds_of
from slimrank.select.joint._enumerate import enumerate_choices
from slimrank.select.joint._fastest import fastest_choice, small_choices
from slimrank.select.joint._prices import Hulls, Priced
from slimrank.select.joint._ranks import Answer, RankTables, standing_damage
from slimrank.select.joint._table import Joint, State, normalised, standing_cost
from slimrank.select.layers._table import Floats, added, used

# Prices (1): each try settles all widths anew. Fewer tries save time, and leave prices further from those
# that just use the budgets up, so that every later phase starts from worse choices.
_MAX_BISECTIONS = 24
# Prices (1): after so many rises, each by the factor below, prices that still keep no budget are given up.
# More would help where damages lie further apart than 16 to the 9th; where no price keeps the budgets, it
# costs time.
_MAX_RISES = 8
# Prices (1): step while only one end of the bisection is known, and how far above the highest price met the
# linear program may go. Larger steps find both ends sooner, and leave a wider span to halve.
_PRICE_FACTOR = 16.0
# Prices (1): bisection ends at prices within 2 %. Closer ones mostly ask for the same widths; what is left of
# the budgets is spent by the later phases.
_PRICE_TOLERANCE = 1.02
# Prices (1), several budgets: linear programs solved, each followed by widths settled anew. More raise the
# bound a little and cost as much time as a step of the bisection.
_MAX_CUTS = 10
# Evaluation (2): of the choices met at the prices, those at the last prices. More cost one table of ranks
# each.
_MAX_VISITED = 12
# All at once (3): choices that it starts from, and how often it goes on from what it found. Each is one
# knapsack over all layers and groups, the dearest step of the search; more starts escape more local optima.
_MAX_STARTS = 6
_MAX_TURNS = 6
# A choice within 0.1 % of the bound is good enough: the linear programs and phases 3 and 6 end there, and
# an exact knapsack that leaves more is replaced by the quick one. Smaller: more time, for less than damages
# resolve.
_GOOD_GAP = 1e-3
# Blocks and distant widths (4, 5) only run where more than 1 % may be left to gain, since they cost up to 24
# runs of phase 3. It is also the height of the wall between a group's width and a distant one; and knapsacks
# (3) whose bound is 1 % above the best choice are not solved exactly.
_LARGE_GAP = 0.01
# Distant widths (5): those with the lowest bounds that are tried. Blocks (4): twice as many sets of blocks.
_MAX_JUMPS = 8
# Local search (6): work it may take, counted in options of the rank tables that evaluations fill; each
# evaluation counts 5,000 more for what it does beside. Small networks get 200 evaluations, and large ones the
# fewest. More evaluations: less damage where groups depend on each other, in proportional time.
_LOCAL_WORK = 1_000_000
_EVALUATION_OVERHEAD = 5_000
_MIN_EVALUATIONS = 20
# The same where only groups and blocks are open: no rank table then, so the number itself is given.
_EVALUATIONS_WITHOUT_LAYERS = 100
# Exact ranks (7): as for the local search, but the exact knapsack costs more: about 40 choices in a small
# network, and never fewer than the last number. More may find better ranks at widths that looked worse.
_FINAL_WORK = 200_000
_MIN_FINALISTS = 3
# Bound (8): prices tried beside those of the search, each one metric times or over the factor. They raise the
# bound, which shrinks the certified gap and leaves fewer choices to try; each costs the passes of one bound.
_MAX_BOUND_TRIES = 6
_BOUND_PRICE_FACTOR = 1.3
# What counts as better. Smaller differences are rounding in sums of damages, and would let a search go on.
_BETTER = 1e-9


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
    return search.certify(*best) if best else (None, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Settled:
    """A choice from which nothing moves at some prices.

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
    """One search: what was evaluated, and what came of it.

    Each phase is a method, and talks to the others only through the choices that it evaluates.
    """

    def __init__(self, joint: Joint) -> None:
        self._joint = joint
        self._hulls = Hulls(joint)
        # A few ranks of each form are enough to compare choices; the exact ranks (7) come from all of them.
        self._some_ranks = RankTables(joint, self._hulls)
        self._all_ranks = RankTables(joint)
        self._answers: dict[State, Answer | None] = {}
        self._moved_from: set[State] = set()
        # Without ranks a knapsack has few rows, so the exact one is worth its time.
        self._is_exact = not joint.layers
        self._whole = State(widths=joint.whole)

    def run(self, starts: Sequence[State] = ()) -> tuple[Answer, Floats] | None:
        """The best choice found, as good as the starts with the best ranks, and prices near it."""
        must = [self._with_exact_ranks(state) for state in (self._whole, *starts)]
        price, visited = self._find_prices()
        for state in (self._whole, State(widths=(0,) * len(self._joint.widths)), *starts, *visited):
            self._evaluate(state)
        if self._best() is None:
            for state in self._smallest_choices():
                self._evaluate(state)
        priced = self._priced(price)
        bound = bound_of(priced)
        for state in visited[:_MAX_STARTS]:
            best = self._best()
            if best is None or best.damage * (1 - _GOOD_GAP) > bound:
                self._move_all_groups(price, state)
        self._drop_blocks(priced, bound)
        self._try_distant_widths(priced, bound)
        self._search_locally(priced, bound)
        answers = [*self._refine_ranks(priced), *(answer for answer in must if answer is not None)]
        return (min(answers, key=lambda answer: answer.damage), price) if answers else None

    def _refine_ranks(self, priced: Priced) -> list[Answer]:
        """The most hopeful of the choices evaluated, each with the ranks that suit it best."""
        best = self._best()
        if best is None:
            return []
        room = float(priced.price @ self._joint.room)
        lows = priced.energies(list(self._answers)) - room
        hopeful = [
            (np.inf if answer is None else answer.damage, low, state)
            for (state, answer), low in zip(self._answers.items(), lows.tolist(), strict=True)
            if low < best.damage
        ]
        count = max(_FINAL_WORK // (self._all_ranks.size + _EVALUATION_OVERHEAD), _MIN_FINALISTS)
        # The quick choice of ranks may miss much where few layers have any: what prices allow counts as well.
        near = sorted(hopeful, key=lambda entry: entry[:2])[: (count + 1) // 2]
        allowed = sorted(hopeful, key=lambda entry: entry[1::-1])
        states = dict.fromkeys(state for _, _, state in (*near, *allowed))
        exact = [self._with_exact_ranks(state) for state in islice(states, count)]
        return [best, *(answer for answer in exact if answer is not None)]

    def _best(self) -> Answer | None:
        known = [answer for answer in self._answers.values() if answer is not None]
        return min(known, key=lambda answer: answer.damage) if known else None

    def _evaluate(self, state: State) -> Answer | None:
        """A choice with ranks that keep every budget, found fast; None where none were found."""
        if state not in self._answers:
            self._answers[state] = self._some_ranks.answer(state, exact=False)
        return self._answers[state]

    def _priced(self, price: Floats) -> Priced:
        return Priced(self._joint, self._hulls, price)

    def _find_prices(self) -> tuple[Floats, list[State]]:
        """Prices at which the choice they ask for about uses the budgets up, and choices met on the way."""
        level = max((group.damage.max() for group in self._joint.widths), default=0.0) or 1.0
        met = self._bisect_prices(level)
        most = max(float(np.max(settled.price)) for settled in met)
        # One budget has one price, which bisection finds. Several prices may also move against each other.
        rounds = _MAX_CUTS if len(self._joint.metrics) > 1 else 0
        for _ in range(rounds):
            cut = self._cut_prices(met, most)
            if cut is None:
                break
            price, value = cut
            met += self._settle(price, (met[-1].state,))
            if met[-1].value >= value - _GOOD_GAP * abs(value):
                break
        best = max(met, key=lambda settled: settled.value)
        # The last prices are the nearest.
        return best.price, list(dict.fromkeys(settled.state for settled in reversed(met)))[:_MAX_VISITED]

    def _settle(self, price: Floats, starts: Sequence[State]) -> list[_Settled]:
        """Where starts, and the whole network, settle at some prices, the best last."""
        priced = self._priced(price)
        found = []
        for state in dict.fromkeys(priced.settled(start) for start in (*starts, self._whole)):
            cost = standing_cost(self._joint, state.widths, state.dropped)
            damage = standing_damage(self._joint, state)
            layers = self._joint.standing.without(state.dropped).layers
            shapes = self._joint.grids.at(state.widths, layers)
            picks = self._hulls.picks(layers, shapes, price)
            cost = cost + self._joint.grids.cost(layers, shapes, picks.form, picks.rank).sum(axis=0)
            damage += float(picks.damage.sum())
            over = cost - self._joint.room
            found.append(_Settled(price=price, state=state, over=over, damage=damage))
        return sorted(found, key=lambda settled: -settled.value)

    def _bisect_prices(self, level: float) -> list[_Settled]:
        """Choices met while looking for the lowest level of prices that keeps the budgets, in that order."""
        low, high = 0.0, np.inf
        met: list[_Settled] = []
        for tries in range(_MAX_BISECTIONS):
            met += self._settle(level / self._joint.scale, [settled.state for settled in met[-1:]])
            if (met[-1].over <= 0).all():
                high = level
            else:
                low = level
            is_close = high < np.inf and low > 0 and high < _PRICE_TOLERANCE * low
            if is_close or (high == np.inf and tries > _MAX_RISES):
                break
            if high == np.inf:
                level = low * _PRICE_FACTOR
            elif low == 0:
                level = high / _PRICE_FACTOR
            else:
                level = (low * high) ** 0.5
        return met

    def _cut_prices(self, met: Sequence[_Settled], most: float) -> tuple[Floats, float] | None:
        """The prices at which the choices met leave the highest bound, and that bound.

        Each choice met is a plane over the prices that the bound stays below: its damage plus the price of
        what it costs above the room.
        """
        # Here, since it takes longer than most plans, and only several budgets need it.
        from scipy.optimize import linprog  # noqa: PLC0415

        scale = self._joint.scale
        over = np.array([settled.over for settled in met]) / scale
        solved = linprog(
            np.append(np.zeros(len(scale)), -1.0),
            A_ub=np.column_stack([-over, np.ones(len(met))]),
            b_ub=np.array([settled.damage for settled in met]),
            bounds=[*((0.0, _PRICE_FACTOR * most * unit) for unit in scale), (None, None)],
            method="highs-ds",
        )
        if solved.status != 0:
            return None
        return np.maximum(solved.x[:-1], 0.0) / scale, float(solved.x[-1])

    def _smallest_choices(self) -> list[State]:
        """The smallest widths, without blocks, and the fastest: what is left for budgets hard to keep."""
        found = small_choices(self._joint)
        if self._joint.latency is not None:
            # Pairs may be faster in layers that are not the smallest.
            found.append(fastest_choice(self._joint).state)
        return found

    def _move_all_groups(self, price: Floats, state: State) -> None:
        """Move all widths at once, around a choice and around what comes of it, until nothing new comes."""
        spare = np.zeros(len(price))
        for turn in range(_MAX_TURNS):
            answer = self._evaluate(state)
            if answer is None:
                table = self._some_ranks.table_for(state)
                choice = np.argmin(table.damage + added(price, table.cost), axis=1)
                if turn:
                    # What moved together costs more than each alone.
                    spare += np.maximum(used(table, choice) - table.room, 0.0)
            else:
                table, choice = answer.table, answer.choice
                spare[:] = 0.0
            if state in self._moved_from and not spare.any():
                return
            self._moved_from.add(state)
            best = self._best()
            found = move_all_at_once(
                self._joint,
                table,
                state,
                choice,
                spare=spare,
                exact=self._is_exact,
                hopeless=np.inf if best is None else (1 + _LARGE_GAP) * best.damage,
            )
            if found is None:
                return
            state, gap = found
            # One that was cut short takes long.
            self._is_exact &= gap <= _GOOD_GAP

    def _drop_blocks(self, priced: Priced, bound: float) -> None:
        """Let blocks go, one or the first few by their damage, and all groups follow.

        What one saves may be of use only once groups that went for it are whole again.
        """
        best = self._best()
        if best is None or best.damage * (1 - _LARGE_GAP) <= bound:
            return
        damages = [block.damage for block in self._joint.blocks]
        order = sorted(range(len(damages)), key=lambda block: damages[block])
        sets = dict.fromkeys(
            frozenset(order[start:end]) for end in range(1, len(order) + 1) for start in (0, end - 1)
        )
        found = dict.fromkeys(
            normalised(self._joint, widths, dropped)
            for dropped in sets
            for widths in (best.state.widths, self._joint.whole)
        )
        starts = [state for state in found if sum(damages[block] for block in state.dropped) < best.damage]
        for start in sorted(starts, key=priced.energy)[: 2 * _MAX_JUMPS]:
            self._move_all_groups(priced.price, start)

    def _try_distant_widths(self, priced: Priced, bound: float) -> None:
        """Hold one group at a width far from its own that the bound allows, and let all others follow."""
        best = self._best()
        if best is None or best.damage * (1 - _LARGE_GAP) <= bound:
            return
        found = []
        for group, values in enumerate(bounds_of(priced).by_width):
            for width in _behind_walls(values, best.state.widths[group], _LARGE_GAP * best.damage):
                found.append((float(values[width]), group, width))
        for value, group, width in sorted(found)[:_MAX_JUMPS]:
            if value < best.damage:
                start = _with_widths(best.state, {group: width})
                self._move_all_groups(priced.price, priced.settled(start, held=(group,)))

    def _search_locally(self, priced: Priced, bound: float) -> None:
        """Move single groups and blocks: from the best choice, then from the next."""
        left = (
            max(_LOCAL_WORK // (self._some_ranks.size + _EVALUATION_OVERHEAD), _MIN_EVALUATIONS)
            if self._joint.layers
            else _EVALUATIONS_WITHOUT_LAYERS
        )
        expanded: set[State] = set()
        while left > 0:
            known = [answer for answer in self._answers.values() if answer is not None]
            fresh = [answer for answer in known if answer.state not in expanded]
            if not fresh:
                return
            best = min(answer.damage for answer in known)
            start = min(fresh, key=lambda answer: answer.damage)
            if best * (1 - _GOOD_GAP) <= bound:
                return
            if start.damage == best and start.state not in self._moved_from:
                self._move_all_groups(priced.price, start.state)
                continue
            expanded.add(start.state)
            for state in self._neighbours(priced, start.state, best * (1 - _BETTER)):
                if left > 0 and state not in self._answers:
                    left -= 1
                    answer = self._evaluate(state)
                    if answer is not None and answer.damage < best * (1 - _BETTER):
                        # What is left of this start is looked at again if its turn comes.
                        expanded.discard(start.state)
                        break

    def _neighbours(self, priced: Priced, state: State, below: float) -> list[State]:
        """Choices near one that its prices do not rule out, the most hopeful first."""
        joint = self._joint
        energy = priced.energy(state)
        # No ranks at these widths undercut the energy less the price of the room.
        gain = below - energy + float(priced.price @ joint.room)
        steps = []
        for group in self._joint.standing.without(state.dropped).groups:
            values = priced.energy_by_width(state, group)
            steps.append((group, values - values[state.widths[group]]))
        found = [
            (float(values[width]), _with_widths(state, {group: int(width)}))
            for group, values in steps
            for width in np.flatnonzero(values < gain)
            if width != state.widths[group]
        ]
        moves = self._block_moves(priced, state)
        if moves:
            found += zip((priced.energies(moves) - energy).tolist(), moves, strict=True)
        found.sort(key=lambda entry: entry[0])
        return list(dict.fromkeys(moved for value, moved in found if value < gain))

    def _block_moves(self, priced: Priced, state: State) -> list[State]:
        """One block dropped, put back, or dropped instead of another."""
        found = []
        put_back = [priced.toggled(state, block) for block in sorted(state.dropped)]
        for start in (state, *put_back):
            for index, block in enumerate(self._joint.blocks):
                if index not in state.dropped and not block.outer & start.dropped:
                    found.append(priced.toggled(start, index))
        return [*put_back, *found]

    def _with_exact_ranks(self, state: State) -> Answer | None:
        """The choice with the ranks that suit it best."""
        return self._all_ranks.answer(state, exact=True)

    def certify(self, best: Answer, price: Floats) -> tuple[Answer, float]:
        """The best choice, and what no choice can undercut: found where few are left, else a bound."""
        bound, price = self._highest_bound(price, best.damage)
        if bound >= best.damage * (1 - _BETTER) or self._joint.layers:
            return best, bound
        found = enumerate_choices(self._joint, bounds_of(self._priced(price)), best.state, best.damage)
        answer = None if found is None else self._with_exact_ranks(found)
        return (best, bound) if answer is None else (answer, answer.damage)

    def _highest_bound(self, price: Floats, damage: float) -> tuple[float, Floats]:
        """The highest bound over a few prices, and its prices."""
        best = bound_of(self._priced(price))
        tries = 0
        for metric in range(len(price)):
            factor = _BOUND_PRICE_FACTOR
            while tries < _MAX_BOUND_TRIES and best < damage * (1 - _BETTER):
                tries += 1
                moved = price.copy()
                moved[metric] *= factor
                value = bound_of(self._priced(moved), above=best)
                if value > best:
                    best, price = value, moved
                elif factor > 1:
                    factor = 1 / factor
                else:
                    break
        return best, price


def _behind_walls(values: Floats, width: int, height: float) -> list[int]:
    """On both sides of a width, the lowest one behind a wall of some height above it and the width."""
    found = []
    for side in (np.arange(width, -1, -1), np.arange(width, len(values))):
        walls = np.maximum.accumulate(values[side]) - np.maximum(values[side], values[width])
        behind = side[walls > height]
        if len(behind):
            found.append(int(behind[np.argmin(values[behind])]))
    return found


def _with_widths(state: State, changed: dict[int, int]) -> State:
    """The choice with other widths of some groups."""
    widths = list(state.widths)
    for group, width in changed.items():
        widths[group] = width
    return State(widths=tuple(widths), dropped=state.dropped)
