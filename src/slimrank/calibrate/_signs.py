# SPDX-License-Identifier: Apache-2.0
"""Signs of classes in the rows of an output."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.calibrate._rows import is_mask_of

# Values of one output that are looked at; a share of them tells as much as all.
_MAX_VALUES = 4_000_000
_MAX_ROWS = 20_000
# Fewer rows than this show no pattern.
_MIN_ROWS = 16
_CHANCE_ROWS = 2000
# Share that chance explains, above which what is beyond it is noise.
_MAX_CHANCE = 0.95
# Below any difference that means something, so that nothing is divided by 0.
_TINY = 1e-30
# Limits on the signs of classes, set on the networks of benchmarks/kinds: between those of all outputs with
# classes and those without. Numbers taken for classes lose much, classes taken for numbers next to nothing,
# so that what is in doubt is numbers.
# Against classes: the same column always largest, a softmax that says nothing, gaps that no softmax needs,
# rows of one length (embeddings), columns of very different spread, columns that follow each other.
_MIN_IN_USE = 0.05
_MAX_UNSURE = 0.9
_MAX_GAP = 25.0
_MIN_LENGTHS = 0.05
_MAX_SPREADS = 30.0
_CURVE = 0.8
# For classes: one value stands out clearly; or less clearly in rows of values that exclude each other; or
# few values exclude each other, whether or not one stands out; or two are each other's opposite.
_STANDS_OUT, _TOGETHER, _FEW_TOGETHER = 0.7, 0.95, 6
_RATHER_OUT, _APART, _CLUSTERED = 0.56, 0.8, 0.3
_FEW_CLASSES, _MAX_SMOOTH = 16, 0.5
_EITHER_OR = 0.3
# For labels, which are on or off each for itself: values below 0 on average, by more where only one is on.
_SAYS_NO, _ALL_SAY_NO, _NOT_EXCLUSIVE, _ONLY_ONE = -0.7, -1.5, 0.25, 0.85
# Ratio of spreads that is written out; a greater one only tells that an element is constant.
_MAX_TOLD = 1000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """What the rows of an output show, its columns taken for classes.

    Attributes:
        classes: columns.
        stands_out: mean gap between the two largest values of a row, over the sum of that and the gap between
            its two smallest: 0.5 where rows look alike upside down, near 1 where one value stands out.
        together: variance of the row means, in units of what it were for independent columns: 0 where values
            exclude each other, ``classes`` where all rise and fall together.
        clustered: share of the variance within rows that the largest column explains, beyond what it would in
            independent normal columns: 1 where rows form one point for each class.
        in_use: entropy of which column is largest, 0 for always the same one to 1 for all equally often.
        unsure: mean entropy of the softmax, 0 to 1.
        gap: median gap between the two largest values of a row.
        lengths: spread of the lengths of rows over their mean, centred or not: 0 where rows are normalised.
        level: mean value over its standard deviation: below 0 where most scores say no.
        spreads: largest over smallest spread of a column.
        smooth: mean correlation of neighbouring columns: near 1 where they are steps of a curve.
    """

    classes: int
    stands_out: float
    together: float
    clustered: float
    in_use: float
    unsure: float
    gap: float
    lengths: float
    level: float
    spreads: float
    smooth: float

    @property
    def for_classes(self) -> str | None:
        """Why the rows are scores of classes; None where they are not."""
        if self._against is not None:
            return None
        if self.classes == 2:
            is_either = self.together < _EITHER_OR
            return f"its two values exclude each other ({self._figures})" if is_either else None
        if self.stands_out > _STANDS_OUT and self.together < self._most_together:
            return f"one value stands out in each row ({self._figures})"
        is_clustered = self.clustered > _CLUSTERED
        if self.stands_out > _RATHER_OUT and self.together < _APART and is_clustered:
            return f"values exclude each other and one stands out in each row ({self._figures})"
        is_few = self.classes <= _FEW_CLASSES
        if is_few and is_clustered and self.together < self.clustered / 2 and self.smooth < _MAX_SMOOTH:
            return f"its values exclude each other ({self._figures})"
        return None

    @property
    def _most_together(self) -> float:
        """How far values may rise and fall together where one stands out: less where there are few."""
        return _TOGETHER if self.classes <= _FEW_TOGETHER else self.classes / 4

    @property
    def are_labels(self) -> bool:
        """Whether the scores are of labels, each yes or no, rather than of classes: most say no."""
        is_one = self.stands_out > _ONLY_ONE or self.together < _NOT_EXCLUSIVE
        return self.level < (_ALL_SAY_NO if is_one else _SAYS_NO)

    @property
    def _figures(self) -> str:
        return (
            f"lead of the largest {self.stands_out:.2f}, joint movement {self.together:.2f}, "
            f"softmax entropy {self.unsure:.2f}"
        )

    @property
    def for_numbers(self) -> str:
        """What speaks against classes."""
        return self._against or f"nothing in it looks like scores of classes ({self._figures})"

    @property
    def _against(self) -> str | None:
        """What rules classes out, whatever else the rows show."""
        max_spreads = _MAX_SPREADS if self.stands_out > _STANDS_OUT else _MAX_SPREADS / 3
        is_embedding = self.lengths < _MIN_LENGTHS and self.stands_out < _ONLY_ONE
        is_curve = self.classes > 2 and self.smooth > _CURVE
        reasons = (
            (self.in_use < _MIN_IN_USE, "the same element is always the largest"),
            (
                self.unsure > _MAX_UNSURE,
                f"its softmax is near uniform (entropy {self.unsure:.2f} of the maximum)",
            ),
            (
                self.gap > _MAX_GAP,
                "its values lie farther apart than scores of classes do (the largest leads the next by "
                f"{self.gap:.0f})",
            ),
            (is_curve, f"its elements follow each other as steps of a curve do ({self.smooth:.2f})"),
            (is_embedding, "its rows all have the same length, as embeddings have"),
            (self.spreads > max_spreads, f"its elements differ in spread, {_times_text(self.spreads)}"),
        )
        return next((reason for is_against, reason in reasons if is_against), None)


def _times_text(ratio: float) -> str:
    """How far the largest spread is from the smallest, which may be 0."""
    return (
        f"the largest is {ratio:.0f} times the smallest" if ratio < _MAX_TOLD else "some hardly vary at all"
    )


def signs_of(parts: Sequence[Tensor], dim: int, mask: Tensor | None) -> Signs | None:
    """Signs of classes along a dimension; None where there are too few rows."""
    rows = torch.cat([values_rows(part, dim, mask) for part in parts]).double()
    count, classes = rows.shape
    if count < _MIN_ROWS:
        return None
    centred = rows - rows.mean(0)
    variances = centred.square().mean(0)
    if not bool(variances.any()):
        return None
    ordered = rows.sort(1).values
    top, bottom = ((ordered[:, -1] - ordered[:, -2]).mean(), (ordered[:, 1] - ordered[:, 0]).mean())
    largest = rows.argmax(1)
    used = torch.bincount(largest, minlength=classes) / count
    p = rows.softmax(1)
    norms = [shifted.norm(dim=1) for shifted in (rows, rows - rows.mean(1, keepdim=True))]
    scaled = centred / variances.sqrt().clamp_min(_TINY)
    return Signs(
        classes=classes,
        stands_out=float(top / (top + bottom).clamp_min(_TINY)),
        together=float(classes * centred.mean(1).square().mean() / variances.mean()),
        clustered=_clustered(centred, largest),
        in_use=float(torch.special.entr(used).sum()) / math.log(classes),
        unsure=float(torch.special.entr(p).sum(1).mean()) / math.log(classes),
        gap=float((ordered[:, -1] - ordered[:, -2]).median()),
        lengths=min(float(norm.std() / norm.mean().clamp_min(_TINY)) for norm in norms),
        level=float(rows.mean() / rows.std().clamp_min(_TINY)),
        spreads=float((variances.max() / variances.min().clamp_min(_TINY)).sqrt()),
        smooth=float((scaled[:, 1:] * scaled[:, :-1]).mean()),
    )


def _clustered(centred: Tensor, largest: Tensor) -> float:
    """How far rows form one point for each class: 0 as by chance, 1 for nothing but points."""
    explained, by_chance = _explained(centred, largest), _explained_by_chance(centred.shape[1])
    # Where there are so many classes that hardly two rows share one, each row is a point of its own: that
    # tells nothing.
    return (explained - by_chance) / (1 - by_chance) if by_chance < _MAX_CHANCE else 0.0


def _explained(rows: Tensor, largest: Tensor) -> float:
    """Share of the variance within rows that lies between the groups of rows with the same largest column."""
    rows = rows - rows.mean(1, keepdim=True)
    # Only of columns that are the largest somewhere: a square of a vocabulary would not fit into memory.
    used, group = largest.unique(return_inverse=True)
    sums = rows.new_zeros(len(used), rows.shape[1]).index_add_(0, group, rows)
    between = (sums.square().sum(1) / torch.bincount(group)).sum()
    return float(between / rows.square().sum().clamp_min(_TINY))


def _explained_by_chance(classes: int) -> float:
    """The same in independent standard normal columns."""
    generator = torch.Generator().manual_seed(0)
    count = min(_CHANCE_ROWS, _row_limit(classes))
    rows = torch.randn(count, classes, generator=generator).double()
    largest = rows.argmax(1)
    return _explained(rows - rows.mean(0), largest)


def _row_limit(columns: int) -> int:
    """How many rows are looked at, so that the values of all are not too many."""
    return max(_MIN_ROWS, min(_MAX_ROWS, _MAX_VALUES // columns))


def values_rows(values: Tensor, dim: int, mask: Tensor | None = None) -> Tensor:
    """Values along one dimension, a row for every sample and position that counts.

    Args:
        values: (N, ...).
        dim: of the columns.
        mask: (N, T) bool, for (N, T, ...) with columns in the last dimension.

    Returns:
        (S, C), evenly spread over the rows where there are very many.
    """
    if dim == -1 and is_mask_of(mask, values):
        values = values[mask]
    rows = values.movedim(dim, -1).reshape(-1, values.shape[dim])
    count = _row_limit(rows.shape[1])
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).long()]
