# SPDX-License-Identifier: Apache-2.0
"""Values as JSON: what ``--json`` prints, and what a page or a file of data may hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from slimrank.files import Json
from slimrank.plan import Plan
from slimrank.records import METRICS, BlockDamage, ChannelMap, Cost, LayerSpec, Note, Summary, ratio_of


def cost_facts(cost: Cost) -> dict[str, Json]:
    """A cost: each metric by its name."""
    return {metric: cost.metric(metric) for metric in METRICS}


def result_facts(summary: Summary) -> dict[str, Json]:
    """A result: costs, what was measured and predicted, and what became of each layer.

    Args:
        summary: of the result.

    Returns:
        Its keys, in the order in which people read them.
    """
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
        for layer in summary.layers
    ]
    return {
        "before": cost_facts(summary.before),
        "after": cost_facts(summary.after),
        "keep_ratio": {metric: ratio_of(summary.before, summary.after, metric) for metric in METRICS},
        "divergence": summary.divergence,
        "damage": summary.damage,
        "unit": summary.unit,
        "damage_unit": summary.damage_unit,
        "measurements": [asdict(measurement) for measurement in summary.measurements],
        "layers": layers,
        "notes": [str(note) for note in summary.notes],
        "seconds": dict(summary.seconds),
    }


def study_facts(
    layers: Sequence[LayerSpec],
    before: Cost,
    unit: str,
    notes: Sequence[Note],
    seconds: Mapping[str, float],
    *,
    channels: ChannelMap,
    blocks: Sequence[BlockDamage],
) -> dict[str, Json]:
    """A study: its layers, channel groups and blocks, and why some of them stay as they are.

    Args:
        layers: in execution order.
        before: counted cost of the model.
        unit: of damage.
        notes: what the user should know.
        seconds: wall time of each phase.
        channels: groups and blocks of the model.
        blocks: damages of blocks, where they were measured.

    Returns:
        Its keys, in the order in which people read them.
    """
    layer_facts: list[Json] = [
        {
            "name": layer.name,
            "kind": layer.kind,
            "weight_shape": list(layer.weight_shape),
            "macs": layer.macs,
            "params": layer.params,
            "methods": list(layer.methods),
            "reason": layer.reason,
        }
        for layer in layers
    ]
    group_facts: list[Json] = [
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
    damages = {measured.block: measured.damage for measured in blocks}
    block_facts: list[Json] = [
        {
            "name": block.name,
            "macs": block.macs,
            "params": block.params,
            "bytes": block.bytes,
            "damage": damages.get(block.name),
        }
        for block in channels.blocks.values()
    ]
    return {
        "before": cost_facts(before),
        "unit": unit,
        "layers": layer_facts,
        "groups": group_facts,
        "blocks": block_facts,
        "notes": [str(note) for note in notes],
        "seconds": dict(seconds),
    }


def plan_facts(plan: Plan, unit: str) -> dict[str, Json]:
    """A plan: costs, what it predicts, and what it does.

    Args:
        plan: any.
        unit: of its damage.

    Returns:
        Its keys, in the order in which people read them.
    """
    settings: dict[str, Json] = {
        name: {"method": setting.method, "form": setting.form, "rank": setting.rank}
        for name, setting in plan.settings.items()
    }
    return {
        "select": plan.select,
        "before": cost_facts(plan.before),
        "after": cost_facts(plan.after),
        "keep_ratio": {metric: plan.keep_ratio(metric) for metric in METRICS},
        "damage": plan.damage,
        "unit": unit,
        "score_loss": plan.score_loss,
        "gap": plan.gap,
        "settings": settings,
        "groups": {name: list(channels_kept) for name, channels_kept in plan.groups.items()},
        "dropped": list(plan.dropped),
    }
