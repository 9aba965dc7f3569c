# SPDX-License-Identifier: Apache-2.0
"""Curves: the ranks that save something, where to measure, and damage between the measurements."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from slimrank.capture import describe_layers
from slimrank.cost import layer_cost, pair_cost
from slimrank.linalg import Moments
from slimrank.methods import (
    Anchor,
    Target,
    anchor_points,
    anchored_curves,
    error_by_rank,
    layer_curves,
    metric_roots,
    relative_curves,
)
from slimrank.records import METHODS, Call, Curve, Form, LayerSpec, Method, Setting


def _spec(layer: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> LayerSpec:
    (spec,) = describe_layers(nn.Sequential(layer))
    return replace(spec, calls=(Call(input_shape=in_shape, output_shape=out_shape),))


def _target(spec: LayerSpec, rng: torch.Generator) -> Target:
    weight = torch.randn(spec.weight_shape, dtype=torch.float64, generator=rng).flatten(1)
    root, inverse_root = metric_roots(None, len(weight), weight.device)
    moments = Moments.identity(weight.shape[1], weight.device)
    return Target(dense=weight, moments=moments, root=root, inverse_root=inverse_root, ridge=1e-12)


def _curve(
    error: Sequence[float],
    macs: Sequence[int] | None = None,
    *,
    method: Method = "weight_svd",
    form: Form = "linear",
) -> Curve:
    values = np.array(error, dtype=np.float64)
    ranks = np.arange(1, len(values) + 1, dtype=np.int64)
    cost = ranks * 10 if macs is None else np.array(macs, dtype=np.int64)
    return Curve(
        layer="fc",
        method=method,
        form=form,
        ranks=ranks,
        macs=cost,
        params=cost,
        bytes=4 * cost,
        error=values,
        damage=values,
    )


def _anchor(error: float, divergence: float) -> Anchor:
    return Anchor(
        setting=Setting(method="weight_svd", form="linear", rank=1), error=error, divergence=divergence
    )


def _damage(error: Sequence[float], *anchors: tuple[float, float]) -> list[float]:
    points = [_anchor(*anchor) for anchor in anchors]
    (curve,) = anchored_curves([_curve(error)], points)
    return curve.damage.tolist()


# --- curves of a layer ---


def test_curves_hold_the_ranks_that_save_macs_or_params(rng: torch.Generator) -> None:
    spec = _spec(nn.Conv2d(6, 8, 3, padding=1), (1, 6, 7, 9), (1, 8, 7, 9))
    target = _target(spec, rng)
    curves = layer_curves(spec, METHODS, target, has_bias=True)
    whole = layer_cost(spec)
    assert [(c.method, c.form) for c in curves] == [
        ("weight_svd", "kxk_1x1"),
        ("weight_svd", "1x1_kxk"),
        ("spatial_svd", "v_h"),
        ("spatial_svd", "h_v"),
    ]
    for curve in curves:
        assert curve.layer == spec.name
        errors = error_by_rank(spec, curve.form, target)
        for index, rank in enumerate(curve.ranks.tolist()):
            cost = pair_cost(spec, curve.form, rank, has_bias=True)
            assert (cost.macs, cost.params, cost.bytes) == (
                curve.macs[index],
                curve.params[index],
                curve.bytes[index],
            )
            assert cost.macs < whole.macs or cost.params < whole.params
            assert curve.error[index] == pytest.approx(float(errors[rank]))
        beyond = pair_cost(spec, curve.form, int(curve.ranks[-1]) + 1, has_bias=True)
        assert curve.ranks[-1] == len(errors) - 1 or (
            beyond.macs >= whole.macs and beyond.params >= whole.params
        )
        assert np.array_equal(curve.damage, curve.error)


def test_only_the_methods_asked_for_are_offered(rng: torch.Generator) -> None:
    spec = _spec(nn.Conv2d(6, 8, 3), (1, 6, 7, 9), (1, 8, 5, 7))
    curves = layer_curves(spec, ["spatial_svd"], _target(spec, rng), has_bias=False)
    assert {curve.method for curve in curves} == {"spatial_svd"}
    linear = _spec(nn.Linear(8, 8), (1, 8), (1, 8))
    assert layer_curves(linear, ["spatial_svd"], _target(linear, rng), has_bias=False) == ()


def test_forms_without_gain_are_left_out(rng: torch.Generator) -> None:
    # Two inputs, two outputs: rank 1 costs four numbers, as the layer does.
    tiny = _spec(nn.Linear(2, 2, bias=False), (1, 2), (1, 2))
    assert layer_curves(tiny, METHODS, _target(tiny, rng), has_bias=False) == ()
    # One output: kxk then 1x1 only adds to the layer; 1x1 then kxk pays from four channels on.
    narrow = _spec(nn.Conv2d(20, 1, 3, bias=False), (1, 20, 5, 5), (1, 1, 3, 3))
    forms = [c.form for c in layer_curves(narrow, METHODS, _target(narrow, rng), has_bias=False)]
    assert "kxk_1x1" not in forms
    assert "1x1_kxk" in forms


def test_a_rank_that_saves_params_alone_is_kept(rng: torch.Generator) -> None:
    # The 1x1 works on the map before the stride, nine times as large.
    spec = _spec(nn.Conv2d(8, 8, 3, stride=3, bias=False), (1, 8, 18, 18), (1, 8, 6, 6))
    (curve,) = [
        curve
        for curve in layer_curves(spec, METHODS, _target(spec, rng), has_bias=False)
        if curve.form == "1x1_kxk"
    ]
    whole = layer_cost(spec)
    assert curve.params[-1] < whole.params
    assert curve.macs[-1] > whole.macs


def test_relative_damage_is_a_share_of_all() -> None:
    (curve,) = relative_curves([_curve([8.0, 4.0, 1.0])], 16.0)
    assert curve.damage.tolist() == [0.5, 0.25, 0.0625]
    assert curve.error.tolist() == [8.0, 4.0, 1.0]
    (nothing,) = relative_curves([_curve([0.0, 0.0])], 0.0)
    assert nothing.damage.tolist() == [0.0, 0.0]


# --- where to measure ---


def test_anchors_lie_at_shares_of_the_cost() -> None:
    curve = _curve([100.0 - rank for rank in range(1, 11)])
    assert anchor_points([curve], 100) == [
        (Setting(method="weight_svd", form="linear", rank=5), 95.0),
        (Setting(method="weight_svd", form="linear", rank=2), 98.0),
    ]
    # Below the cheapest pair: the cheapest pair.
    assert anchor_points([_curve([9.0, 5.0], [30, 40])], 100) == [
        (Setting(method="weight_svd", form="linear", rank=2), 5.0),
        (Setting(method="weight_svd", form="linear", rank=1), 9.0),
    ]
    # One pair is measured once.
    assert anchor_points([_curve([5.0], [60])], 100) == [
        (Setting(method="weight_svd", form="linear", rank=1), 5.0)
    ]


def test_anchors_take_the_best_pair_at_each_cost() -> None:
    first = _curve([9.0, 5.0, 1.0], [10, 40, 70], form="kxk_1x1")
    second = _curve([8.0, 6.0, 2.0], [10, 40, 70], form="1x1_kxk")
    other = _curve([7.0, 6.0, 0.0], [10, 40, 70], method="spatial_svd", form="v_h")
    assert anchor_points([first, second, other], 100) == [
        (Setting(method="weight_svd", form="kxk_1x1", rank=2), 5.0),
        (Setting(method="spatial_svd", form="v_h", rank=1), 7.0),
    ]


def test_a_layer_without_curves_has_no_anchors() -> None:
    assert anchor_points([], 100) == []
    assert anchored_curves([], []) == ()


# --- damage between the measurements ---


def test_damage_goes_through_the_anchors_in_any_order() -> None:
    anchors = [(4.0, 3.0), (1.0, 0.1), (16.0, 5.0)]
    assert _damage([16.0, 4.0, 1.0], *anchors) == pytest.approx([5.0, 3.0, 0.1])
    assert _damage([16.0, 4.0, 1.0], *reversed(anchors)) == pytest.approx([5.0, 3.0, 0.1])


def test_damage_is_a_power_law_between_anchors() -> None:
    # From (1, 0.1) to (100, 10): the divergence goes with the error.
    assert _damage([30.0, 10.0, 2.0], (1.0, 0.1), (100.0, 10.0)) == pytest.approx([3.0, 1.0, 0.2])


def test_below_the_anchors_damage_goes_with_the_error() -> None:
    assert _damage([0.5, 0.01], (1.0, 0.1), (10.0, 10.0)) == pytest.approx([0.05, 0.001])


@pytest.mark.parametrize(
    ("last", "slope"), [(100.0, 2.0), (10.0, 1.0), (1e5, 3.0), (1.0, 0.3)], ids=["2", "1", "steep", "flat"]
)
def test_above_the_anchors_the_last_slope_goes_on_within_bounds(last: float, slope: float) -> None:
    (damage,) = _damage([1000.0], (1.0, 1.0), (10.0, last))
    assert damage == pytest.approx(last * 100**slope)


def test_one_anchor_scales() -> None:
    assert _damage([20.0, 2.0, 0.2], (2.0, 6.0)) == pytest.approx([60.0, 6.0, 0.6])


def test_measurements_that_fall_are_pooled() -> None:
    # Noise: 0.3 then 0.1 at a larger error become their mean; the others stay.
    damage = _damage([8.0, 4.0, 2.0, 1.0], (1.0, 0.01), (2.0, 0.3), (4.0, 0.1), (8.0, 0.9))
    assert damage == pytest.approx([0.9, 0.2, 0.2, 0.01])


def test_pooling_goes_back_as_far_as_it_must() -> None:
    damage = _damage([8.0, 4.0, 2.0, 1.0], (1.0, 0.4), (2.0, 0.5), (4.0, 0.6), (8.0, 0.1))
    assert damage == pytest.approx([0.4, 0.4, 0.4, 0.4])


def test_equal_errors_count_once() -> None:
    damage = _damage([10.0, 1.0], (1.0, 0.2), (1.0, 0.2), (10.0, 2.0))
    assert damage == pytest.approx([2.0, 0.2])


def test_zero_divergence_and_zero_error_stay_positive() -> None:
    damage = _damage([1.0, 0.5, 0.0], (1.0, 0.0), (0.0, 0.0))
    assert all(0 < value < 1e-6 for value in damage)
    assert damage == sorted(damage, reverse=True)


def test_an_output_that_broke_is_very_large_damage_not_infinite() -> None:
    damage = _damage([10.0, 3.0, 1.0], (1.0, 0.1), (10.0, float("inf")))
    assert all(np.isfinite(damage))
    assert damage[0] > 1e3
    assert damage == sorted(damage, reverse=True)
    assert damage[-1] == pytest.approx(0.1)


def test_all_pairs_of_a_layer_share_what_was_measured() -> None:
    curves = [_curve([1.0]), _curve([3.0], method="spatial_svd", form="v_h")]
    anchors = [_anchor(1.0, 2.0), _anchor(3.0, 7.0)]
    assert [c.damage.item() for c in anchored_curves(curves, anchors)] == pytest.approx([2.0, 7.0])


def test_each_curve_keeps_what_was_measured_of_its_own_form() -> None:
    curves = [
        _curve([4.0, 1.0], method="spatial_svd", form="v_h"),
        _curve([3.0, 2.0], method="spatial_svd", form="h_v"),
    ]
    settings = [
        Setting(method="spatial_svd", form="v_h", rank=2),
        Setting(method="spatial_svd", form="v_h", rank=1),
        Setting(method="spatial_svd", form="h_v", rank=1),
    ]
    anchors = [
        Anchor(setting=setting, error=error, divergence=divergence)
        for setting, error, divergence in zip(settings, (1.0, 4.0, 3.0), (0.5, 0.4, 8.0), strict=True)
    ]
    first, second = anchored_curves(curves, anchors)
    # As measured, also where a damage that never falls goes past it.
    assert first.anchors == {2: 0.5, 1: 0.4}
    assert second.anchors == {1: 8.0}
    assert dict(curves[0].anchors) == {}
