# SPDX-License-Identifier: Apache-2.0
"""What no joint choice can undercut.

At prices p >= 0, the least of damage + p * cost over all choices, less p * room, bounds the least damage
within the budgets from below. That least value is itself bounded: the sum of damages and priced costs is
rewritten as terms of one group and of two groups, and the sum of each term's own minimum is a bound, whatever
is moved between terms that share a group. What is moved is found by passing messages along the groups, each
pass of which can only raise the bound.

What touches more than two groups enters with at most what each group alone would save of it: 1 - xy is at
most (1 - x) + (1 - y), and a pair that saves something saves at most its saving at full width and what each
width saves of the whole layer. A block enters with at most its whole cost.

Source: Kolmogorov 2006, "Convergent tree-reweighted message passing", doi:10.1109/TPAMI.2006.200.
"""

from collections import defaultdict

import numpy as np

from slimrank.select._joint_price import Priced, Wide
from slimrank.select._joint_table import ProductPiece, TensorPiece
from slimrank.select._table import Floats, Ints

_PASSES = 30
_STALL = 1e-4
_SAFE = 1e-12


def bound_of(priced: Priced) -> float:
    """What the damage of no choice within the budgets can undercut.

    Args:
        priced: everything at some prices.

    Returns:
        The bound, at least 0.
    """
    joint, price = priced.joint, priced.price
    alone = [one.damage.copy() for one in joint.widths]
    together: dict[tuple[int, int], Floats] = {}
    fixed = -float(price @ joint.room)
    size = abs(fixed)
    for (groups, _), table in priced.tables.items():
        if not groups:
            fixed += float(table)
        elif len(groups) == 1:
            alone[groups[0]] += table
        else:
            pair = (groups[0], groups[1])
            together[pair] = together[pair] + table if pair in together else table.copy()
    for wide in priced.wide:
        fixed += _whole(wide, priced)
        for group in wide.groups:
            alone[group] -= _saved(wide, priced, group)
    for block in joint.blocks:
        fixed += min(0.0, block.damage - float(price @ block.cost))
    return max(0.0, fixed + _Messages(alone, together).least() - _SAFE * size)


def _whole(wide: Wide, priced: Priced) -> float:
    """Damage plus price times cost at full width; a pair counts at most what the whole layer does."""
    price, whole = priced.price, priced.joint.whole
    layer = wide.layer
    if layer is None:
        # A product is counted in whole MACs: one less is surely below every share of it.
        rounding = price @ wide.piece.unit if isinstance(wide.piece, ProductPiece) else 0.0
        return float(wide.value(price, whole) - rounding)
    dense = layer.dense_cost(whole)
    best = float(price @ dense)
    rows, columns = int(layer.rows.count(whole)), int(layer.columns.count(whole))
    for form in layer.forms:
        unit = form.column * columns + form.row * rows
        pair = np.minimum(np.multiply.outer(unit, form.ranks) + (layer.bias * rows)[:, None], dense[:, None])
        best = min(best, float((form.damage + price @ pair).min()))
    return best


def _saved(wide: Wide, priced: Priced, group: int) -> Floats:
    """(W,) price of what one group alone saves, at each of its widths; new biases not counted."""
    joint = priced.joint
    at: list[int | Ints] = list(joint.whole)
    at[group] = np.arange(len(joint.widths[group].kept))
    pieces = wide.layer.dense if wide.layer else (wide.piece,)
    saved = np.zeros(len(joint.widths[group].kept))
    for piece in pieces:
        if piece is not None and not (isinstance(piece, TensorPiece) and piece.once):
            saved += (piece.cost(joint.whole) - piece.cost(at)) @ priced.price
    return saved


class _Messages:
    """Terms of one group and of two, between which values are moved; their sum never changes."""

    def __init__(self, alone: list[Floats], together: dict[tuple[int, int], Floats]) -> None:
        self._alone = alone
        self._together = together
        # Of each group, the terms it shares with a later one and with an earlier one.
        self._ahead: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._behind: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for pair in together:
            self._ahead[pair[0]].append(pair)
            self._behind[pair[1]].append(pair)

    def least(self) -> float:
        """A bound on the least sum."""
        touched = sorted({group for pair in self._together for group in pair})
        best = self._value()
        for _ in range(_PASSES):
            for ahead in (True, False):
                for group in touched if ahead else reversed(touched):
                    self._pull(group)
                    self._push(group, ahead)
            now = self._value()
            if now - best <= _STALL * abs(now):
                return max(now, best)
            best = now
        return best

    def _value(self) -> float:
        return float(sum(one.min() for one in (*self._alone, *self._together.values())))

    def _pull(self, group: int) -> None:
        """Move to a group what each of its shared terms takes at least, at each of its widths."""
        for axis, pairs in ((1, self._ahead[group]), (0, self._behind[group])):
            for pair in pairs:
                least = self._together[pair].min(axis=axis)
                self._alone[group] = self._alone[group] + least
                self._together[pair] -= np.expand_dims(least, axis)

    def _push(self, group: int, ahead: bool) -> None:
        """Move a group's own term to those it shares with later, or earlier, groups: a share to each."""
        share = self._alone[group] / max(len(self._ahead[group]), len(self._behind[group]))
        for pair in self._ahead[group] if ahead else self._behind[group]:
            self._together[pair] += share[:, None] if ahead else share[None]
            self._alone[group] = self._alone[group] - share
