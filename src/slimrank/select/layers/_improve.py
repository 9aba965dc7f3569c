# SPDX-License-Identifier: Apache-2.0
"""Steps from one choice to a better one."""

import numpy as np

from slimrank.select.layers._table import Floats, Ints, Table, is_feasible, used

# An option that costs nothing more is worth any number; this keeps the division finite.
_TINY_COST = 1e-300
# More rank may cost this share of the whole damage: less is rounding. Larger: more of the budget is used
# up, and the damage rises by what one can see.
_HARMLESS = 1e-13
# Repair: steps for each layer, at most. A layer mostly moves once; where steps undo each other, more of
# them only delay the answer that this leads nowhere.
_STEPS_PER_LAYER = 4


def top_up(table: Table, choice: Ints) -> Ints:
    """Spend what the budgets leave: the largest fall in damage per cost first.

    Args:
        table: of the options.
        choice: (L,) feasible.

    Returns:
        (L,) feasible; no single layer can fall further in damage within the budgets.
    """
    choice, rows = choice.copy(), np.arange(len(choice))
    weighted = table.weighted
    room = table.room - used(table, choice)
    # Of what is chosen now.
    damage, cost, share = table.damage[rows, choice], table.cost[:, rows, choice], weighted[rows, choice]

    def best_steps(layers: slice) -> tuple[Floats, Ints]:
        """The best step of each of these layers that fits: its fall in damage per cost, and its option."""
        gain = damage[layers, None] - table.damage[layers]
        extra = table.cost[:, layers] - cost[:, layers, None]
        fits = (gain > 0) & (extra <= room[:, None, None]).all(axis=0)
        price = np.maximum(weighted[layers] - share[layers, None], _TINY_COST)
        worth = np.where(fits, np.maximum(gain, 0) / price, 0.0)
        return worth.max(axis=1), worth.argmax(axis=1)

    with np.errstate(over="ignore"):
        ratio, target = best_steps(slice(None))
        # Room only shrinks, so a remembered best step that still fits is still the best.
        while len(rows) and ratio.max() > 0:
            layer = int(ratio.argmax())
            option = target[layer]
            extra = table.cost[:, layer, option] - cost[:, layer]
            if (extra <= room).all():
                choice[layer], room = option, room - extra
                damage[layer], share[layer] = table.damage[layer, option], weighted[layer, option]
                cost[:, layer] = table.cost[:, layer, option]
            changed = slice(layer, layer + 1)
            ratio[changed], target[changed] = best_steps(changed)
    return choice


def spend_rest(table: Table, choice: Ints) -> Ints:
    """Spend what the budgets leave where damage does not tell: more rank at no more damage, evenly.

    Args:
        table: of the options.
        choice: (L,) feasible.

    Returns:
        (L,) feasible, with no layer's damage raised.
    """
    rows = np.arange(len(choice))
    current = table.damage[rows, choice]
    harmless = table.damage <= current[:, None] + _HARMLESS * current.sum()
    share = table.cost[0] / np.maximum(table.whole[0], 1)[:, None]
    dearer = harmless & (share > share[rows, choice][:, None])
    if not dearer.any():
        return choice

    def raised(level: float) -> Ints:
        within = dearer & (share <= level)
        return np.where(within.any(axis=1), np.argmax(np.where(within, share, -1.0), axis=1), choice)

    levels = np.unique(share[dearer])
    low, high = -1, len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if is_feasible(table, raised(levels[middle])) else (low, middle - 1)
    if low >= 0:
        choice = raised(levels[low])
    choice = choice.copy()
    room = table.room - used(table, choice)
    for layer in np.argsort(share[rows, choice], kind="stable"):
        extra = table.cost[:, layer] - table.cost[:, layer, choice[layer], None]
        is_more = harmless[layer] & (share[layer] > share[layer, choice[layer]])
        fits = is_more & (extra <= room[:, None]).all(axis=0)
        if fits.any():
            best = int(np.argmax(np.where(fits, share[layer], -1.0)))
            room = room - extra[:, best]
            choice[layer] = best
    return choice


def repair(table: Table, choice: Ints) -> Ints | None:
    """Bring a choice back under the budgets: the smallest rise in damage per cost saved first.

    Args:
        table: of the options.
        choice: (L,) options, feasible or not.

    Returns:
        (L,) feasible; None where these steps lead to none.
    """
    choice = choice.copy()
    rows = np.arange(len(choice))
    scale = table.scale[:, None, None]
    finite = np.isfinite(table.damage)
    for _ in range(_STEPS_PER_LAYER * (len(choice) + 1)):
        over = used(table, choice) - table.room
        if (over <= 0).all():
            return choice
        change = table.cost - table.cost[:, rows, choice][:, :, None]
        # Only what is over counts as saved, and only what goes beyond the room counts against it.
        excess = np.maximum(over, 0)[:, None, None]
        after = np.maximum(over[:, None, None] + change, 0)
        saved = ((excess - after) / scale).sum(axis=0)
        rise = table.damage - table.damage[rows, choice][:, None]
        useful = finite & (saved > 0)
        if not useful.any():
            return None
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            price = np.where(useful, rise / saved, np.inf)
        layer, option = np.unravel_index(int(np.argmin(price)), price.shape)
        choice[layer] = option
    return None
