# SPDX-License-Identifier: Apache-2.0
"""How many indices of a dimension stay, at any widths of the groups that touch it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slimrank.records import AxisUnits, step_edge
from slimrank.select.layers._table import Floats, Ints

# Of each group, the index of its width: a whole number, or an array of several; the arrays broadcast
# together.
WidthIndices = Sequence[int | Ints] | Ints

# Counts are kept for every combination of widths of at most so many groups: memory is the product of their
# numbers of widths, and looking up is fast. Where more groups touch a dimension, its indices are counted at
# every call.
_MAX_TABLED_GROUPS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Widths:
    """What one group may become, or several that keep the same number of units.

    Attributes:
        name: of the group, or of the first of them.
        units: each has.
        kept: (W,) int64, numbers of units kept, ascending; the last is ``units``.
        damage: (W,) float64, at least 0; the last is 0. Of several groups, their sum.
        needs: group -> (units,) int64, the smallest number kept at which each unit stays.
    """

    name: str
    units: int
    kept: Ints
    damage: Floats
    needs: Mapping[str, Ints]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Part:
    """Indices of a dimension that the same groups touch.

    Attributes:
        groups: indices of these groups.
        need: (n, G) int64, the number each group must keep for the index to stay.
        table: count by width of each group, where that is small; else None.
        listed: the same for a single group, where looking up one number must be fast.
    """

    groups: tuple[int, ...]
    need: Ints
    table: Ints | None
    listed: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dim:
    """One dimension of a tensor.

    Attributes:
        fixed: indices that no group touches.
        parts: the others, by the groups that touch them.
        kept: of every group, its (W,) numbers of units kept.
        step: counts are those of the next multiple of this, as times are; 1 for counts as they are.
    """

    fixed: int
    parts: tuple[_Part, ...]
    kept: tuple[Ints, ...]
    step: int = 1

    @property
    def groups(self) -> frozenset[int]:
        """Indices of the groups that touch it."""
        return frozenset(group for part in self.parts for group in part.groups)

    def count(self, widths: WidthIndices) -> int | Ints:
        """How many indices stay, exactly, or up to the next step.

        Args:
            widths: index of the width of each group.

        Returns:
            int64, of the shape that the indices broadcast to.
        """
        total: int | Ints = self.fixed
        for part in self.parts:
            first = widths[part.groups[0]]
            if part.listed is not None and isinstance(first, int):
                total = total + part.listed[first]
            elif part.table is not None:
                total = total + part.table[tuple(widths[group] for group in part.groups)]
            else:
                total = total + self._staying(part, widths)
        return total if self.step == 1 else step_edge(total, self.step)

    def _staying(self, part: _Part, widths: WidthIndices) -> Ints:
        stays: NDArray[np.bool_] = np.asarray(True)
        for column, group in enumerate(part.groups):
            kept = np.asarray(self.kept[group][widths[group]])
            stays = stays & (part.need[:, column] <= kept[..., None])
        return np.asarray(stays.sum(axis=-1))

    def split(self) -> tuple["Dim", ...]:
        """Dimensions of fewer groups each, whose counts add up to this one's."""
        if self.step != 1:
            return (self,)
        fixed = Dim(fixed=self.fixed, parts=(), kept=self.kept)
        parts = tuple(Dim(fixed=0, parts=(part,), kept=self.kept) for part in self.parts)
        return (fixed, *parts) if self.fixed else parts


class Dims:
    """Makes dimensions, each distinct one once."""

    def __init__(self, widths: Sequence[Widths], fixed: Mapping[str, Sequence[int]] | None = None) -> None:
        """Look groups up.

        Args:
            widths: of each group that is offered.
            fixed: group -> units that stay, whatever is chosen.
        """
        self._widths = tuple(widths)
        # -1 stands for an index that a group does not touch.
        self._stay = {group: (*kept, -1) for group, kept in (fixed or {}).items()}
        self._index_of = {name: index for index, group in enumerate(widths) for name in group.needs}
        self._kept = tuple(group.kept for group in widths)
        self._known: dict[tuple[int, frozenset[tuple[str, tuple[int, ...]]]], Dim] = {}

    def index_of(self, group: str) -> int | None:
        """Index of a group; None where it is not offered."""
        return self._index_of.get(group)

    def all_of(self, shape: Sequence[int], axes: Sequence[AxisUnits]) -> tuple[Dim, ...]:
        """The dimensions of a tensor.

        Args:
            shape: of the tensor.
            axes: what it holds of groups; those neither offered nor fixed are as good as absent.

        Returns:
            One for each dimension.
        """
        return tuple(
            self._dim(
                size,
                [
                    axis
                    for axis in axes
                    if axis.dim == dim and (axis.group in self._index_of or axis.group in self._stay)
                ],
            )
            for dim, size in enumerate(shape)
        )

    def _dim(self, size: int, axes: Sequence[AxisUnits]) -> Dim:
        key = (size, frozenset((axis.group, axis.units) for axis in axes))
        if key not in self._known:
            self._known[key] = self._made(size, axes)
        return self._known[key]

    def _made(self, size: int, axes: Sequence[AxisUnits]) -> Dim:
        stays = np.ones(size, dtype=np.bool_)
        for axis in axes:
            if axis.group in self._stay:
                stays &= np.isin(axis.units, self._stay[axis.group])
        needs: dict[int, Ints] = {}
        for axis in axes:
            if axis.group in self._stay:
                continue
            group = self._index_of[axis.group]
            # One entry more than the units: -1 looks it up.
            need = np.append(self._widths[group].needs[axis.group], 0)[np.array(axis.units, dtype=np.int64)]
            needs[group] = np.maximum(needs.get(group, 0), need)
        if not needs:
            return Dim(fixed=int(stays.sum()), parts=(), kept=self._kept)
        groups = tuple(sorted(needs))
        stacked = np.stack([needs[group] for group in groups], axis=1)[stays]
        patterns, which = np.unique(stacked > 0, axis=0, return_inverse=True)
        fixed, parts = 0, []
        for index, pattern in enumerate(patterns):
            rows = stacked[which.reshape(-1) == index]
            if not pattern.any():
                fixed += len(rows)
                continue
            touched = tuple(group for group, used in zip(groups, pattern, strict=True) if used)
            parts.append(self._part(touched, rows[:, pattern]))
        return Dim(fixed=fixed, parts=tuple(parts), kept=self._kept)

    def _part(self, groups: tuple[int, ...], need: Ints) -> _Part:
        if len(groups) > _MAX_TABLED_GROUPS:
            return _Part(groups=groups, need=need, table=None)
        stays = [need[:, [column]] <= self._kept[group] for column, group in enumerate(groups)]
        table = stays[0].sum(axis=0)
        if len(groups) == _MAX_TABLED_GROUPS:
            table = np.rint(stays[0].T.astype(np.float64) @ stays[1].astype(np.float64)).astype(np.int64)
        listed = tuple(table.tolist()) if len(groups) == 1 else None
        return _Part(groups=groups, need=need, table=table, listed=listed)


def widths_of(name: str, units: int, order: Sequence[int], kept: Ints, damage: Floats) -> Widths:
    """What one group may become, the whole group included.

    Args:
        name: of the group.
        units: it has.
        order: units, the first to go first.
        kept: (W,) int64, ascending, below ``units``.
        damage: (W,) float64.

    Returns:
        The widths, with the whole group as the last.
    """
    need = np.empty(units, dtype=np.int64)
    need[np.array(order, dtype=np.int64)] = units - np.arange(units)
    return Widths(
        name=name,
        units=units,
        kept=np.append(kept, units).astype(np.int64),
        # Rounding may leave a damage a hair below zero.
        damage=np.append(np.maximum(damage, 0.0), 0.0),
        needs={name: need},
    )


def tied(groups: Sequence[Widths]) -> Widths:
    """Groups of equally many units, as one choice: all keep the same number of them.

    Args:
        groups: at least one.

    Returns:
        The widths that all of them may take.
    """
    first = groups[0]
    shared = [kept for kept in first.kept.tolist() if all((group.kept == kept).any() for group in groups)]
    damages = [group.damage[np.isin(group.kept, shared)] for group in groups]
    return Widths(
        name=first.name,
        units=first.units,
        kept=np.array(shared, dtype=np.int64),
        damage=np.sum(damages, axis=0),
        needs={name: need for group in groups for name, need in group.needs.items()},
    )
