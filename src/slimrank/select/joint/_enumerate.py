# SPDX-License-Identifier: Apache-2.0
"""The best choice of all, where only groups and blocks are open and the bound leaves few choices of them."""

from collections.abc import Sequence
from itertools import combinations
from math import prod

import numpy as np

from slimrank.select.joint._bound import Bounds
from slimrank.select.joint._table import Joint, State, is_gone, proper, standing_cost
from slimrank.select.layers._table import Ints

_CHOICES = 300_000
_BLOCKS = 6
_ROUNDING = 1e-9


def best_of_few(joint: Joint, bounds: Bounds, known: State, damage: float) -> State | None:
    """The choice with the least damage, by looking at each that may have less than a known one.

    Args:
        joint: groups and blocks, no layers.
        bounds: what choices cannot undercut.
        known: a choice within the budgets.
        damage: of it.

    Returns:
        The best choice; None where there are too many to look at.
    """
    limit = damage * (1 + _ROUNDING)
    blocks = [block for block, bound in enumerate(bounds.by_block) if bound <= limit]
    if len(blocks) > _BLOCKS:
        return None
    left = [np.flatnonzero(bound <= limit) for bound in bounds.by_width]
    whole = [np.array([place]) for place in joint.whole]
    drops = [gone for count in range(len(blocks) + 1) for gone in combinations(blocks, count)]
    options = {
        dropped: [
            whole[group] if is_gone(homes, dropped) else left[group]
            for group, homes in enumerate(joint.homes)
        ]
        for dropped in dict.fromkeys(proper(joint, joint.whole, gone).dropped for gone in drops)
    }
    if sum(prod(len(places) for places in every) for every in options.values()) > _CHOICES:
        return None
    for dropped, every in options.items():
        if all(len(places) for places in every):
            state, value = _best_widths(joint, dropped, every)
            if value < damage * (1 - _ROUNDING):
                known, damage = state, value
    return known


def _best_widths(joint: Joint, dropped: frozenset[int], options: Sequence[Ints]) -> tuple[State, float]:
    """The widths within the budgets with the least damage, and that; inf where there are none."""
    several = [group for group, places in enumerate(options) if len(places) > 1]
    at: list[int | Ints] = [int(places[0]) for places in options]
    for group, places in zip(several, np.ix_(*(options[group] for group in several)), strict=True):
        at[group] = places
    damage = np.array(sum(joint.blocks[block].damage for block in dropped))
    for own, place in zip(joint.widths, at, strict=True):
        damage = damage + own.damage[place]
    fits = (standing_cost(joint, at, dropped) <= joint.room).all(axis=-1)
    values = np.where(fits, damage, np.inf)
    best = np.unravel_index(int(np.argmin(values)), values.shape)
    for group, chosen in zip(several, best, strict=True):
        at[group] = int(options[group][chosen])
    return State(at=tuple(int(place) for place in at), dropped=dropped), float(values[best])
