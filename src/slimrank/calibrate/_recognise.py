# SPDX-License-Identifier: Apache-2.0
"""What outputs mean, told from their values: scores of classes, probabilities, or numbers."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.calibrate._signs import Signs, signs_of, values_rows
from slimrank.records import Family

# How far from 1 the sum of probabilities may be: bfloat16 rounds each of them by up to 1/512 of it.
_SUM_TOLERANCE = 3e-3
# Joint movement from which on an unusual dimension holds no classes.
_APART = 0.8
# What is called logits is read so where joint movement is below the first, or values stand out more than the
# second: scores of labels, which are called so too, rise and fall together and none stands out.
_TOGETHER, _RATHER_OUT = 1.5, 0.56
# Along two dimensions values stand out alike, as points on a map do, where joint movements are this close.
_STANDS_OUT, _ALIKE = 0.7, 1.25
# Dimensions of outputs that hold labels, one row for a sample, and from which on they are maps.
_LABELS, _MAP = 2, 4
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


def recognise(values: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> dict[str, Reading]:
    """Reads outputs from their values over the data.

    Args:
        values: (N, ...) float32 by path.
        masks: (N, T) bool by path, True for tokens that count.

    Returns:
        A reading of each; maps of one head share it.
    """
    # Where samples hold nothing, there is nothing to read; any family measures 0.
    empty = Reading(family="gaussian", reason="it holds no values")
    readings = {path: empty for path, value in values.items() if not value.numel()}
    for paths in _heads({path: value for path, value in values.items() if value.numel()}):
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
    probabilities = _read_probabilities(parts, dims, mask)
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
    signs = [(dim, signs_of(parts, dim, mask)) for dim in dims]
    if _are_alike([found for _, found in signs]):
        return Reading(family="gaussian", reason="it looks alike along both dimensions, as a map does")
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


def _are_alike(signs: Sequence[Signs | None]) -> bool:
    """Whether values stand out along two dimensions in the same way: points on a map, not classes."""
    known = [found for found in signs if found is not None and found.stands_out > _STANDS_OUT]
    if len(known) < 2:
        return False
    together = sorted(found.together for found in known)
    return bool(together[-1] < _ALIKE * together[0])


def _read_probabilities(parts: Sequence[Tensor], dims: Sequence[int], mask: Tensor | None) -> Reading | None:
    """Values that are certainly probabilities of classes, or their logarithms; None for others."""
    for dim in dims:
        rows = [values_rows(part, dim, mask) for part in parts]
        if all(sums_to_one(part) for part in rows):
            reason = "its values are probabilities that sum to one"
            return Reading(family="categorical", dim=dim, is_probability=True, reason=reason)
        if all(_are_log_probabilities(part) for part in rows):
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


def is_between(values: Tensor, low: float, high: float) -> bool:
    """Whether all values lie in a range."""
    return bool((values >= low).all() and (values <= high).all())


def sums_to_one(rows: Tensor) -> bool:
    """Whether the values of every row are probabilities that sum to one; no values are none."""
    if not rows.numel() or not bool((rows >= 0).all()):
        return False
    return bool((rows.sum(-1) - 1).abs().max() < _SUM_TOLERANCE)


def _are_log_probabilities(rows: Tensor) -> bool:
    if not bool((rows <= _SUM_TOLERANCE).all()):
        return False
    # A logarithm is rounded by a share of itself, on average of the entropy.
    tolerance = _SUM_TOLERANCE * max(1.0, math.log(rows.shape[-1]))
    return bool(rows.logsumexp(-1).abs().max() < tolerance)
