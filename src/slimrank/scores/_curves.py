# SPDX-License-Identifier: Apache-2.0
"""Scores to curves: what a layer loses at the ranks that were tried, or between them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slimrank._errors import ScoreError
from slimrank._isotonic import never_falling
from slimrank._names import nearest
from slimrank.cost import (
    FORM_ROWS,
    forms_of,
    layer_cost,
    max_rank,
    pair_costs,
    pair_has_bias,
    rank_problem,
    ranks_at,
    setting_cost,
    usual_ranks_in,
)
from slimrank.plan import Structure, check_multiple_of, multiple_for, names_of
from slimrank.records import Curve, Form, LayerSpec, Method, Setting
from slimrank.scores._entry import ScoreEntry
from slimrank.scores._scores import Scores

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class _RankLoss:
    """What a layer loses at one rank, tried or interpolated."""

    setting: Setting
    keep_ratio: float
    loss: float


def score_curves(
    scores: Scores,
    structure: Structure,
    *,
    has_bias: bool,
    monotonic: bool = False,
    interpolate: bool = False,
    walk_down: bool = False,
    multiple_of: int | Mapping[str, int] = 1,
    methods: Sequence[Method] | None = None,
) -> tuple[Curve, ...]:
    """Curves whose damage is the loss of score, at the ranks that were tried.

    Where ranks must be multiples, a tried rank is rounded up and its loss is an estimate: interpolated over
    the layer's keep ratio, between the tried neighbours (the untouched layer loses nothing). Nothing is
    offered below the smallest candidate that was tried.

    Args:
        scores: the table.
        structure: of the model.
        has_bias: whether every second factor carries a bias; else only where the layer has one.
        monotonic: make losses fall with the keep ratio, by isotonic regression per layer and method.
        interpolate: offer every rank between the tried ones, too, up to the untouched layer, in the form of
            the dearer neighbour; their losses are interpolated.
        walk_down: AIMET's greedy rule: going down from the dearest candidate, a layer stops before the first
            one that loses too much, whatever cheaper ones lose.
        multiple_of: ranks are multiples of this: a number, or layer-name glob -> number, first match wins.
        methods: of the curves; None for all in the table.

    Returns:
        The curves, damage in the unit of the score; it is negative where the score got better. ``error`` is
        nan, since nothing is known of it.

    Raises:
        ScoreError: the table holds a layer, form or rank that the model does not have.
        OptionError: a wrong multiple_of.
        UnknownNameError: a glob of multiple_of that no layer matches.
    """
    check_multiple_of(multiple_of, names_of(structure))
    for name in scores.entries:
        if name not in structure.layers:
            raise ScoreError(
                f"score table: the model has no layer {name!r}; {nearest(name, structure.layers)}"
            )
    curves: list[Curve] = []
    for name, spec in structure.layers.items():
        multiple = multiple_for(multiple_of, name)
        for method in scores.methods if methods is None else methods:
            points = _tried_ranks(scores, spec, method)
            # Points run from cheap to dear, losses must fall that way: hence the two reversals.
            if monotonic and points:
                points = _with_losses(points, never_falling(_losses(points)[::-1])[::-1])
            points = _offered_ranks(spec, points, multiple, interpolate=interpolate)
            if walk_down:
                points = _with_losses(points, np.maximum.accumulate(_losses(points)[::-1])[::-1])
            curves += _as_curves(spec, method, points, has_bias=pair_has_bias(spec, plan_has_bias=has_bias))
    return tuple(curves)


def _tried_ranks(scores: Scores, spec: LayerSpec, method: Method) -> list[_RankLoss]:
    """The ranks that were tried of one layer and method, cheapest first."""
    points = []
    whole = layer_cost(spec).macs
    for entry in scores.entries.get(spec.name, ()):
        if entry.method != method:
            continue
        setting = _setting_of(entry, forms_of(spec, method))
        if setting is None or rank_problem(spec, setting) is not None or not whole:
            raise ScoreError(
                f"score table: layer {spec.name!r} cannot take {method} {entry.tried}; "
                "delete the entry, or measure the scores again"
            )
        macs = setting_cost(spec, setting, has_bias=spec.has_bias).macs
        points.append(_RankLoss(setting=setting, keep_ratio=macs / whole, loss=scores.loss(entry)))
    return sorted(points, key=_by_ratio)


def _by_ratio(point: _RankLoss) -> tuple[float, float]:
    # Two forms may cost the same; the order of their losses makes the sort the same in every run.
    return point.keep_ratio, point.loss


def _losses(points: Iterable[_RankLoss]) -> Floats:
    return np.array([point.loss for point in points], dtype=np.float64)


def _with_losses(points: Sequence[_RankLoss], losses: Floats) -> list[_RankLoss]:
    return [replace(point, loss=float(loss)) for point, loss in zip(points, losses, strict=True)]


def _offered_ranks(
    spec: LayerSpec, points: Sequence[_RankLoss], multiple: int, *, interpolate: bool
) -> list[_RankLoss]:
    """Tried ranks that are multiples, and others whose loss is interpolated between tried neighbours."""
    if not points:
        return []
    offered = {
        point.setting: point for point in points if all(rank % multiple == 0 for rank in point.setting.ranks)
    }
    # Up, so that nothing is offered below the cheapest rank that was tried.
    wanted = [_raised(point.setting, multiple) for point in points]
    if interpolate:
        wanted += _ranks_between(spec, points, multiple)
    whole = layer_cost(spec)
    # Tables of other tools may hold a rank that costs more than the layer; interpolation ends before it.
    inner = [point for point in points if point.keep_ratio < 1]
    ratios = np.array([*(point.keep_ratio for point in inner), 1.0])
    losses = np.array([*_losses(inner), 0.0])
    for setting in wanted:
        if setting in offered or rank_problem(spec, setting) is not None:
            continue
        cost = setting_cost(spec, setting, has_bias=spec.has_bias)
        if cost.macs >= whole.macs and cost.params >= whole.params:
            continue
        ratio = cost.macs / whole.macs
        loss = float(np.interp(ratio, ratios, losses))
        offered[setting] = _RankLoss(setting=setting, keep_ratio=ratio, loss=loss)
    return sorted(offered.values(), key=_by_ratio)


def _setting_of(entry: ScoreEntry, forms: Sequence[Form]) -> Setting | None:
    """What an entry tried; None where the layer has no such form."""
    form = next((form for form in forms if form == entry.form), None)
    if form is None:
        return None
    return Setting(method=entry.method, form=form, rank=entry.rank, rank_in=entry.rank_in)


def _raised(setting: Setting, multiple: int) -> Setting:
    """A setting with its ranks rounded up."""
    rank_in = None if setting.rank_in is None else -(-setting.rank_in // multiple) * multiple
    return replace(setting, rank=-(-setting.rank // multiple) * multiple, rank_in=rank_in)


def _ranks_between(spec: LayerSpec, points: Sequence[_RankLoss], multiple: int) -> list[Setting]:
    """Every rank between two tried points, and between the dearest one and the untouched layer.

    Of two ranks, as they usually go together.
    """
    whole = layer_cost(spec).macs
    found: list[Setting] = []
    for index, low in enumerate(points):
        high = points[index + 1] if index + 1 < len(points) else None
        setting, top = (low.setting, 1.0) if high is None else (high.setting, high.keep_ratio)
        form, ranks = setting.form, np.arange(multiple, max_rank(spec, setting.form) + 1, multiple)
        ranks_in = usual_ranks_in(spec, form, ranks)
        good, ranks_in = ranks_at(spec, form, ranks, ranks_in, multiple)
        ranks = ranks[good]
        macs, _ = pair_costs(spec, form, ranks, ranks_in, has_bias=spec.has_bias)
        found += [
            replace(
                setting,
                rank=int(ranks[place]),
                rank_in=None if ranks_in is None else int(ranks_in[place]),
            )
            for place in np.flatnonzero((macs / whole > low.keep_ratio) & (macs / whole < top)).tolist()
        ]
    return found


def _as_curves(
    spec: LayerSpec, method: Method, points: Sequence[_RankLoss], *, has_bias: bool
) -> list[Curve]:
    """One curve per form, ranks ascending."""
    curves = []
    for form in dict.fromkeys(point.setting.form for point in points):
        of_form = _path([point for point in points if point.setting.form == form])
        settings = [point.setting for point in of_form]
        ranks = np.array([setting.rank for setting in settings], dtype=np.int64)
        ranks_in = (
            np.array([setting.rank_in for setting in settings], dtype=np.int64)
            if FORM_ROWS[form].has_third
            else None
        )
        macs, params = pair_costs(spec, form, ranks, ranks_in, has_bias=has_bias)
        curves.append(
            Curve(
                layer=spec.name,
                method=method,
                form=form,
                ranks=ranks,
                macs=macs,
                params=params,
                bytes=params * spec.itemsize,
                error=np.full(len(of_form), np.nan),
                damage=_losses(of_form),
                ranks_in=ranks_in,
            )
        )
    return curves


def _path(points: Sequence[_RankLoss]) -> list[_RankLoss]:
    """Points with rising ranks; of two ranks only those of which neither falls, as a curve has them."""
    path: list[_RankLoss] = []
    for point in sorted(points, key=lambda point: (point.setting.rank, point.setting.rank_in or 0)):
        last = path[-1].setting if path else None
        if last is None or (
            point.setting.rank > last.rank and (point.setting.rank_in or 0) >= (last.rank_in or 0)
        ):
            path.append(point)
    return path
