# SPDX-License-Identifier: Apache-2.0
"""Cost and damage of a layer at every rank, in every form; damage anchored by measured divergences."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from slimrank._isotonic import never_falling
from slimrank.cost import FORM_ROWS, forms_of, is_wide, keeps_rows, layer_cost, max_rank, pair_costs
from slimrank.methods._pair import true_error
from slimrank.methods._table import layer_functions
from slimrank.methods._target import Target
from slimrank.records import Curve, Form, LayerSpec, Method, Setting

# Shares of the MACs of a layer at which divergences are measured. More measurements make damages in between
# more precise; each takes a forward over the held-out samples.
ANCHOR_RATIOS = (0.5, 0.2)
# Where, as a share of the ranks of a curve, a bound is compared with a fitted pair. More make the curve more
# precise; each takes the time of one fit.
PROBE_SHARES = (0.15, 0.5)
# The same of wide layers, whose fits take long.
PROBE_SHARES_OF_WIDE = (0.3,)
# Refinement rounds of those fits; the pairs of a result get more.
PROBE_ALTERNATIONS = 1
# Keeps logarithms of bounds and of their ratios finite.
_TINY = 1e-12
# The smallest error or divergence that counts, and the largest divergence: so logarithms stay finite, also
# where a model returns inf.
_FLOOR = 1e-10
CEILING = 1e6
# Bounds of the log-log slope beyond the largest measured error: the last two measurements may lie close
# together, and a slope from noise would let damages explode or not grow at all.
_MIN_SLOPE, _MAX_SLOPE = 0.3, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One measured divergence of a layer.

    Attributes:
        setting: what the layer was replaced with.
        error: quadratic form E of what the layer was replaced with.
        divergence: measured on held-out samples, everything else as in the original.
    """

    setting: Setting
    error: float
    divergence: float


def layer_curves(
    spec: LayerSpec, methods: Sequence[Method], target: Target, *, has_bias: bool
) -> tuple[Curve, ...]:
    """Curves of a layer, one per form, damage not yet anchored (it equals the error).

    Args:
        spec: the layer.
        methods: names of the methods.
        target: the weight and its metric.
        has_bias: whether pairs carry a bias.

    Returns:
        The curves; forms without a rank that saves MACs or params are left out.
    """
    cost = layer_cost(spec)
    curves = []
    for method in methods:
        for form in forms_of(spec, method):
            if keeps_rows(spec) and not FORM_ROWS[form].works_on_rows:
                # Its moments are stored as rows, since a matrix of them would not fit; these forms need one.
                continue
            functions = layer_functions(method)
            ranks: NDArray[np.int64] = np.arange(1, max_rank(spec, form) + 1, dtype=np.int64)
            ranks_in, errors = None, None
            if functions.path is not None:
                ranks, ranks_in, errors = functions.path(spec, form, target)
            macs, params = pair_costs(spec, form, ranks, ranks_in, has_bias=has_bias)
            saves = (macs < cost.macs) | (params < cost.params)
            if not saves.any():
                continue
            if errors is None:
                # Entry 0 is without the layer.
                errors = functions.errors(spec, form, target, limit=int(ranks[saves][-1]))[1:]
            error = errors.cpu().numpy()
            error = np.minimum.accumulate(error[saves[: len(error)]])
            kept_in = None if ranks_in is None else ranks_in[saves]
            curve = _curve(spec, method, form, (ranks[saves], kept_in), (macs[saves], params[saves]), error)
            if not FORM_ROWS[form].is_closed and target.moments.n_rows:
                curve = replace(curve, error=_corrected(spec, curve, target))
            curves.append(replace(curve, damage=curve.error))
    return tuple(curves)


def possible_curves(spec: LayerSpec, methods: Sequence[Method], *, has_bias: bool) -> tuple[Curve, ...]:
    """Curves of a layer as they may come out, before anything is measured: no damage at any rank.

    Args:
        spec: the layer.
        methods: names of the methods.
        has_bias: whether pairs carry a bias.

    Returns:
        Curves of all forms, with every rank; of three factors with the least in front of it.
    """
    curves = []
    for method in methods:
        for form in forms_of(spec, method):
            ranks: NDArray[np.int64] = np.arange(1, max_rank(spec, form) + 1, dtype=np.int64)
            ranks_in = np.ones_like(ranks) if FORM_ROWS[form].has_third else None
            macs, params = pair_costs(spec, form, ranks, ranks_in, has_bias=has_bias)
            nothing = np.zeros(len(ranks))
            curves.append(_curve(spec, method, form, (ranks, ranks_in), (macs, params), nothing))
    return tuple(curves)


def _curve(
    spec: LayerSpec,
    method: Method,
    form: Form,
    ranks: tuple[NDArray[np.int64], NDArray[np.int64] | None],
    costs: tuple[NDArray[np.int64], NDArray[np.int64]],
    error: NDArray[np.float64],
) -> Curve:
    """A curve whose damage is not anchored yet: ranks, and those in front of them; MACs and params."""
    (outer, inner), (macs, params) = ranks, costs
    return Curve(
        layer=spec.name,
        method=method,
        form=form,
        ranks=outer,
        macs=macs,
        params=params,
        bytes=params * spec.itemsize,
        error=error,
        damage=error,
        ranks_in=inner,
    )


def _corrected(spec: LayerSpec, curve: Curve, target: Target) -> NDArray[np.float64]:
    """A bound lowered to the errors of refined factors on un-ridged moments, computed at a few ranks."""
    ranks, bound = curve.ranks, curve.error
    shares = PROBE_SHARES_OF_WIDE if is_wide(spec) else PROBE_SHARES
    probes = sorted({int(ranks[int(share * (len(ranks) - 1))]) for share in shares})
    log_ratios = []
    for rank in probes:
        fit = layer_functions(curve.method).fit
        factors = fit(spec, curve.setting(rank), target, alternations=PROBE_ALTERNATIONS, start=None)
        error_of_fit = true_error(target, factors.weight(spec))
        limit = max(float(bound[np.searchsorted(ranks, rank)]), _TINY)
        log_ratios.append(np.log(min(max(error_of_fit, _TINY * limit) / limit, 1.0)))
    error: NDArray[np.float64] = bound * np.exp(np.interp(np.log(ranks), np.log(probes), log_ratios))
    return np.minimum.accumulate(error)


def relative_curves(curves: Sequence[Curve], total: float) -> tuple[Curve, ...]:
    """Damage as a share of the layer's whole error, where nothing was measured.

    Args:
        curves: curves of one layer.
        total: the error of replacing the layer by nothing.

    Returns:
        The curves with damage = error / total.
    """
    return tuple(replace(curve, damage=curve.error / max(total, _FLOOR)) for curve in curves)


def anchor_points(
    curves: Sequence[Curve], macs: int, ratios: Sequence[float] = ANCHOR_RATIOS
) -> list[tuple[Setting, float]]:
    """Where to measure divergences: at a few costs, each with the pair that has the lowest error there.

    Args:
        curves: curves of one layer.
        macs: MACs of the layer as it stands.
        ratios: shares of these, the largest first.

    Returns:
        (setting, error), most expensive first, without repetition.
    """
    points: dict[Setting, float] = {}
    for ratio in ratios:
        best: tuple[float, Curve, int] | None = None
        for curve in curves:
            index = max(int(np.searchsorted(curve.macs, ratio * macs, side="right")) - 1, 0)
            if best is None or float(curve.error[index]) < best[0]:
                best = float(curve.error[index]), curve, int(curve.ranks[index])
        if best is not None:
            error, curve, rank = best
            points.setdefault(curve.setting(rank), error)
    return list(points.items())


def anchored_curves(curves: Sequence[Curve], anchors: Sequence[Anchor]) -> tuple[Curve, ...]:
    """Curves with damage in the unit of the measured divergences.

    Damage is a monotone log-log interpolation of the divergence over the error. All pairs of a layer share
    it: what follows the layer does not see how its error came about.

    Args:
        curves: curves of one layer.
        anchors: measured divergences.

    Returns:
        The curves, damage replaced; each with the anchors of its own form.
    """
    measured = [(anchor.error, anchor.divergence) for anchor in anchors]
    return tuple(
        replace(
            curve,
            damage=divergence_over_error(curve.error, measured),
            anchors={
                anchor.setting.rank: anchor.divergence
                for anchor in anchors
                if (anchor.setting.method, anchor.setting.form) == (curve.method, curve.form)
            },
        )
        for curve in curves
    )


def divergence_over_error(
    error: NDArray[np.float64], measured: Sequence[tuple[float, float]]
) -> NDArray[np.float64]:
    """Divergences that go with errors: monotone log-log interpolation between measured ones.

    Args:
        error: (K,) float64, quadratic forms.
        measured: one or more tuples (error, divergence), in any order.

    Returns:
        (K,) float64.
    """
    points = sorted(measured, key=lambda point: point[0])
    largest = max(points[-1][0], _FLOOR)
    log_errors = np.log(np.maximum([point[0] for point in points], 1e-9 * largest))
    log_divergences = np.log(never_falling(np.clip([point[1] for point in points], _FLOOR, CEILING)))
    # Of equal errors only the first serves: an interpolation needs rising ones.
    is_new = np.concatenate([[True], np.diff(log_errors) > 1e-9])
    x, y = log_errors[is_new], log_divergences[is_new]
    log_error = np.log(np.maximum(error, 1e-12 * largest))
    result = np.interp(log_error, x, y)
    slope = float(np.clip((y[-1] - y[-2]) / (x[-1] - x[-2]), _MIN_SLOPE, _MAX_SLOPE)) if len(x) > 1 else 1.0
    # Below the smallest measured error the divergence is in proportion to the error: for small changes the
    # quadratic form has the right order.
    result = np.where(log_error < x[0], y[0] + (log_error - x[0]), result)
    result = np.where(log_error > x[-1], y[-1] + slope * (log_error - x[-1]), result)
    damage: NDArray[np.float64] = np.exp(result)
    return damage
