# SPDX-License-Identifier: Apache-2.0
"""The look of a report in a terminal: any change shows as a diff of ``report.txt``."""

from collections.abc import Callable

from slimrank.cost import layer_cost, pair_cost
from slimrank.records import (
    Agreement,
    Cost,
    LayerResult,
    Measurement,
    Note,
    OutputAgreement,
    Setting,
    Summary,
)
from slimrank.report import render_layers, render_text
from specs import conv2d


def test_report_text(golden: Callable[[str, str], None]) -> None:
    specs = (
        conv2d("stem", 32, 3, size=32, reason="too small to gain"),
        conv2d("block.0.conv", 64, 32, size=32),
        conv2d("block.1.conv", 128, 64, size=16),
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
        agreement=Agreement(
            {
                "masks": OutputAgreement(
                    family="categorical",
                    shape=(4, 2, 2),
                    positions=4,
                    divergence=0.0248,
                    lost=0.01,
                    top1=0.98906,
                    by_element=(1.0, 0.99, 0.912, 1.0),
                    elements=(2, 2),
                ),
                "boxes": OutputAgreement(
                    family="gaussian",
                    shape=(4,),
                    positions=1,
                    divergence=0.0013,
                    lost=0.0013,
                    cosine=0.99812,
                    relative_error=0.036,
                    by_element=(0.01, 0.02, 0.03, 0.064),
                    elements=(4,),
                ),
            },
            0.0261,
        ),
        notes=(
            Note(where="verify", text="measured on few samples: give more of them", is_warning=True),
            Note(where="block.1.conv", text="few rows for its columns; its moments were shrunk more"),
        ),
        seconds={"study": 6.25, "plan": 0.02, "apply": 2.5},
        measurements=(
            Measurement(name="accuracy", before=94.8, after=94.31, unit="%"),
            Measurement(name="latency, batch 1", before=3.21, after=2.34, unit="ms"),
        ),
    )
    golden("report.txt", render_layers(specs, before) + "\n" + render_text(summary))
