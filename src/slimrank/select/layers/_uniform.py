# SPDX-License-Identifier: Apache-2.0
"""The same keep ratio for every layer."""

import numpy as np

from slimrank.select.layers._optimal import any_feasible
from slimrank.select.layers._table import UNTOUCHED, Floats, Ints, Table, is_feasible, used

# Rounding down to whole ranks leaves some of the budgets over. Less than 1 % of the model is left so:
# smaller would spend more of it, and take the layers further from one common ratio.
_LEFT_OVER = 0.01


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

    def choice_at(ratio: float) -> Ints:
        return np.array(
            [_within(table, share, lanes[layer], layer, ratio) for layer in range(len(lanes))], dtype=np.int64
        )

    ratios = np.unique(share[np.isfinite(share)])
    low, high = 0, len(ratios) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_feasible(table, choice_at(ratios[middle])) else (low, middle - 1)
    choice: Ints | None = choice_at(ratios[low])
    if choice is not None and not is_feasible(table, choice):
        choice = any_feasible(table)
    return None if choice is None else _near_budget(table, share, lanes, choice)


def _lanes(table: Table, share: Floats) -> list[dict[int, Ints]]:
    """For each layer: curve -> its options, by rising share."""
    lanes: list[dict[int, Ints]] = []
    for layer in range(len(table.names)):
        options = np.flatnonzero(np.isfinite(table.damage[layer]))
        options = options[np.argsort(share[layer, options], kind="stable")]
        curves = table.curve[layer, options]
        lanes.append({int(curve): options[curves == curve] for curve in np.unique(curves)})
    return lanes


def _within(table: Table, share: Floats, lanes: dict[int, Ints], layer: int, ratio: float) -> int:
    """The option with the least damage among the largest of each curve within a ratio."""
    ends = {
        curve: int(np.searchsorted(share[layer, lane], ratio, side="right")) for curve, lane in lanes.items()
    }
    offers = [int(lanes[curve][end - 1]) for curve, end in ends.items() if end]
    if not offers:
        return int(np.argmin(share[layer]))
    return min(
        offers, key=lambda option: (float(table.damage[layer, option]), float(share[layer, option]), option)
    )


def _near_budget(table: Table, share: Floats, lanes: list[dict[int, Ints]], choice: Ints) -> Ints:
    """Raise the layers with the lowest ratio, one rank at a time, until a budget is near."""
    choice = choice.copy()
    rows = np.arange(len(choice))
    near = _LEFT_OVER * table.scale
    room = table.room - used(table, choice)
    stuck = np.zeros(len(choice), dtype=np.bool_)
    while (room > near).all() and not stuck.all():
        layer = int(np.argmin(np.where(stuck, np.inf, share[rows, choice])))
        curve = int(table.curve[layer, choice[layer]])
        untouched = lanes[layer][UNTOUCHED]
        lane = lanes[layer][curve]
        above = lane[share[layer, lane] > share[layer, choice[layer]]]
        step = next(iter([*above, *untouched]))
        extra = table.cost[:, layer, step] - table.cost[:, layer, choice[layer]]
        if share[layer, step] > share[layer, choice[layer]] and (extra <= room).all():
            choice[layer] = step
            room = room - extra
        else:
            stuck[layer] = True
    return choice
