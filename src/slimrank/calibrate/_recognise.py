# SPDX-License-Identifier: Apache-2.0
"""What outputs mean, told from their values: scores of classes, probabilities, or numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.calibrate._output_model import Family

# Values of one output that are looked at; a share of them tells as much as all.
_MAX_VALUES = 4_000_000
_MAX_ROWS = 20_000
# How far from 1 the sum of probabilities may be: bfloat16 rounds each of them by up to 1/512 of it.
_SUM_TOLERANCE = 3e-3
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
_MIN_IN_USE = 0.05
_MAX_UNSURE = 0.9
_MAX_GAP = 25.0
_MIN_LENGTHS = 0.05
_MAX_SPREADS = 30.0
_STANDS_OUT, _TOGETHER = 0.7, 0.8
_RATHER_OUT, _APART, _CLUSTERED = 0.56, 0.8, 0.3
_FEW_CLASSES, _MAX_SMOOTH, _CURVE = 16, 0.5, 0.8
_EITHER_OR = 0.3
_SAYS_NO, _NOT_EXCLUSIVE, _ONLY_ONE = -0.7, 0.25, 0.85
# Ratio of spreads that is written out; a greater one only tells that an element is constant.
_MAX_TOLD = 1000.0
# Dimensions of outputs that hold labels, one row for a sample, and of maps.
_LABELS, _MAP = 2, 4
# Largest over median spread along a dimension from which on its entries are told apart.
_OTHER_SPREAD = 1.5
# Of values from 0 to 1: how many may be 0, and their mean uncertainty, 0 for sure to 1 for 0.5.
_MAX_ZERO, _MAX_UNSURE_YES = 0.01, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How one output is read, and why.

    Attributes:
        family: its distribution.
        reason: for people.
        dim: dimension of the classes (categorical): 1 or -1.
        is_probability: values are probabilities, not logits.
    """

    family: Family
    reason: str
    dim: int = -1
    is_probability: bool = False

    @property
    def described(self) -> str:
        """The family, and what it is a family of."""
        kind = " (probabilities)" if self.is_probability else ""
        if self.family == "categorical":
            # Shapes are shown without the dimension of the samples: to count dimensions would mislead.
            return f"categorical over its {'last dimension' if self.dim == -1 else 'channels'}{kind}"
        return self.family + kind


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signs:
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
        if self.stands_out > _STANDS_OUT and self.together < max(_TOGETHER, self.classes / 4):
            return f"one value stands out in each row ({self._figures})"
        is_clustered = self.clustered > _CLUSTERED
        if self.stands_out > _RATHER_OUT and self.together < _APART and is_clustered:
            return f"values exclude each other and one stands out in each row ({self._figures})"
        is_few = self.classes <= _FEW_CLASSES
        if is_few and is_clustered and self.together < self.clustered / 2 and self.smooth < _MAX_SMOOTH:
            return f"its values exclude each other ({self._figures})"
        return None

    @property
    def are_labels(self) -> bool:
        """Whether the scores are of labels, each yes or no, rather than of classes: most no, several yes."""
        is_one = self.stands_out > _ONLY_ONE or self.together < _NOT_EXCLUSIVE
        return self.level < _SAYS_NO and not is_one

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
            (self.lengths < _MIN_LENGTHS, "its rows all have the same length, as embeddings have"),
            (self.spreads > max_spreads, f"its elements differ in spread, {_times_text(self.spreads)}"),
        )
        return next((reason for is_against, reason in reasons if is_against), None)


def _times_text(ratio: float) -> str:
    """How far the largest spread is from the smallest, which may be 0."""
    return (
        f"the largest is {ratio:.0f} times the smallest" if ratio < _MAX_TOLD else "some hardly vary at all"
    )


def recognise(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Reading]:
    """Reads outputs from their values over the data.

    Args:
        values: (N, ...) float32 by path.
        masks: (N, T) bool by path, True for tokens that count.

    Returns:
        A reading of each; maps of one head share it.
    """
    readings: dict[str, Reading] = {}
    for paths in _heads(values):
        parts = [values[path] for path in paths]
        reading = _read(paths[0], parts, masks.get(paths[0]))
        readings.update(dict.fromkeys(paths, reading))
    return {path: readings[path] for path in values}


def _heads(values: Mapping[str, Tensor]) -> list[list[str]]:
    """Outputs that are maps of one head at several scales: siblings with as many channels, other sizes."""
    heads: list[list[str]] = []
    # Of every head: what its outputs are called but for the number, and the dimensions that may be channels.
    kinds: list[tuple[str, tuple[int, ...]]] = []
    for path, value in values.items():
        siblings, is_numbered = re.subn(r"(^|\.)\d+$", r"\1*", path)
        dims: tuple[int, ...] = (1, -1) if is_numbered and value.ndim > _LABELS else ()
        for index, (name, known_dims) in enumerate(kinds):
            known = [values[other] for other in heads[index]]
            if name != siblings or not all(_are_scales(other, value) for other in known):
                continue
            shared = tuple(
                dim for dim in known_dims if dim in dims and known[0].shape[dim] == value.shape[dim]
            )
            if shared:
                heads[index].append(path)
                kinds[index] = (name, shared)
                break
        else:
            heads.append([path])
            kinds.append((siblings, dims))
    return heads


def _are_scales(first: Tensor, second: Tensor) -> bool:
    """Whether maps with as many channels differ in size; maps as wide with other channels are other heads."""
    if first.ndim != second.ndim:
        return False
    differing = sum(a != b for a, b in zip(first.shape[1:], second.shape[1:], strict=True))
    return differing > (1 if first.ndim >= _MAP else 0)


def _read(path: str, parts: Sequence[Tensor], mask: Tensor | None) -> Reading:
    """The reading of one output, or of several maps of one head."""
    sizes = {dim: {part.shape[dim] for part in parts} for dim in _class_dims(parts[0])}
    dims = [dim for dim, found in sizes.items() if len(found) == 1 and min(found) > 1]
    probabilities = _read_probabilities(parts, dims)
    if probabilities is not None:
        return probabilities
    if all(is_between(part, 0, 1) for part in parts):
        return _read_between(parts)
    return _read_scores(path, parts, dims, mask)


def _read_scores(path: str, parts: Sequence[Tensor], dims: Sequence[int], mask: Tensor | None) -> Reading:
    """Any other values: scores of classes or labels, or numbers."""
    if not dims:
        return Reading(family="gaussian", reason="no dimension of it can hold classes")
    # The usual dimension of a map with one channel cannot hold classes, and its width is not usual.
    usual = _class_dims(parts[0])[0]
    signs = [(dim, _signs(parts, dim, mask)) for dim in dims]
    for dim, found in signs:
        # Along an unusual dimension only what is beyond doubt.
        if found is not None and found.for_classes and (dim == usual or found.together < _APART):
            if found.are_labels and parts[0].ndim == _LABELS:
                reason = (
                    "most of its values are below 0 and several stand out at once, as scores of labels do"
                )
                return Reading(family="bernoulli", reason=reason)
            return Reading(family="categorical", dim=dim, reason=found.for_classes)
    dim, first = signs[0]
    is_named = dim == usual and path.rpartition(".")[2].endswith("logits")
    if is_named and (first is None or first.together < _TOGETHER or first.stands_out > _RATHER_OUT):
        return Reading(family="categorical", dim=dim, reason="it is called logits")
    reason = "its rows are too few, or never vary" if first is None else first.for_numbers
    if parts[0].ndim >= _MAP and 1 not in dims:
        reason = "its maps have one channel"
    return Reading(family="gaussian", reason=reason)


def _read_probabilities(parts: Sequence[Tensor], dims: Sequence[int]) -> Reading | None:
    """Values that are certainly probabilities of classes, or their logarithms; None for others."""
    for dim in dims:
        if all(sums_to_one(part, dim) for part in parts):
            reason = "its values are probabilities that sum to one"
            return Reading(family="categorical", dim=dim, is_probability=True, reason=reason)
        if all(_are_log_probabilities(part, dim) for part in parts):
            reason = "its values are logarithms of probabilities that sum to one"
            return Reading(family="categorical", dim=dim, reason=reason)
    return None


def _read_between(parts: Sequence[Tensor]) -> Reading:
    """Values from 0 to 1: probabilities of yes, or numbers such as pixels."""
    values = torch.cat([part.flatten() for part in parts])
    # A sigmoid never gives 0 and a cut-off number does; what is near 0 or 1 is sure.
    n_zero = float((values == 0).float().mean())
    unsure = float((4 * values * (1 - values)).mean())
    if n_zero < _MAX_ZERO and unsure < _MAX_UNSURE_YES:
        reason = (
            "its values lie between 0 and 1 and most are close to one of them, as probabilities of yes or no "
            f"are (mean uncertainty {unsure:.2f} of 1)"
        )
        return Reading(family="bernoulli", is_probability=True, reason=reason)
    if n_zero < _MAX_ZERO:
        reason = "its values lie between 0 and 1, but not close enough to one of them for yes or no"
    else:
        reason = "its values lie between 0 and 1, and some are exactly 0, which probabilities never are"
    return Reading(family="gaussian", reason=reason)


def _class_dims(values: Tensor) -> tuple[int, ...]:
    """Dimensions that may hold classes, the usual one first: last for (N, C), (N, T, C), second for maps."""
    if values.ndim < 2:
        return ()
    if values.ndim == 2:
        return (-1,)
    return (-1, 1) if values.ndim == 3 else (1, -1)


def _signs(parts: Sequence[Tensor], dim: int, mask: Tensor | None) -> _Signs | None:
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
    return _Signs(
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
    if mask is not None and dim == -1 and values.ndim >= 3 and values.shape[:2] == mask.shape:
        values = values[mask]
    rows = values.movedim(dim, -1).reshape(-1, values.shape[dim])
    count = _row_limit(rows.shape[1])
    if len(rows) <= count:
        return rows
    return rows[torch.linspace(0, len(rows) - 1, count, device=rows.device).long()]


def is_between(values: Tensor, low: float, high: float) -> bool:
    """Whether all values lie in a range."""
    return bool((values >= low).all() and (values <= high).all())


def sums_to_one(values: Tensor, dim: int) -> bool:
    """Whether values are probabilities that sum to one along a dimension."""
    if not bool((values >= 0).all()):
        return False
    return bool((values.sum(dim) - 1).abs().max() < _SUM_TOLERANCE)


def _are_log_probabilities(values: Tensor, dim: int) -> bool:
    if not bool((values <= _SUM_TOLERANCE).all()):
        return False
    # A logarithm is rounded by a share of itself, on average of the entropy.
    tolerance = _SUM_TOLERANCE * max(1.0, math.log(values.shape[dim]))
    return bool(values.logsumexp(dim).abs().max() < tolerance)


def spread_of(values: Tensor) -> Tensor:
    """Standard deviation over the data, in a shape that divides one sample.

    Args:
        values: (N, ...).

    Returns:
        Of every element; of maps of every channel, e.g. (C, 1, 1); never 0.
    """
    # One sample has no spread; the size of the values then stands in.
    spread = values.std(0, correction=0) if len(values) > 1 else values.abs()[0]
    if values.ndim >= 4:
        # Of every channel of a map: a position that hardly varies, such as a border, would outweigh the rest.
        channels = _channel_dims(spread)
        others = [dim for dim in range(spread.ndim) if dim not in channels]
        spread = spread.square().mean(others, keepdim=True).sqrt()
    typical = spread.square().mean().sqrt()
    # Not below rounding noise: outputs that never vary would else make any change look huge.
    size = values.square().mean().sqrt()
    floor = torch.maximum(typical * 1e-2, size * 1e-4)
    floor = torch.where(floor > 0, floor, torch.ones_like(floor))
    return spread.clamp_min(floor)


def _channel_dims(spread: Tensor) -> tuple[int, ...]:
    """Dimensions of a map, (C, H, W) or more, that hold channels: the first; of (H, W, C) the last.

    In five dimensions both where spreads differ along the last: anchors, height, width, then what each tells.
    """
    last = spread.ndim - 1
    if spread.ndim == 3:
        first, second, third = spread.shape
        return (last,) if first == second and third < first else (0,)
    along = spread.square().mean(list(range(last))).sqrt()
    # A border varies less than the rest, never more.
    return (0, last) if bool(along.max() > _OTHER_SPREAD * along.median()) else (0,)
