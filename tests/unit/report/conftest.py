# SPDX-License-Identifier: Apache-2.0
"""A small result and a small model, with every case a report must show."""

import numpy as np
import pytest

from slimrank.plan import Plan, Step, structure_of
from slimrank.records import (
    Agreement,
    AxisUnits,
    BlockDamage,
    BlockSpec,
    Call,
    ChannelMap,
    Cost,
    GroupCurve,
    GroupSpec,
    LayerResult,
    LayerSpec,
    Measurement,
    Note,
    Role,
    Setting,
    Summary,
    TensorSpec,
)
from specs import BOX, TOKENS, conv2d, linear, other


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
def agreement() -> Agreement:
    """Of a sequence of classes, and of four numbers."""
    return Agreement(
        {
            "logits": TOKENS,
            "box": BOX,
        },
        2.4841,
    )


@pytest.fixture
def specs() -> tuple[LayerSpec, ...]:
    call = Call(input_shape=(1, 3, 8, 8), output_shape=(1, 16, 8, 8))
    return (
        conv2d("stem", 16, 3, size=8, has_bias=True, calls=(call, call)),
        other("spare", "Own<Linear>", has_bias=False, reason="never called"),
    )


@pytest.fixture
def specs_cost() -> Cost:
    return Cost(macs=60_000, params=448, bytes=1_792)


def _axis(group: str, dim: int, role: Role, size: int) -> AxisUnits:
    return AxisUnits(group=group, dim=dim, role=role, units=tuple(range(size)))


def _tensor(name: str, shape: tuple[int, ...], positions: int, *axes: AxisUnits) -> TensorSpec:
    return TensorSpec(name=name, shape=shape, itemsize=4, is_parameter=True, positions=positions, axes=axes)


@pytest.fixture
def channels() -> ChannelMap:
    """``up`` makes 64 channels that ``down`` and ``side`` read; ``extra.fc`` can go whole."""
    return ChannelMap(
        groups={
            "up": GroupSpec(
                name="up",
                units=64,
                unit_width=1,
                producers=("up",),
                consumers=("down", "side"),
                sizes=(("", "width"), ("head", "size")),
            ),
            "heads": GroupSpec(
                name="heads",
                units=4,
                unit_width=8,
                producers=("heads", "keys"),
                consumers=(),
                sizes=(("attention", "num_heads"),),
            ),
            "down": GroupSpec(
                name="down", units=32, unit_width=1, producers=("down",), consumers=(), reason="an output"
            ),
            "side": GroupSpec(
                name="side", units=8, unit_width=1, producers=("side",), consumers=(), reason="an output"
            ),
        },
        tensors={
            "up.weight": _tensor("up.weight", (64, 16), 1, _axis("up", 0, "output", 64)),
            "down.weight": _tensor("down.weight", (32, 64), 1, _axis("up", 1, "input", 64)),
            "side.weight": _tensor("side.weight", (8, 64), 1, _axis("up", 1, "input", 64)),
        },
        blocks={"extra": BlockSpec(name="extra", macs=1_000, params=500, bytes=2_000)},
    )


@pytest.fixture
def group_curves() -> tuple[GroupCurve, ...]:
    kept = np.array([16, 30, 40], dtype=np.int64)
    damage = np.array([0.9, 0.25, 0.1])
    return (GroupCurve(group="up", order=tuple(range(64)), kept=kept, error=damage, damage=damage),)


@pytest.fixture
def block_damages() -> tuple[BlockDamage, ...]:
    return (BlockDamage(block="extra", damage=0.5),)


@pytest.fixture
def slim_plan(channels: ChannelMap) -> Plan:
    """Two pairs, one of them on a slimmed layer; one slimmed group; one dropped block."""
    methods = ("weight_svd", "channel_pruning")
    specs = [
        linear("up", 64, 16, has_bias=False, methods=methods),
        linear("down", 32, 64, has_bias=False, methods=methods),
        linear("side", 8, 64, has_bias=False, reason="too small"),
        linear("alone", 8, 8, has_bias=False, reason="too small"),
        linear("extra.fc", 20, 25, has_bias=False, methods=methods),
    ]
    step = Step(
        structure=structure_of(specs, channels),
        layers={"down": (Setting(method="weight_svd", form="linear", rank=4),)},
        groups={"up": tuple(range(24))},
        dropped=("extra",),
    )
    before = Cost(macs=5_000, params=4_096, bytes=16_384)
    return Plan(steps=(step,), before=before, has_bias=False, select="optimal", damage=0.25, gap=0.01)
