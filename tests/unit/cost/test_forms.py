# SPDX-License-Identifier: Apache-2.0
"""Rows of forms: what is derived from them equals the closed forms written out by hand."""

from dataclasses import replace
from itertools import product
from math import prod

import numpy as np
import pytest

from slimrank.cost import (
    FORM_ROWS,
    FORMS,
    at_multiples,
    factor_taps,
    forms_of,
    least_shape,
    max_rank,
    pair_costs,
    rank_problem,
    usual_ranks_in,
)
from slimrank.records import Call, Curve, Form, LayerKind, LayerSpec, Method, Setting

_DIMS: dict[LayerKind, int] = {"linear": 0, "conv1d": 1, "conv2d": 2, "conv3d": 3, "other": 2}


def _output_size(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def _spec(
    kind: LayerKind, kernel: tuple[int, ...], stride: int, padding: int, *, groups: int = 1, lead: int = 1
) -> LayerSpec:
    sizes = tuple(9 + 2 * dim for dim in range(len(kernel)))
    outputs = tuple(_output_size(size, tap, stride, padding) for size, tap in zip(sizes, kernel, strict=True))
    calls = (Call(input_shape=(lead, 6, *sizes), output_shape=(lead, 10, *outputs)),)
    if kind == "linear":
        calls = (Call(input_shape=(lead, 7, 6), output_shape=(lead, 7, 10)),)
    return LayerSpec(
        name="layer",
        kind=kind,
        class_name="Layer",
        weight_shape=(10, 6 // groups, *kernel),
        has_bias=True,
        dtype="float32",
        itemsize=4,
        stride=(stride,) * len(kernel),
        dilation=(1,) * len(kernel),
        padding=(padding,) * len(kernel),
        groups=groups,
        # A layer that is called twice costs twice.
        calls=calls * 2,
    )


_SPECS = [
    _spec(kind, kernel, stride, padding, groups=groups, lead=lead)
    for kind, n_dims in _DIMS.items()
    for kernel in product((1, 2, 3, 5), repeat=n_dims)
    for stride, padding in ((1, 0), (1, 2), (2, 1), (3, 0))
    for groups, lead in ((1, 1), (2, 1), (1, 3))
    if groups == 1 or n_dims
]


def _forms_by_hand(spec: LayerSpec, method: Method) -> tuple[Form, ...]:
    if spec.kind == "other":
        return ()
    if method == "weight_svd":
        if spec.kind == "linear":
            return ("linear",)
        return ("kxk_1x1",) if prod(spec.kernel) == 1 else ("kxk_1x1", "1x1_kxk")
    if method == "tucker2":
        return (
            ("1x1_kxk_1x1",) if spec.kind == "conv2d" and spec.groups == 1 and prod(spec.kernel) > 1 else ()
        )
    return ("v_h", "h_v") if spec.kind == "conv2d" and min(spec.kernel) > 1 else ()


def _max_rank_by_hand(spec: LayerSpec, form: Form) -> int:
    c_out, c_in, *kernel = spec.weight_shape
    # Each group has a pair of its own.
    c_out //= spec.groups
    taps = prod(kernel)
    if form in {"linear", "kxk_1x1"}:
        return min(c_out, c_in * taps)
    if form == "1x1_kxk":
        return min(c_in, c_out * taps)
    k_h, k_w = kernel
    return min(c_in * k_h, c_out * k_w) if form == "v_h" else min(c_in * k_w, c_out * k_h)


def _macs_by_hand(spec: LayerSpec, form: Form) -> int:
    """MACs at rank 1."""
    c_out, c_in, *kernel = spec.weight_shape
    c_in *= spec.groups
    (call, _) = spec.calls
    if form == "linear":
        return 2 * prod(call.input_shape[:-1]) * (c_in + c_out)
    lead, _, *sizes_in = call.input_shape
    sizes_out = call.output_shape[2:]
    inside, outside, taps = lead * prod(sizes_in), lead * prod(sizes_out), prod(kernel)
    if form == "kxk_1x1":
        return 2 * (c_in * taps * outside + c_out * outside)
    if form == "1x1_kxk":
        return 2 * (c_in * inside + c_out * taps * outside)
    (h_in, w_in), (h_out, w_out), (k_h, k_w) = sizes_in, sizes_out, kernel
    if form == "v_h":
        return 2 * (c_in * k_h * lead * h_out * w_in + c_out * k_w * outside)
    return 2 * (c_in * k_w * lead * h_in * w_out + c_out * k_h * outside)


def _params_by_hand(spec: LayerSpec, form: Form) -> int:
    """Params at rank 1, without a bias."""
    c_out, c_in, *kernel = spec.weight_shape
    c_in *= spec.groups
    taps = prod(kernel)
    if form in {"linear", "kxk_1x1"}:
        return c_in * taps + c_out
    if form == "1x1_kxk":
        return c_in + c_out * taps
    k_h, k_w = kernel
    return c_in * k_h + c_out * k_w if form == "v_h" else c_in * k_w + c_out * k_h


def test_the_grid_holds_every_kind_and_form() -> None:
    assert {spec.kind for spec in _SPECS} == set(_DIMS)
    assert {form for spec in _SPECS for method in FORMS for form in forms_of(spec, method)} == set(FORM_ROWS)


@pytest.mark.parametrize("method", FORMS)
def test_forms_of_a_layer_stand_in_the_order_of_ties(method: Method) -> None:
    for spec in _SPECS:
        assert forms_of(spec, method) == _forms_by_hand(spec, method), spec


def test_no_form_belongs_to_channel_pruning() -> None:
    assert {forms_of(spec, "channel_pruning") for spec in _SPECS} == {()}


def test_ranks_and_costs_equal_the_formulas_by_hand() -> None:
    ranks = np.arange(1, 4)
    for spec in _SPECS:
        for form in (*forms_of(spec, "weight_svd"), *forms_of(spec, "spatial_svd")):
            assert max_rank(spec, form) == _max_rank_by_hand(spec, form), (spec, form)
            for has_bias in (False, True):
                macs, params = pair_costs(spec, form, ranks, has_bias=has_bias)
                assert macs.tolist() == (ranks * _macs_by_hand(spec, form)).tolist(), (spec, form)
                expected = ranks * _params_by_hand(spec, form) + 10 * has_bias
                assert params.tolist() == expected.tolist(), (spec, form)


def test_ranks_and_costs_of_three_factors_equal_the_formulas_by_hand() -> None:
    ranks, ranks_in = np.array([1, 4, 10]), np.array([2, 3, 6])
    seen = 0
    for spec in _SPECS:
        for form in forms_of(spec, "tucker2"):
            (call, _), taps = spec.calls, prod(spec.kernel)
            inside = call.input_shape[0] * prod(call.input_shape[2:])
            outside = call.input_shape[0] * prod(call.output_shape[2:])
            macs, params = pair_costs(spec, form, ranks, ranks_in, has_bias=True)
            expected = 6 * ranks_in * inside + (ranks_in * ranks * taps + 10 * ranks) * outside
            assert macs.tolist() == (2 * expected).tolist(), spec
            assert params.tolist() == (6 * ranks_in + ranks_in * ranks * taps + 10 * ranks + 10).tolist()
            assert max_rank(spec, form) == min(10, 6 * taps)
            seen += 1
    assert seen


def _tucker(rank: int, rank_in: int | None) -> Setting:
    return Setting(method="tucker2", form="1x1_kxk_1x1", rank=rank, rank_in=rank_in)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        (_tucker(10, 6), None),
        (_tucker(1, 2), None),
        (_tucker(11, 6), "rank 11 is outside 1..10"),
        (_tucker(0, 6), "rank 0 is outside 1..10"),
        (_tucker(10, 7), "rank_in 7 is outside 5..6 at rank 10"),
        # A map of one channel with two taps has two at most behind it, and the other way round.
        (_tucker(3, 1), "rank_in 1 is outside 2..6 at rank 3"),
        (_tucker(1, 3), "rank_in 3 is outside 1..2 at rank 1"),
        (_tucker(4, None), "rank_in None is outside 2..6 at rank 4"),
    ],
)
def test_ranks_that_a_layer_does_not_have_are_named(setting: Setting, problem: str | None) -> None:
    assert rank_problem(_spec("conv2d", (2, 1), 1, 0), setting) == problem


def test_the_usual_second_rank_is_the_same_share_and_within_bounds() -> None:
    spec, ranks = _spec("conv2d", (2, 1), 1, 0), np.arange(1, 11)
    usual = usual_ranks_in(spec, "1x1_kxk_1x1", ranks)
    assert usual is not None
    assert usual.tolist() == [1, 2, 2, 3, 3, 4, 5, 5, 6, 6]
    assert usual_ranks_in(spec, "kxk_1x1", ranks) is None


def test_the_least_shape_still_has_the_ranks() -> None:
    spec = _spec("conv2d", (3, 2), 1, 0)
    for form in ("kxk_1x1", "1x1_kxk", "v_h", "h_v"):
        ranks = np.arange(1, max_rank(spec, form) + 1)
        for rank, columns, rows in zip(ranks, *least_shape(spec, form, ranks, None), strict=True):
            narrow = replace(spec, weight_shape=(int(rows), int(columns), 3, 2))
            assert max_rank(narrow, form) >= rank
            for shape in ((rows - 1, columns), (rows, columns - 1)):
                less = replace(spec, weight_shape=(int(shape[0]), int(shape[1]), 3, 2))
                assert max_rank(less, form) < rank
    columns, rows = least_shape(spec, "1x1_kxk_1x1", np.array([4]), np.array([3]))
    assert (columns.tolist(), rows.tolist()) == ([3], [4])


def test_multiples_of_a_curve_with_two_ranks_are_raised_and_cost_what_they_are() -> None:
    spec = _spec("conv2d", (3, 3), 1, 1)
    ranks, ranks_in, damage = (
        np.arange(1, 10),
        np.array([1, 1, 2, 2, 3, 3, 5, 5, 6]),
        np.arange(9.0, 0.0, -1.0),
    )
    macs, params = pair_costs(spec, "1x1_kxk_1x1", ranks, ranks_in, has_bias=True)
    curve = Curve(
        layer="layer",
        method="tucker2",
        form="1x1_kxk_1x1",
        ranks=ranks,
        macs=macs,
        params=params,
        bytes=4 * params,
        error=damage,
        damage=damage,
        ranks_in=ranks_in,
    )
    assert at_multiples(spec, curve, 1, has_bias=True).macs.tolist() == macs.tolist()
    fours = at_multiples(spec, curve, 4, has_bias=True)
    assert fours.ranks_in is not None
    # At 8 the next multiple of 4 is 8, and the layer has six inputs.
    assert (fours.ranks.tolist(), fours.ranks_in.tolist()) == ([4], [4])
    assert fours.damage.tolist() == [6.0]
    assert fours.macs.tolist() == pair_costs(spec, curve.form, np.array([4]), np.array([4]), has_bias=True)[0]


def test_a_sample_without_a_batch_dimension_costs_the_same() -> None:
    spec = _spec("conv2d", (3, 5), 2, 1)
    call = spec.calls[0]
    unbatched = Call(input_shape=call.input_shape[1:], output_shape=call.output_shape[1:])
    for form in ("kxk_1x1", "1x1_kxk", "v_h", "h_v"):
        ranks = np.array([2])
        expected = pair_costs(spec, form, ranks, has_bias=False)
        got = pair_costs(replace(spec, calls=(unbatched,) * 2), form, ranks, has_bias=False)
        assert [part.tolist() for part in got] == [part.tolist() for part in expected]


@pytest.mark.parametrize("form", FORM_ROWS)
def test_a_closed_form_is_one_whose_second_factor_has_one_tap(form: Form) -> None:
    row = FORM_ROWS[form]
    for spec in _SPECS:
        if row.applies(spec):
            assert prod(factor_taps(spec, form)) == prod(spec.kernel)
    kernel = (2, 3)
    _, second = factor_taps(_spec("conv2d", kernel, 1, 0), form)
    assert row.is_closed == (second == 1)
