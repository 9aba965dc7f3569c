# SPDX-License-Identifier: Apache-2.0
"""AIMET's greedy choice, on predicted damage: one threshold for all layers, then what is left is given back.

Source: AIMET (github.com/quic/aimet), greedy compression-ratio selection; the threshold is exact and the
top-up is ours.
"""

import numpy as np

from slimrank.select.layers._improve import spend_rest, top_up
from slimrank.select.layers._optimal import any_feasible
from slimrank.select.layers._table import Ints, Table, is_feasible


def choose_greedy(table: Table) -> Ints | None:
    """Each layer's cheapest option below the smallest threshold that keeps the budgets, then topped up.

    Args:
        table: of the options.

    Returns:
        (L,) feasible options; None where no choice was found that keeps every budget.
    """

    # Options stand in order of cost, so the first below the threshold is the cheapest.
    def below(threshold: float) -> Ints:
        first: Ints = np.argmax(table.damage <= threshold, axis=1)
        return first

    thresholds = np.unique(table.damage[np.isfinite(table.damage)])
    low, high = 0, len(thresholds) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_feasible(table, below(thresholds[middle])) else (middle + 1, high)
    choice: Ints | None = below(thresholds[low])
    if choice is not None and not is_feasible(table, choice):
        choice = any_feasible(table)
    return None if choice is None else spend_rest(table, top_up(table, choice))
