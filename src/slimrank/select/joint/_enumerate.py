# SPDX-License-Identifier: Apache-2.0
"""Phase 8: tries every choice that the bound leaves, where only groups and blocks are open and few are left.

The answer is then the best of all, with a gap of 0.
"""

from collections.abc import Sequence
from itertools import combinations
from math import prod

import numpy as np

from slimrank.select.joint._bound import Bounds
from slimrank.select.joint._table import Joint, State, normalised, standing_cost
from slimrank.select.layers._table import Ints

# The most choices to try: more would prove the best choice of larger networks, in time and memory for a few
# arrays of that many numbers. Beyond it the answer stays as it was found, with the gap of the bound.
_MAX_CHOICES = 300_000
# The most blocks that may go: each doubles the sets of blocks whose choices are counted.
_MAX_BLOCKS = 6
# Choices looked at with one array: more save little time and take more memory. It changes no choice.
_AT_ONCE = 4096
# Bounds and damages are sums of rounded numbers. Wider: a few more choices to try; narrower: the best may
# be missed.
_ROUNDING = 1e-9


def enumerate_choices(joint: Joint, bounds: Bounds, known: State, damage: float) -> State | None:
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
    if len(blocks) > _MAX_BLOCKS:
        return None
    left = [np.flatnonzero(bound <= limit) for bound in bounds.by_width]
    whole = [np.array([width]) for width in joint.whole]
    drops = [gone for count in range(len(blocks) + 1) for gone in combinations(blocks, count)]
    options = {
        dropped: [
            whole[group] if group in joint.standing.without(dropped).gone else left[group]
            for group in range(len(joint.widths))
        ]
        for dropped in dict.fromkeys(normalised(joint, joint.whole, gone).dropped for gone in drops)
    }
    if sum(prod(len(widths) for widths in every) for every in options.values()) > _MAX_CHOICES:
        return None
    for dropped, every in options.items():
        if all(len(widths) for widths in every):
            state, value = _best_widths(joint, dropped, every)
            if value < damage * (1 - _ROUNDING):
                known, damage = state, value
    return known


def _best_widths(joint: Joint, dropped: frozenset[int], options: Sequence[Ints]) -> tuple[State, float]:
    """The widths within the budgets with the least damage, and that; inf where there are none."""
    shape = tuple(len(indices) for indices in options)
    found, least = State(widths=joint.whole), np.inf
    for start in range(0, prod(shape), _AT_ONCE):
        choices = np.arange(start, min(start + _AT_ONCE, prod(shape)))
        # One by one: numpy unravels no more than 64 axes at once.
        widths, rest = [], choices
        for indices in reversed(options):
            rest, place = np.divmod(rest, len(indices))
            widths.append(indices[place])
        widths.reverse()
        damage = np.full(len(choices), sum((joint.blocks[block].damage for block in dropped), 0.0))
        for group, width in zip(joint.widths, widths, strict=True):
            damage += group.damage[width]
        fits = (standing_cost(joint, widths, dropped) <= joint.room).all(axis=-1)
        values = np.where(fits, damage, np.inf)
        best = int(np.argmin(values))
        if values[best] < least:
            least = float(values[best])
            found = State(widths=tuple(int(width[best]) for width in widths), dropped=dropped)
    return found, least
