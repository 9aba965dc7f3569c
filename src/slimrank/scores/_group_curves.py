# SPDX-License-Identifier: Apache-2.0
"""Scores to curves of channel groups: what a group loses with the units that were tried, or between them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from slimrank._errors import ScoreError
from slimrank._isotonic import never_falling
from slimrank._names import nearest
from slimrank.plan import multiple_for
from slimrank.records import ChannelMap, GroupCurve
from slimrank.scores._scores import Scores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def score_group_curves(
    scores: Scores,
    channels: ChannelMap,
    curves: Sequence[GroupCurve],
    *,
    monotonic: bool = False,
    interpolate: bool = False,
    walk_down: bool = False,
    multiple_of: int | Mapping[str, int] = 1,
) -> tuple[GroupCurve, ...]:
    """Curves whose damage is the loss of score, at the numbers of units that were tried.

    Losses are treated as those of layers are (``score_curves``), over the share of units kept. The whole
    group loses nothing.

    Args:
        scores: the table.
        channels: groups of the model.
        curves: of the study: which units stay, and what numbers of them are offered.
        monotonic: make losses fall with the units kept, by isotonic regression per group.
        interpolate: offer every number of units of ``curves`` from the smallest tried one on, too; their
            losses are interpolated.
        walk_down: AIMET's greedy rule, as in ``score_curves``.
        multiple_of: outputs that a group leaves its first producer are multiples of this: a number, or
            name glob -> number; a tried number of units is rounded up, its loss interpolated.

    Returns:
        The curves; groups that the table does not hold have none. ``error`` is nan.

    Raises:
        ScoreError: the table holds a group, or a number of units, that the study does not offer.
    """
    curve_by_group = {curve.group: curve for curve in curves}
    for name in scores.groups:
        if name not in curve_by_group:
            raise ScoreError(
                f"score table: the study has no curve of a group {name!r}; {nearest(name, curve_by_group)}"
            )
    found = []
    for name, curve in curve_by_group.items():
        if not scores.groups.get(name):
            continue
        tried, losses = _tried_counts(scores, curve)
        if monotonic:
            losses = never_falling(losses[::-1])[::-1]
        # A multiple is one of channels, and a unit may have several.
        unit_width, multiple = channels.groups[name].unit_width, multiple_for(multiple_of, name)
        allowed = curve.kept[curve.kept * unit_width % multiple == 0]
        counts = _offered_counts(tried, allowed, interpolate=interpolate)
        if not len(counts):
            continue
        losses = np.interp(counts, np.append(tried, len(curve.order)), np.append(losses, 0.0))
        if walk_down:
            losses = np.maximum.accumulate(losses[::-1])[::-1]
        found.append(replace(curve, kept=counts, error=np.full(len(counts), np.nan), damage=losses))
    return tuple(found)


def _tried_counts(scores: Scores, curve: GroupCurve) -> tuple[Ints, Floats]:
    """Numbers of units that were tried of one group, ascending, and their losses."""
    losses = {entry.rank: scores.loss(entry) for entry in scores.groups[curve.group]}
    counts = np.array(sorted(losses), dtype=np.int64)
    unknown = counts[~np.isin(counts, curve.kept)]
    if len(unknown):
        raise ScoreError(
            f"score table: group {curve.group!r} cannot keep {unknown[0]} of its {len(curve.order)} units; "
            "delete the entry, or measure the scores again"
        )
    return counts, np.array([losses[count] for count in counts.tolist()], dtype=np.float64)


def _offered_counts(tried: Ints, allowed: Ints, *, interpolate: bool) -> Ints:
    """Of the allowed numbers of units, ascending, those that tried ones round up to, or all from there on."""
    indices = np.unique(np.searchsorted(allowed, tried))
    if interpolate:
        return allowed[int(indices[0]) :]
    # A tried number above the largest allowed one has nothing to round up to.
    return allowed[indices[indices < len(allowed)]]
