# SPDX-License-Identifier: Apache-2.0
"""The two simpler rules, over groups as well: one share of units, and one threshold on damage."""

from collections.abc import Callable

import numpy as np

from slimrank.select.joint._fastest import small_choices
from slimrank.select.joint._ranks import Answer, RankTables, standing_damage
from slimrank.select.joint._table import Joint, State
from slimrank.select.layers._improve import spend_rest, top_up
from slimrank.select.layers._table import Ints, Table, is_feasible, total_damage


def choose_uniform_widths(joint: Joint) -> Answer | None:
    """Every group at the largest common share of its units that keeps the budgets; blocks stay.

    Args:
        joint: groups alone.

    Returns:
        The choice; None where no share keeps every budget.
    """
    tables = RankTables(joint)
    shares = np.unique(np.concatenate([group.kept / group.units for group in joint.widths]))

    def state_at(share: float) -> State:
        within = (np.searchsorted(group.kept / group.units, share, side="right") for group in joint.widths)
        return _fitting(joint, State(widths=tuple(max(int(count) - 1, 0) for count in within)))

    def fits(index: int) -> bool:
        return tables.answer(state_at(shares[index]), exact=False) is not None

    index = _last(len(shares), fits)
    return tables.answer(state_at(shares[index]), exact=False) or _cheapest(joint, tables)


def choose_greedy_joint(joint: Joint) -> Answer | None:
    """Each layer's cheapest option and each group's smallest width below one threshold on damage; topped up.

    Args:
        joint: everything; blocks stay.

    Returns:
        The choice under the smallest threshold that keeps the budgets, with first the groups that were hurt
        most and then the layers given back what is left; None where no threshold keeps every budget.
    """
    tables = RankTables(joint)
    damages = [group.damage for group in joint.widths]
    every = [*damages, *(form.damage for layer in joint.layers for form in layer.forms)]
    thresholds = np.unique(np.concatenate([np.zeros(1), *every]))

    def widths(threshold: float) -> State:
        return _fitting(joint, State(widths=tuple(int(np.argmax(damage <= threshold)) for damage in damages)))

    # Options stand in order of cost, so the first below the threshold is the cheapest.
    def ranks(table: Table, threshold: float) -> Ints:
        first: Ints = np.argmax(table.damage <= threshold, axis=1)
        return first

    def keeps(state: State, threshold: float) -> bool:
        table = tables.table_for(state)
        return is_feasible(table, ranks(table, threshold))

    count = len(thresholds)
    # From the largest threshold down, as far as the budgets are kept.
    index = _last(
        count, lambda down: keeps(widths(thresholds[count - 1 - down]), thresholds[count - 1 - down])
    )
    threshold = float(thresholds[count - 1 - index])
    state = widths(threshold)
    if not keeps(state, threshold):
        return _cheapest(joint, tables)
    hurt = sorted(range(len(damages)), key=lambda group: -damages[group][state.widths[group]])
    for group in hurt:
        state = _widened(joint, state, group, lambda widened: keeps(widened, threshold))
    table = tables.table_for(state)
    choice = (
        spend_rest(table, top_up(table, ranks(table, threshold))) if table.names else np.zeros(0, np.int64)
    )
    damage = standing_damage(joint, state) + total_damage(table, choice)
    return Answer(state=state, table=table, choice=choice, damage=damage)


def _fitting(joint: Joint, state: State) -> State:
    """The state with the groups of fixed pairs widened, a step each at a time, until each pair fits."""
    widths = list(state.widths)
    for fit in joint.fits:
        while not fit.fits(widths):
            for group in fit.groups:
                widths[group] = min(widths[group] + 1, joint.whole[group])
    return State(widths=tuple(widths), dropped=state.dropped)


def _cheapest(joint: Joint, tables: RankTables) -> Answer | None:
    """Where fixed pairs keep a rule from the smallest widths: the best of the cheapest choices, if any."""
    if not joint.fits:
        return None
    found = [tables.answer(state, exact=False) for state in small_choices(joint)]
    return min((answer for answer in found if answer), key=lambda answer: answer.damage, default=None)


def _widened(joint: Joint, state: State, group: int, keeps: Callable[[State], bool]) -> State:
    """The state with the widest group that still keeps the budgets."""
    start = state.widths[group]

    def wider(more: int) -> State:
        widths = list(state.widths)
        widths[group] = start + more
        return State(widths=tuple(widths), dropped=state.dropped)

    return wider(_last(len(joint.widths[group].kept) - start, lambda more: more == 0 or keeps(wider(more))))


def _last(count: int, holds: Callable[[int], bool]) -> int:
    """The last of ``count`` indices at which something holds that held at all before; 0 if none."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
