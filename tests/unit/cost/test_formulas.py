# SPDX-License-Identifier: Apache-2.0
"""Hand counts; torch's counter stands in tests/parity."""

from dataclasses import replace

import numpy as np
import pytest

from slimrank.cost import FORMS, forms_of, layer_cost, max_rank, pair_cost, pair_costs
from slimrank.records import Call, Cost, Form, LayerSpec

# 3x5 kernel, 4 -> 6 channels, stride 2 x 1: (1, 4, 10, 9) -> (1, 6, 4, 5).
_CONV = LayerSpec(
    name="conv",
    kind="conv2d",
    class_name="Conv2d",
    weight_shape=(6, 4, 3, 5),
    has_bias=True,
    dtype="float16",
    itemsize=2,
    stride=(2, 1),
    dilation=(1, 1),
    padding=(0, 0),
    calls=(Call(input_shape=(1, 4, 10, 9), output_shape=(1, 6, 4, 5)),),
)
_LINEAR = LayerSpec(
    name="fc",
    kind="linear",
    class_name="Linear",
    weight_shape=(10, 8),
    has_bias=False,
    dtype="float32",
    itemsize=4,
    calls=(Call(input_shape=(1, 7, 8), output_shape=(1, 7, 10)),),
)


def test_layer_cost_by_hand() -> None:
    assert layer_cost(_CONV) == Cost(
        macs=6 * 4 * 15 * 4 * 5, params=6 * 4 * 15 + 6, bytes=2 * (6 * 4 * 15 + 6)
    )
    assert layer_cost(_LINEAR) == Cost(macs=7 * 80, params=80, bytes=320)


@pytest.mark.parametrize(
    ("form", "macs", "params"),
    [
        ("kxk_1x1", 3 * 4 * 15 * 20 + 3 * 6 * 20, 3 * 4 * 15 + 3 * 6 + 6),
        ("1x1_kxk", 3 * 4 * 90 + 3 * 6 * 15 * 20, 3 * 4 + 3 * 6 * 15 + 6),
        # Between the factors: 4 x 9 after the column kernel, 10 x 5 after the row kernel.
        ("v_h", 3 * 4 * 3 * (4 * 9) + 3 * 6 * 5 * 20, 3 * 4 * 3 + 3 * 6 * 5 + 6),
        ("h_v", 3 * 4 * 5 * (10 * 5) + 3 * 6 * 3 * 20, 3 * 4 * 5 + 3 * 6 * 3 + 6),
    ],
)
def test_pair_cost_by_hand(form: Form, macs: int, params: int) -> None:
    assert pair_cost(_CONV, form, 3, has_bias=True) == Cost(macs=macs, params=params, bytes=2 * params)
    assert pair_cost(_CONV, form, 3, has_bias=False).params == params - 6


def test_a_linear_pair_counts_tokens() -> None:
    assert pair_cost(_LINEAR, "linear", 2, has_bias=True) == Cost(macs=7 * 2 * 18, params=46, bytes=184)


def test_every_call_counts_and_none_costs_no_macs() -> None:
    twice = replace(_LINEAR, calls=_LINEAR.calls * 2)
    assert layer_cost(twice).macs == 2 * layer_cost(_LINEAR).macs
    assert layer_cost(twice).params == layer_cost(_LINEAR).params
    assert pair_cost(twice, "linear", 2, has_bias=False).macs == 2 * 7 * 2 * 18
    assert layer_cost(replace(_LINEAR, calls=())).macs == 0


def test_other_layers_cost_what_they_say() -> None:
    other = replace(_LINEAR, kind="other", weight_shape=(), macs=12, params=5)
    assert layer_cost(other) == Cost(macs=12, params=5, bytes=20)


def test_pair_costs_grow_with_rank_and_stay_integers() -> None:
    macs, params = pair_costs(_CONV, "v_h", np.arange(1, 13), has_bias=True)
    assert macs.dtype == params.dtype == np.int64
    assert (np.diff(macs) == macs[0]).all()
    assert (np.diff(params) > 0).all()


@pytest.mark.parametrize(("form", "rank"), [("kxk_1x1", 6), ("1x1_kxk", 4), ("v_h", 12), ("h_v", 18)])
def test_max_rank(form: Form, rank: int) -> None:
    assert max_rank(_CONV, form) == rank
    assert max_rank(_LINEAR, "linear") == 8


def test_forms_that_apply() -> None:
    assert forms_of(_LINEAR, "weight_svd") == ("linear",)
    assert forms_of(_LINEAR, "spatial_svd") == ()
    assert forms_of(_CONV, "weight_svd") == ("kxk_1x1", "1x1_kxk")
    assert forms_of(_CONV, "spatial_svd") == ("v_h", "h_v")
    pointwise = replace(_CONV, weight_shape=(6, 4, 1, 1))
    assert forms_of(pointwise, "weight_svd") == ("kxk_1x1",)
    assert forms_of(pointwise, "spatial_svd") == ()
    row = replace(_CONV, weight_shape=(6, 4, 1, 5))
    assert forms_of(row, "spatial_svd") == ()
    line = replace(_CONV, kind="conv1d", weight_shape=(6, 4, 5))
    assert forms_of(line, "weight_svd") == ("kxk_1x1", "1x1_kxk")
    assert forms_of(line, "spatial_svd") == ()


@pytest.mark.parametrize("method", FORMS)
def test_unknown_layers_take_no_form(method: str) -> None:
    assert forms_of(replace(_CONV, kind="other"), method) == ()  # type: ignore[arg-type]
