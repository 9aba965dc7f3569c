# SPDX-License-Identifier: Apache-2.0
"""Whatever the layer and its data: more rank costs more and errs less, refinement never harms."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimrank.capture import describe_layers
from slimrank.cost import FORM_ROWS, forms_of, max_rank, pair_costs
from slimrank.linalg import MomentSums, times_root
from slimrank.methods import (
    Anchor,
    Target,
    anchored_curves,
    effective_weight,
    error_by_rank,
    fit_pair,
    layer_curves,
    metric_roots,
)
from slimrank.records import METHODS, Call, Curve, Form, LayerSpec, Method, Setting

_few = settings(deadline=None, max_examples=25, derandomize=True)
_sizes = st.integers(1, 5)


@st.composite
def _problems(draw: st.DrawFn) -> tuple[LayerSpec, Form, Target]:
    """A small layer in one of its forms, with moments of many, few or no rows, and any output metric."""
    c_in, c_out = draw(_sizes), draw(_sizes)
    kernel = draw(st.sampled_from([(), (1,), (3,), (1, 1), (2, 3), (3, 3), (1, 4), (2, 1, 2)]))
    conv = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel)]
    layer = conv(c_in, c_out, *([kernel] if kernel else []))
    (spec,) = describe_layers(nn.Sequential(layer))
    spatial_in = tuple(k + 3 for k in kernel)
    call = Call(input_shape=(1, c_in, *spatial_in), output_shape=(1, c_out, *(4,) * len(kernel)))
    spec = replace(spec, calls=(call,))
    form = draw(st.sampled_from([form for method in METHODS for form in forms_of(spec, method)]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    weight = torch.randn(spec.weight_shape, dtype=torch.float64, generator=rng).flatten(1)
    width = weight.shape[1]
    n_rows = draw(st.sampled_from([1, 2, 10, 200]))
    sums = MomentSums(width, keep_rows=draw(st.booleans()))
    sums.add(torch.randn((n_rows, width), generator=rng) @ torch.randn((width, width), generator=rng))
    half = torch.randn((c_out, draw(_sizes)), dtype=torch.float64, generator=rng)
    root, inverse_root = metric_roots(draw(st.sampled_from([None, half @ half.T])), c_out, weight.device)
    target = Target(
        dense=weight,
        moments=sums.moments(),
        root=root,
        inverse_root=inverse_root,
        ridge=draw(st.sampled_from([1e-6, 1e-3, 1e-1, 1.0])),
    )
    return spec, form, target


def _ridged_error(target: Target, weight: torch.Tensor) -> float:
    """In the measure that the fit works in."""
    difference = times_root(target.root, target.dense - weight)
    return float((difference @ target.moments.ridged(target.ridge) * difference).sum()) / 2


@_few
@given(_problems())
def test_error_never_rises_with_rank(problem: tuple[LayerSpec, Form, Target]) -> None:
    spec, form, target = problem
    errors = error_by_rank(spec, form, target)
    assert errors.shape == (max_rank(spec, form) + 1,)
    assert errors.isfinite().all()
    assert (errors >= 0).all()
    assert (errors.diff() <= 0).all()
    # Nothing is left at full rank but roundings: moments are sums of float32 products.
    assert errors[-1] <= 1e-6 * errors[0]


@_few
@given(_problems(), st.booleans())
def test_costs_rise_with_rank(problem: tuple[LayerSpec, Form, Target], has_bias: bool) -> None:
    spec, form, _ = problem
    ranks = np.arange(1, max_rank(spec, form) + 2)
    macs, params = pair_costs(spec, form, ranks, has_bias=has_bias)
    assert (macs > 0).all()
    assert (np.diff(macs) > 0).all()
    assert (np.diff(params) > 0).all()


@_few
@given(_problems(), st.data())
def test_refinement_never_raises_the_error(
    problem: tuple[LayerSpec, Form, Target], data: st.DataObject
) -> None:
    spec, form, target = problem
    rank = data.draw(st.integers(1, max_rank(spec, form)))
    whole = _ridged_error(target, torch.zeros_like(target.dense))
    errors = [
        _ridged_error(target, effective_weight(spec, fit_pair(spec, form, rank, target, alternations=count)))
        for count in (0, 1, 3)
    ]
    # Up to roundings of the whole: moments are sums of float32 products.
    assert errors[1] <= errors[0] + 1e-6 * whole
    assert errors[2] <= errors[1] + 1e-6 * whole
    if not FORM_ROWS[form].is_closed:
        assert errors[0] <= float(error_by_rank(spec, form, target)[rank]) + 1e-6 * whole


@_few
@given(_problems(), st.booleans())
def test_curves_of_a_layer_are_ordered(problem: tuple[LayerSpec, Form, Target], has_bias: bool) -> None:
    spec, _, target = problem
    for curve in layer_curves(spec, METHODS, target, has_bias=has_bias):
        assert len(curve.ranks) > 0
        for rising in (curve.ranks, curve.macs, curve.params, curve.bytes):
            assert (np.diff(rising) > 0).all()
        assert (np.diff(curve.error) <= 0).all()


# --- damage ---

_numbers = st.floats(1e-9, 1e6)
_anchor_lists = st.lists(st.tuples(_numbers, st.floats(0, 1e5)), min_size=1, max_size=5)


def _anchored(errors: np.ndarray, anchors: list[tuple[float, float]]) -> np.ndarray:
    ranks = np.arange(1, len(errors) + 1, dtype=np.int64)
    method: Method = "weight_svd"
    form: Form = "linear"
    curve = Curve(
        layer="fc",
        method=method,
        form=form,
        ranks=ranks,
        macs=ranks,
        params=ranks,
        bytes=ranks,
        error=errors,
        damage=errors,
    )
    setting = Setting(method=method, form=form, rank=1)
    points = [Anchor(setting=setting, error=error, divergence=value) for error, value in anchors]
    return anchored_curves([curve], points)[0].damage


@_few
@given(_anchor_lists, st.lists(st.one_of(st.just(0.0), _numbers), min_size=1, max_size=20))
def test_damage_is_positive_and_rises_with_the_error(
    anchors: list[tuple[float, float]], errors: list[float]
) -> None:
    ordered = np.array(sorted(errors, reverse=True))
    damage = _anchored(ordered, anchors)
    assert np.isfinite(damage).all()
    assert (damage > 0).all()
    # Rounding of exp and log.
    assert (np.diff(damage) <= 1e-12 * damage[:-1]).all()


@_few
@given(
    st.lists(
        st.tuples(st.floats(1e-3, 1e3), st.floats(1e-6, 1e3)),
        min_size=1,
        max_size=5,
        unique_by=lambda point: round(np.log(point[0]), 3),
    )
)
def test_damage_goes_through_monotone_anchors(points: list[tuple[float, float]]) -> None:
    errors = sorted(error for error, _ in points)
    divergences = sorted(divergence for _, divergence in points)
    damage = _anchored(np.array(errors[::-1]), list(zip(errors, divergences, strict=True)))
    np.testing.assert_allclose(damage[::-1], divergences, rtol=1e-9)


@_few
@given(
    st.lists(
        st.tuples(st.floats(1e-3, 1e3), st.floats(1e-6, 1e3)),
        min_size=2,
        max_size=5,
        unique_by=lambda point: round(np.log(point[0]), 3),
    )
)
def test_damage_at_the_anchors_is_their_isotonic_regression(points: list[tuple[float, float]]) -> None:
    points.sort()
    errors, values = (np.array(column) for column in zip(*points, strict=True))
    damage = _anchored(errors[::-1].copy(), points)[::-1]
    # Min-max formula: largest, over starts up to i, of the smallest mean to any end from i on.
    count = len(values)
    expected = [
        max(min(values[a : b + 1].mean() for b in range(i, count)) for a in range(i + 1))
        for i in range(count)
    ]
    np.testing.assert_allclose(damage, expected, rtol=1e-9)
