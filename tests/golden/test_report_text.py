# SPDX-License-Identifier: Apache-2.0
"""The look of a report in a terminal: any change shows as a diff of ``report.txt``."""

from collections.abc import Callable

from slimrank.cost import layer_cost, pair_cost
from slimrank.records import Call, Cost, LayerResult, LayerSpec, Measurement, Note, Setting, Summary
from slimrank.report import render_layers, render_text


def _conv(name: str, c_in: int, c_out: int, size: int, reason: str | None = None) -> LayerSpec:
    call = Call(input_shape=(1, c_in, size, size), output_shape=(1, c_out, size, size))
    return LayerSpec(
        name=name,
        kind="conv2d",
        class_name="Conv2d",
        weight_shape=(c_out, c_in, 3, 3),
        has_bias=False,
        dtype="float32",
        itemsize=4,
        calls=(call,),
        macs=c_in * c_out * 9 * size * size,
        params=c_in * c_out * 9,
        methods=() if reason else ("weight_svd", "spatial_svd"),
        reason=reason,
    )


def test_report_text(golden: Callable[[str, str], None]) -> None:
    specs = (
        _conv("stem", 3, 32, 32, "too small to gain"),
        _conv("block.0.conv", 32, 64, 32),
        _conv("block.1.conv", 64, 128, 16),
    )
    before = sum((layer_cost(spec) for spec in specs), Cost(macs=65_536, params=0, bytes=0))
    layers = [
        LayerResult(
            name="stem", before=layer_cost(specs[0]), after=layer_cost(specs[0]), reason=specs[0].reason
        )
    ]
    for spec, rank, damage in zip(specs[1:], (24, 48), (0.00412, 0.0198), strict=True):
        setting = Setting(method="spatial_svd", form="v_h", rank=rank)
        after = pair_cost(spec, "v_h", rank, has_bias=True)
        layers.append(
            LayerResult(
                name=spec.name,
                before=layer_cost(spec),
                after=after,
                setting=setting,
                damage=damage,
                fit="sequential",
            )
        )
    summary = Summary(
        title="A small network at half of its MACs",
        before=before,
        start=before,
        after=sum((layer.after for layer in layers), Cost(macs=65_536, params=0, bytes=0)),
        layers=tuple(layers),
        divergence=0.0261,
        damage=0.02392,
        unit="nats per sample",
        damage_unit="nats per sample",
        notes=(Note(where="block.1.conv", text="few rows for its columns; its moments were shrunk more"),),
        seconds={"study": 6.25, "plan": 0.02, "apply": 2.5},
        measurements=(
            Measurement(name="accuracy", before=94.8, after=94.31, unit="%"),
            Measurement(name="latency, batch 1", before=3.21, after=2.34, unit="ms"),
        ),
    )
    golden("report.txt", render_layers(specs, before) + "\n" + render_text(summary))
