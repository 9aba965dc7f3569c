# SPDX-License-Identifier: Apache-2.0
"""Values to JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import slimrank as sr
from slimrank.cli._command import Answer
from slimrank.deploy import REPORT_FILE
from slimrank.files import Json
from slimrank.records import METRICS, Cost, Measurement


def saved(result: sr.Result, out: Path, overwrite: bool) -> Answer:
    result.save(out, overwrite=overwrite)
    text = f"{result.summary()}\nSaved in {out}; report: {out / REPORT_FILE}"
    return Answer(text=text, facts=result_facts(result, out))


def result_facts(result: sr.Result, out: Path, measurements: Sequence[Measurement] = ()) -> dict[str, Json]:
    layers: list[Json] = [
        {
            "name": layer.name,
            "before": cost_facts(layer.before),
            "after": cost_facts(layer.after),
            "setting": None if layer.setting is None else asdict(layer.setting),
            "slimmed": layer.slimmed,
            "damage": layer.damage,
            "fit": layer.fit,
            "reason": layer.reason,
        }
        for layer in result.layers
    ]
    return {
        "model": str(out),
        "before": cost_facts(result.before),
        "after": cost_facts(result.after),
        "keep_ratio": {metric: result.keep_ratio(metric) for metric in METRICS},
        "divergence": result.divergence,
        "damage": result.damage,
        "unit": result.unit,
        "damage_unit": result.damage_unit,
        "measurements": [asdict(measured) for measured in measurements],
        "layers": layers,
        "notes": [str(note) for note in result.notes],
        "seconds": dict(result.seconds),
    }


def channel_facts(measured: sr.Study) -> dict[str, Json]:
    channels = measured.structure.channels
    damages = {one.block: one.damage for one in measured.block_damages}
    groups: list[Json] = [
        {
            "name": group.name,
            "units": group.units,
            "unit_width": group.unit_width,
            "producers": list(group.producers),
            "consumers": list(group.consumers),
            "sizes": [list(size) for size in group.sizes],
            "reason": group.reason,
        }
        for group in channels.groups.values()
    ]
    blocks: list[Json] = [
        {
            "name": block.name,
            "macs": block.macs,
            "params": block.params,
            "bytes": block.bytes,
            "damage": damages.get(block.name),
        }
        for block in channels.blocks.values()
    ]
    return {"groups": groups, "blocks": blocks}


def cost_facts(cost: Cost) -> dict[str, Json]:
    return {metric: cost.metric(metric) for metric in METRICS}
