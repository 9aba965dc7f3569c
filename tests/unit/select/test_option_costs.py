# SPDX-License-Identifier: Apache-2.0
"""Costs of options: read from curves, and in parts for layers that lose rows and columns."""

from dataclasses import replace

import numpy as np
import pytest

from seams import Costing
from slimrank.cost import forms_of, pair_cost
from slimrank.records import METRICS, Call, Cost, Curve, Form, LayerSpec
from specs import conv2d, linear


def test_a_cost_becomes_numbers_in_the_order_asked_for() -> None:
    cost = Cost(macs=2**53 - 1, params=5, bytes=20)
    assert Costing(("bytes", "macs")).as_array(cost).tolist() == [20, 2**53 - 1]


def test_options_cost_what_stands_in_the_curve() -> None:
    ranks, nothing = np.array([1, 3]), np.zeros(2)
    curve = Curve(
        layer="a",
        method="weight_svd",
        form="linear",
        ranks=ranks,
        macs=10 * ranks,
        params=7 * ranks,
        bytes=28 * ranks,
        error=nothing,
        damage=nothing,
    )
    costs = Costing(("params", "macs", "bytes")).option_costs(linear("a", 4, 3), curve)
    assert costs.dtype == np.float64
    assert costs.tolist() == [[7, 21], [10, 30], [28, 84]]


def test_parts_of_a_strided_convolution_counted_by_hand() -> None:
    # A 3 x 3 kernel with stride 2 on 8 x 8: after the vertical factor 4 x 8 positions, at the end 4 x 4.
    parts = Costing(METRICS).cost_parts(conv2d("a", 12, 6, size=8, stride=2), "v_h")
    assert parts.column.tolist() == [3 * 4 * 8, 3, 3 * 4]
    assert parts.row.tolist() == [3 * 4 * 4, 3, 3 * 4]


LAYERS = (conv2d("a", 12, 6, size=8, stride=2), linear("b", 10, 7, tokens=5), linear("c", 4, 9, itemsize=2))
CASES = [
    (spec, form)
    for spec in LAYERS
    for method in spec.methods
    for form in forms_of(spec, method)  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("spec", "form"), CASES, ids=[f"{spec.name} {form}" for spec, form in CASES])
@pytest.mark.parametrize("has_bias", [True, False])
def test_parts_add_up_to_the_pair_of_a_narrowed_layer(spec: LayerSpec, form: Form, has_bias: bool) -> None:
    rows, columns, rank = 3, 5, 2
    narrowed = replace(spec, weight_shape=(rows, columns, *spec.kernel), calls=_narrowed(spec, rows, columns))
    expected = pair_cost(narrowed, form, rank, has_bias=has_bias)
    costing = Costing(METRICS)
    parts = costing.cost_parts(spec, form)
    found = rank * (columns * parts.column + rows * parts.row)
    found += has_bias * rows * costing.number_cost(spec.itemsize)
    assert found.tolist() == costing.as_array(expected).tolist()


def _narrowed(spec: LayerSpec, rows: int, columns: int) -> tuple[Call, ...]:
    """The calls, with as many channels as the narrowed layer reads and makes."""

    def with_channels(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
        place = len(shape) - 1 - len(spec.kernel)
        return (*shape[:place], count, *shape[place + 1 :])

    return tuple(
        Call(
            input_shape=with_channels(call.input_shape, columns),
            output_shape=with_channels(call.output_shape, rows),
        )
        for call in spec.calls
    )
