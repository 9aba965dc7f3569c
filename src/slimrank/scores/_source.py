# SPDX-License-Identifier: Apache-2.0
"""A score table as something that plans are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from slimrank.plan import Plan, PlanSource, Rounding, Structure
from slimrank.records import BlockDamage, Cost, Curve, GroupCurve
from slimrank.scores._curves import score_curves
from slimrank.scores._group_curves import score_group_curves
from slimrank.scores._scores import Scores, check_scores

# The reason of a layer without scores, shown where a budget cannot be met without it.
# Why a layer without scores is left alone.
UNSCORED = "not in the score table; measure it with layers="


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScoredSource:
    """What ``select_plan`` chooses from: the layers and groups of a study, losses from a score table.

    Attributes:
        structure: of the model.
        before: cost of the whole model.
        has_bias: whether every second factor carries a bias.
        curves: loss of score and cost by rank.
        methods: that the table holds.
        previous: the plan that made the model, where it had been compressed before.
        group_curves: loss of score by the units that stay.
        block_damages: none; a table holds no scores of blocks.
    """

    structure: Structure
    before: Cost
    has_bias: bool
    curves: Sequence[Curve]
    methods: Sequence[str]
    previous: Plan | None
    group_curves: Sequence[GroupCurve] = ()
    block_damages: Sequence[BlockDamage] = ()


def scored_source(
    source: PlanSource,
    scores: Scores,
    fingerprint: Mapping[str, str],
    *,
    monotonic: bool = False,
    interpolate: bool = False,
    walk_down: bool = False,
    rounding: Rounding | None = None,
) -> ScoredSource:
    """A source whose damages are losses of score.

    Args:
        source: a study, or anything else with structure and costs.
        scores: the table.
        fingerprint: of the study.
        monotonic: as in ``score_curves``.
        interpolate: as in ``score_curves``.
        walk_down: as in ``score_curves``; for ``select="greedy"``.
        rounding: as ``multiple_of`` in ``score_curves``; the one that the plan will have; None for 1.

    Returns:
        The source; layers and groups that the table does not hold have no curve, so they are left alone.

    Raises:
        ScoreError: the table belongs to another study, or holds what the model does not have.
    """
    check_scores(scores, fingerprint)
    rounding = rounding or Rounding(ranks=1, widths=1)
    curves = score_curves(
        scores,
        source.structure,
        has_bias=source.has_bias,
        monotonic=monotonic,
        interpolate=interpolate,
        walk_down=walk_down,
        multiple_of=rounding.ranks,
    )
    group_curves = score_group_curves(
        scores,
        source.structure.channels,
        source.group_curves,
        monotonic=monotonic,
        interpolate=interpolate,
        walk_down=walk_down,
        multiple_of=rounding.widths,
    )
    # Only the error for a budget out of reach shows these reasons; a plan keeps the structure of the study.
    layers = {
        name: spec
        if name in scores.entries or not spec.methods
        else replace(spec, methods=(), reason=UNSCORED)
        for name, spec in source.structure.layers.items()
    }
    return ScoredSource(
        structure=replace(source.structure, layers=layers),
        before=source.before,
        has_bias=source.has_bias,
        curves=curves,
        methods=scores.methods,
        previous=source.previous,
        group_curves=group_curves,
    )
