# SPDX-License-Identifier: Apache-2.0
"""A small result and a small model, with every case a report must show."""

import pytest

from slimrank.records import (
    Call,
    Cost,
    LayerResult,
    LayerSpec,
    Measurement,
    Note,
    Setting,
    Summary,
)


@pytest.fixture
def summary() -> Summary:
    return Summary(
        title="half <of> it & more",
        before=Cost(macs=1_500_000, params=12_000, bytes=48_000),
        after=Cost(macs=700_000, params=6_000, bytes=24_000),
        start=Cost(macs=1_500_000, params=12_000, bytes=48_000),
        layers=(
            LayerResult(
                name="stem",
                before=Cost(macs=1_000_000, params=9_000, bytes=36_000),
                after=Cost(macs=200_000, params=3_000, bytes=12_000),
                setting=Setting(method="spatial_svd", form="v_h", rank=7),
                damage=0.0123,
                fit="sequential",
            ),
            LayerResult(
                name="block.0.depthwise",
                before=Cost(macs=300_000, params=2_000, bytes=8_000),
                after=Cost(macs=300_000, params=2_000, bytes=8_000),
                reason="depthwise [groups=32]; a <grouped> convolution has no SVD",
            ),
            LayerResult(
                name="block.1.depthwise",
                before=Cost(macs=100_000, params=1_000, bytes=4_000),
                after=Cost(macs=100_000, params=1_000, bytes=4_000),
                reason="depthwise [groups=32]; a <grouped> convolution has no SVD",
            ),
        ),
        divergence=0.02314,
        damage=0.0187,
        unit="nats per sample",
        damage_unit="nats per sample",
        notes=(Note(where="calibrate", text='few samples: "48" < 512'),),
        seconds={"study": 8.1, "apply": 3.0},
        measurements=(Measurement(name="accuracy", before=96.3, after=96.0, unit="%"),),
    )


@pytest.fixture
def specs() -> tuple[LayerSpec, ...]:
    call = Call(input_shape=(1, 3, 8, 8), output_shape=(1, 16, 8, 8))
    return (
        LayerSpec(
            name="stem",
            kind="conv2d",
            class_name="Conv2d",
            weight_shape=(16, 3, 3, 3),
            has_bias=True,
            dtype="float32",
            itemsize=4,
            calls=(call, call),
            macs=55_296,
            params=448,
            methods=("weight_svd", "spatial_svd"),
        ),
        LayerSpec(
            name="spare",
            kind="other",
            class_name="Own<Linear>",
            weight_shape=(),
            has_bias=False,
            dtype="float32",
            itemsize=4,
            reason="never called",
        ),
    )


@pytest.fixture
def specs_cost() -> Cost:
    return Cost(macs=60_000, params=448, bytes=1_792)
