# SPDX-License-Identifier: Apache-2.0
"""The same keep ratio for every layer."""

import numpy as np

from slimrank.select.layers._optimal import any_feasible
from slimrank.select.layers._table import UNTOUCHED, Floats, Ints, Table, is_feasible, used

_NEAR = 0.01


def choose_uniform(table: Table) -> Ints | None:
    """Every layer at the largest common keep ratio, in the first budgeted metric, that keeps the budgets.

    In each layer every curve offers its largest rank at that ratio, and the one with the least damage is
    taken. Where this ends further than 0.01 below a budget, layers with the lowest ratio of their own take
    more rank.

    Args:
        table: of the options.

    Returns:
        (L,) feasible options; None where no choice was found that keeps every budget.
    """
    share = table.cost[0] / np.maximum(table.whole[0], 1)[:, None]
    share = np.where(np.isfinite(table.damage), share, np.inf)
    lanes = _lanes(table, share)

    def at(ratio: float) -> Ints:
        return np.array(
            [_within(table, share, lanes[i], i, ratio) for i in range(len(lanes))], dtype=np.int64
        )

    ratios = np.unique(share[np.isfinite(share)])
    low, high = 0, len(ratios) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_feasible(table, at(ratios[middle])) else (low, middle - 1)
    choice: Ints | None = at(ratios[low])
    if choice is not None and not is_feasible(table, choice):
        choice = any_feasible(table)
    return None if choice is None else _near_budget(table, share, lanes, choice)


def _lanes(table: Table, share: Floats) -> list[dict[int, Ints]]:
    """For each layer: curve -> its options, by rising share."""
    lanes: list[dict[int, Ints]] = []
    for at in range(len(table.names)):
        places = np.flatnonzero(np.isfinite(table.damage[at]))
        places = places[np.argsort(share[at, places], kind="stable")]
        curves = table.curve[at, places]
        lanes.append({int(curve): places[curves == curve] for curve in np.unique(curves)})
    return lanes


def _within(table: Table, share: Floats, lanes: dict[int, Ints], at: int, ratio: float) -> int:
    ends = {
        curve: int(np.searchsorted(share[at, lane], ratio, side="right")) for curve, lane in lanes.items()
    }
    offers = [int(lanes[curve][end - 1]) for curve, end in ends.items() if end]
    if not offers:
        return int(np.argmin(share[at]))
    return min(offers, key=lambda place: (float(table.damage[at, place]), float(share[at, place]), place))


def _near_budget(table: Table, share: Floats, lanes: list[dict[int, Ints]], choice: Ints) -> Ints:
    """Raise the layers with the lowest ratio, one rank at a time, until a budget is near."""
    choice = choice.copy()
    rows = np.arange(len(choice))
    near = _NEAR * table.scale
    room = table.room - used(table, choice)
    stuck = np.zeros(len(choice), dtype=np.bool_)
    while (room > near).all() and not stuck.all():
        at = int(np.argmin(np.where(stuck, np.inf, share[rows, choice])))
        curve = int(table.curve[at, choice[at]])
        untouched = lanes[at][UNTOUCHED]
        lane = lanes[at][curve]
        above = lane[share[at, lane] > share[at, choice[at]]]
        step = next(iter([*above, *untouched]))
        extra = table.cost[:, at, step] - table.cost[:, at, choice[at]]
        if share[at, step] > share[at, choice[at]] and (extra <= room).all():
            choice[at] = step
            room = room - extra
        else:
            stuck[at] = True
    return choice
