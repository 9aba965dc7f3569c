# SPDX-License-Identifier: Apache-2.0
"""Phase 8: what no joint choice can undercut.

At prices p >= 0, the least of damage + p * cost over all choices, less p * room, bounds the least damage
within the budgets from below. That least value is itself bounded: the sum of damages and priced costs is
rewritten as terms of one group and of two groups, and the sum of each term's own minimum is a bound, whatever
is moved between terms that share a group. What is moved is found by passing messages along the groups, each
pass of which can only raise the bound.

Groups inside a block that may go have one more width, "gone", at which what they touch in the block costs
nothing. What does not fit into two groups enters with less than it costs:

- a layer that more groups touch, with its cost without a pair, less what a pair saves at most: with its rows
  as they are and all its columns. A pair saves most at full width, since what it saves of each column rises
  with the rows, and of each row with the columns, wherever it saves anything.
- any other piece that more groups touch, with its whole cost less what each group alone takes of it:
  1 - xy <= (1 - x) + (1 - y).
- a block inside another one, and one without groups of its own, with damage less its whole cost.

Source: Kolmogorov 2006, "Convergent tree-reweighted message passing", doi:10.1109/TPAMI.2006.200.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from slimrank.select.joint._pieces import (
    MAX_TABLE_GROUPS,
    FitPiece,
    JointLayer,
    Piece,
    ProductPiece,
    TensorPiece,
)
from slimrank.select.joint._prices import Priced
from slimrank.select.joint._table import Joint, width_grid
from slimrank.select.layers._table import Floats, Ints

# Passes of messages along all groups and back, at most. Each can only raise the bound, and takes the time
# of looking at every table once. A higher bound shrinks the certified gap and lets the phases before it end
# sooner.
_MAX_PASSES = 30
# Passes end when one raises the bound by less than this share. Smaller: a slightly higher bound for more
# passes.
_MIN_RISE = 1e-4
# Taken off the bound, as a share of the numbers that were added: more than float64 rounds. Larger: a wider
# gap; smaller: a bound that may lie above a choice that exists.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Bounds:
    """What the damage of no choice within the budgets can undercut, if it holds one width or drops one block.

    Attributes:
        by_width: of each group, (W,) the bound at each width; where its block goes, the group has none.
        by_block: of each block, the bound where it goes; -inf where it is not known.
    """

    by_width: tuple[Floats, ...]
    by_block: tuple[float, ...]


def bound_of(priced: Priced, above: float = -np.inf) -> float:
    """What the damage of no choice within the budgets can undercut.

    Args:
        priced: everything at some prices.
        above: a bound that is already known; once this one is not going to be higher, it is looked for no
            further.

    Returns:
        The bound, at least 0.
    """
    terms = _terms_of(priced)
    return max(0.0, terms.fixed + _Messages(terms.alone, terms.together).least(above - terms.fixed))


def bounds_of(priced: Priced) -> Bounds:
    """The same, width by width and block by block.

    Args:
        priced: everything at some prices.

    Returns:
        The bounds.
    """
    terms = _terms_of(priced)
    messages = _Messages(terms.alone, terms.together)
    messages.least()
    found = [terms.fixed + bound for bound in messages.by_width()]
    by_block = [-np.inf] * len(priced.joint.blocks)
    for block, group in terms.stands.items():
        by_block[block] = float(found[group][-1])
    return Bounds(
        by_width=tuple(
            bound[: len(group.kept)] for bound, group in zip(found, priced.joint.widths, strict=True)
        ),
        by_block=tuple(by_block),
    )


def least_beside_blocks(priced: Priced, wide: Sequence[float]) -> float:
    """What the priced cost of no choice can undercut, where all damages are 0 and all costs at least 0.

    Whatever is inside a block counts nothing, as if each block went.

    Args:
        priced: everything at some prices.
        wide: of each layer that goes with more groups than a table holds, what it costs at least.

    Returns:
        The bound, room included.
    """
    joint, price = priced.joint, priced.price
    terms = _Terms(replace(joint, blocks=(), homes=()), price)
    for (groups, blocks), table in priced.tables.items():
        if not blocks:
            terms.add(groups, (), table)
    for piece in joint.wide:
        if not piece.blocks:
            _add_piece(terms, joint, price, piece)
    layers = [joint.layers[index] for index in joint.grids.wide.tolist()]
    terms.fixed += sum(least for layer, least in zip(layers, wide, strict=True) if not layer.blocks)
    terms.fixed -= sum(float(price @ block.rest) for block in joint.blocks if not block.outer)
    return terms.fixed + _Messages(terms.alone, terms.together).least() - _ROUNDING * terms.size


def _terms_of(priced: Priced) -> "_Terms":
    """Terms whose sum, at its least, is the bound."""
    joint, price = priced.joint, priced.price
    terms = _Terms(joint, price)
    for (groups, blocks), table in priced.tables.items():
        terms.add(groups, blocks, table)
    for piece in joint.wide:
        _add_piece(terms, joint, price, piece)
    for index in joint.grids.wide.tolist():
        _add_wide_layer(terms, joint, price, joint.layers[index])
    room = float(price @ joint.room)
    terms.fixed -= room + _ROUNDING * (terms.size + abs(room))
    return terms


class _Terms:
    """Terms of no, one and two groups, whose sum is at most damage plus price times cost.

    Attributes:
        fixed: term of no group.
        alone: of each group, its (W,) term; one longer where it may be gone with a block.
        together: pair of groups -> (W, V) term.
        stands: outermost block -> the group that stands for it: gone where the block is.
        size: about how large the numbers are that are added.
    """

    def __init__(self, joint: Joint, price: Floats) -> None:
        self.fixed = 0.0
        self.together: dict[tuple[int, int], Floats] = {}
        outermost = [index for index, block in enumerate(joint.blocks) if not block.outer]
        # The block that a group is gone with.
        self._home: dict[int, int] = {}
        self.stands: dict[int, int] = {}
        for group, homes in enumerate(joint.homes):
            for block in outermost:
                if homes and all(block in home for home in homes):
                    self._home[group] = block
                    self.stands.setdefault(block, group)
        self.alone: list[Floats] = [
            np.append(widths.damage, 0.0) if group in self._home else widths.damage.copy()
            for group, widths in enumerate(joint.widths)
        ]
        self.size = float(sum(widths.damage.max() for widths in joint.widths) + price @ joint.scale)
        self.size += sum(block.damage for block in joint.blocks)
        for index, dropped in enumerate(joint.blocks):
            if index in self.stands:
                self.alone[self.stands[index]][-1] += dropped.damage - float(price @ dropped.rest)
            else:
                self.fixed += min(0.0, dropped.damage - float(price @ dropped.cost))
        for group, block in self._home.items():
            if self.stands[block] != group:
                self._tie(self.stands[block], group)

    def add(self, groups: tuple[int, ...], blocks: Sequence[int], table: Floats) -> None:
        """Add a term of at most two groups, ascending, that is gone with any of its blocks."""
        gone = next((block for block in blocks if block in self.stands), None)
        for axis, group in enumerate(groups):
            if group in self._home:
                last = np.take(table, [-1], axis=axis)
                # Where its block goes, a group is whole for what is outside that block.
                table = np.append(table, last * (self._home[group] != gone), axis=axis)
        if gone is not None and all(self._home.get(group) != gone for group in groups):
            groups, table = self._with_block(groups, table, self.stands[gone])
        if not groups:
            self.fixed += float(table)
        elif len(groups) == 1:
            self.alone[groups[0]] = self.alone[groups[0]] + table
        else:
            pair = (groups[0], groups[1])
            self.together[pair] = self.together[pair] + table if pair in self.together else table.copy()

    def _with_block(
        self, groups: tuple[int, ...], table: Floats, stands: int
    ) -> tuple[tuple[int, ...], Floats]:
        """The term with the group that stands for its block, where there is room for one more."""
        there = np.ones(len(self.alone[stands]))
        there[-1] = 0.0
        if len(groups) == MAX_TABLE_GROUPS:
            self.alone[stands] = self.alone[stands] - max(float(table.max()), 0.0) * (1.0 - there)
            return groups, table
        joined = np.multiply.outer(table, there)
        if groups and groups[0] > stands:
            return (stands, groups[0]), joined.T
        return (*groups, stands), joined

    def _tie(self, stands: int, group: int) -> None:
        """Two groups inside one block are gone together."""
        table = np.zeros((len(self.alone[stands]), len(self.alone[group])))
        table[-1, :-1] = table[:-1, -1] = self.size
        self.together[stands, group] = table


def _add_wide_layer(terms: _Terms, joint: Joint, price: Floats, layer: JointLayer) -> None:
    """Add a layer that goes with more than two groups, or less."""
    terms.add((), layer.blocks, np.asarray(price @ layer.fixed))
    for whole in layer.dense:
        for piece in whole.split():
            _add_piece(terms, joint, price, piece)
    rows = tuple(layer.rows.groups)
    by = rows if len(rows) == 1 else ()
    terms.add(by, layer.blocks, -_most_saved(layer, joint, price, by))


def _add_piece(terms: _Terms, joint: Joint, price: Floats, piece: Piece) -> None:
    # A new bias only adds to the cost, and only where something is slimmed: left out where it is wide. What
    # forbids widths only adds, too.
    groups = tuple(sorted(piece.groups))
    if len(groups) <= MAX_TABLE_GROUPS:
        terms.add(groups, piece.blocks, piece.cost(width_grid(joint, groups)) @ price)
    elif not (isinstance(piece, FitPiece) or (isinstance(piece, TensorPiece) and piece.once)):
        whole = piece.cost(joint.whole)
        # A product is counted in whole MACs: one less is surely below every share of it.
        less = piece.unit if isinstance(piece, ProductPiece) else np.zeros(len(price))
        terms.add((), piece.blocks, np.asarray((whole - less) @ price))
        for group in groups:
            widths = _widths_of(joint, (group,))
            terms.add((group,), piece.blocks, (piece.cost(widths) - whole) @ price)


def _most_saved(layer: JointLayer, joint: Joint, price: Floats, by: tuple[int, ...]) -> Floats:
    """The most that damage plus price times cost falls with a pair, by the width of a group or of none.

    A metric that a pair costs more of counts as if it cost the same.
    """
    widths = _widths_of(joint, by)
    rows, columns = (np.asarray(dim.count(widths), dtype=np.float64) for dim in (layer.rows, layer.columns))
    dense = layer.fixed + sum(
        (piece.cost(widths) for piece in layer.dense if not piece.once), np.zeros(len(price))
    )
    most, counted = np.zeros(np.broadcast_shapes(rows.shape, columns.shape)), joint.counted
    for form in layer.forms:
        saved = np.zeros((*most.shape, len(form.ranks))) - form.damage
        for metric, unit_price in enumerate(price):
            unit = form.column[metric] * columns + form.row[metric] * rows
            if metric not in counted:
                # Parts of a time that do not go with rows and columns alike: at most all of the layer is
                # saved, at least what a pair takes without columns is spent.
                unit = form.each[metric] + form.row[metric] * (rows if by else 0 * rows)
            pair = np.multiply.outer(unit, form.ranks) + (layer.bias[metric] * rows)[..., None]
            if metric not in counted:
                # As before, without columns.
                at_any = form.any_row[metric] * (rows if by else 0 * rows)
            else:
                at_any = form.any_row[metric] * rows + form.any_column[metric] * columns
            pair += form.fixed[metric] + at_any[..., None]
            saved += unit_price * np.maximum(dense[..., metric, None] - pair, 0.0)
        most = np.maximum(most, saved.max(axis=-1))
    return most


def _widths_of(joint: Joint, by: tuple[int, ...]) -> list[int | Ints]:
    """Indices of every width of these groups, one axis for each, and of all others whole."""
    widths: list[int | Ints] = list(joint.whole)
    for group, indices in zip(by, (width_grid(joint, by)[group] for group in by), strict=True):
        widths[group] = indices
    return widths


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

    def least(self, above: float = -np.inf) -> float:
        """A bound on the least sum; one that is not going to be above this need not be the highest."""
        touched = sorted({group for pair in self._together for group in pair})
        best = self._value()
        for done in range(1, _MAX_PASSES + 1):
            for ahead in (True, False):
                for group in touched if ahead else reversed(touched):
                    self._pull(group)
                    self._push(group, ahead)
            now = self._value()
            rise = now - best
            # Rises shrink from pass to pass.
            if rise <= _MIN_RISE * abs(now) or now + rise * (_MAX_PASSES - done) < above:
                return max(now, best)
            best = now
        return best

    def by_width(self) -> list[Floats]:
        """Of each group, (W,) a bound on the least sum at each of its widths."""
        found = []
        alone = [term.min() for term in self._alone]
        together = {pair: term.min() for pair, term in self._together.items()}
        for group in range(len(alone)):
            self._pull(group)
            # What the group shares has been moved to it: the rest of that is at least 0.
            together.update(dict.fromkeys((*self._ahead[group], *self._behind[group]), 0.0))
            alone[group] = 0.0
            found.append(self._alone[group] + float(sum((*alone, *together.values()))))
            alone[group] = self._alone[group].min()
        return found

    def _value(self) -> float:
        return float(sum(term.min() for term in (*self._alone, *self._together.values())))

    def _pull(self, group: int) -> None:
        """Move to a group what each of its shared terms takes at least, at each of its widths."""
        alone = self._alone[group]
        for pair in self._ahead[group]:
            shared = self._together[pair]
            least = np.minimum.reduce(shared, axis=1)
            alone = alone + least
            shared -= least[:, None]
        for pair in self._behind[group]:
            shared = self._together[pair]
            least = np.minimum.reduce(shared, axis=0)
            alone = alone + least
            shared -= least
        self._alone[group] = alone

    def _push(self, group: int, ahead: bool) -> None:
        """Move a group's own term to those it shares with later, or earlier, groups: a share to each."""
        share = self._alone[group] / max(len(self._ahead[group]), len(self._behind[group]))
        for pair in self._ahead[group] if ahead else self._behind[group]:
            self._together[pair] += share[:, None] if ahead else share[None]
            self._alone[group] = self._alone[group] - share
