# SPDX-License-Identifier: Apache-2.0
"""Values as JSON: what ``--json`` prints, and what a page or a file of data may hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

from slimrank.files import Json
from slimrank.plan import Plan, differences
from slimrank.records import (
    METRICS,
    Agreement,
    BlockDamage,
    ChannelMap,
    Cost,
    LayerSpec,
    Measurement,
    Note,
    Setting,
    Summary,
    ratio_of,
)
from slimrank.report._agreement import output_unit
from slimrank.report._exported import export_facts
from slimrank.report._numbers import finite_or_none


def cost_facts(cost: Cost) -> dict[str, Json]:
    """A cost: each metric by its name."""
    return {metric: cost.metric(metric) for metric in METRICS}


def agreement_facts(agreement: Agreement, *, has_elements: bool = True) -> dict[str, Json]:
    """An agreement: means, and what is known of each output by its path.

    Args:
        agreement: of a result.
        has_elements: with the figure of every element, up to some thousands for each output.

    Returns:
        Its keys, in the order in which people read them; what is not finite is None.
    """
    outputs: dict[str, Json] = {}
    for path, output in agreement.items():
        facts: dict[str, Json] = {
            "family": output.family,
            "shape": list(output.shape),
            "positions": output.positions,
            "weight": output.weight,
            "divergence": finite_or_none(output.divergence),
            "unit": output_unit(output),
            "lost": finite_or_none(output.lost),
            "top1": output.top1,
            "cosine": finite_or_none(output.cosine),
            "relative_error": finite_or_none(output.relative_error),
            "worst": None if output.worst is None else list(output.worst),
        }
        if has_elements:
            facts["elements"] = list(output.elements)
            facts["by_element"] = [finite_or_none(figure) for figure in output.by_element]
        outputs[path] = facts
    return {
        "top1": agreement.top1,
        "cosine": finite_or_none(agreement.cosine),
        "relative_error": finite_or_none(agreement.relative_error),
        "lost": finite_or_none(agreement.lost),
        "outputs": outputs,
    }


def result_facts(summary: Summary) -> dict[str, Json]:
    """A result: costs, what was measured and predicted, and what became of each layer.

    Args:
        summary: of the result.

    Returns:
        Its keys, in the order in which people read them. A divergence that is not finite is None, and so is
        one that was not measured; that has no agreement either.
    """
    layers: list[Json] = [
        {
            "name": layer.name,
            "before": cost_facts(layer.before),
            "after": cost_facts(layer.after),
            "setting": None if layer.setting is None else setting_facts(layer.setting),
            "slimmed": layer.slimmed,
            "damage": finite_or_none(layer.damage),
            "fit": layer.fit,
            "reason": layer.reason,
        }
        for layer in summary.layers
    ]
    return {
        "before": cost_facts(summary.before),
        "after": cost_facts(summary.after),
        "keep_ratio": {metric: ratio_of(summary.before, summary.after, metric) for metric in METRICS},
        "divergence": finite_or_none(summary.divergence),
        "agreement": None if summary.agreement is None else agreement_facts(summary.agreement),
        "damage": finite_or_none(summary.damage),
        "unit": summary.unit,
        "damage_unit": summary.damage_unit,
        "measurements": [measurement_facts(measurement) for measurement in summary.measurements],
        "exports": export_facts(summary.exports),
        "layers": layers,
        "warnings": warning_facts(summary.notes),
        "notes": [str(note) for note in summary.notes],
        "seconds": dict(summary.seconds),
    }


def warning_facts(notes: Sequence[Note]) -> list[Json]:
    """Those notes that stand on top of everything; they are among the notes as well."""
    return [str(note) for note in notes if note.is_warning]


def measurement_facts(measurement: Measurement) -> dict[str, Json]:
    """One number before and after; what is not finite is None."""
    return {
        **asdict(measurement),
        "before": finite_or_none(float(measurement.before)),
        "after": finite_or_none(float(measurement.after)),
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
    settings: dict[str, Json] = {name: setting_facts(setting) for name, setting in plan.settings.items()}
    return {
        "select": plan.select,
        "before": cost_facts(plan.before),
        "after": cost_facts(plan.after),
        "keep_ratio": {metric: plan.keep_ratio(metric) for metric in METRICS},
        "damage": plan.damage,
        "unit": unit,
        "score_loss": plan.score_loss,
        "gap": plan.gap,
        "multiple_of": dict(plan.multiple_of) if isinstance(plan.multiple_of, Mapping) else plan.multiple_of,
        "relaxed": None if plan.relaxed is None else list(plan.relaxed),
        **({} if not plan.fixed else {"fixed": {kind: list(names) for kind, names in plan.fixed.items()}}),
        "settings": settings,
        "groups": {name: list(channels_kept) for name, channels_kept in plan.groups.items()},
        "dropped": list(plan.dropped),
        **({} if plan.latency is None else {"latency": dict(asdict(plan.latency))}),
        **({} if plan.activations is None else {"activations": dict(asdict(plan.activations))}),
    }


def difference_facts(plan: Plan, other: Plan) -> dict[str, Json]:
    """What two plans do differently, and what both come to.

    Args:
        plan: the first.
        other: the second.

    Returns:
        Its keys, in the order in which people read them. Settings, units kept and dropped blocks are those of
        the last step; None where nothing is done.
    """
    rows = differences(plan, other)

    def value_of(of: Plan, kind: str, name: str) -> Json:
        if kind == "block":
            return name in of.dropped
        if kind == "group":
            return list(of.groups[name]) if name in of.groups else None
        return setting_facts(of.settings[name]) if name in of.settings else None

    return {
        "same": not rows,
        "same_model": [step.structure.sha256 for step in plan.steps]
        == [step.structure.sha256 for step in other.steps],
        **{
            f"{kind}s": [
                {
                    "name": row.name,
                    "this": value_of(plan, kind, row.name),
                    "other": value_of(other, kind, row.name),
                    "this_text": row.this,
                    "other_text": row.other,
                }
                for row in rows
                if row.kind == kind
            ]
            for kind in ("layer", "group", "block")
        },
        "this": _total_facts(plan),
        "other": _total_facts(other),
    }


def _total_facts(plan: Plan) -> dict[str, Json]:
    return {
        "select": plan.select,
        "after": cost_facts(plan.after),
        "keep_ratio": {metric: plan.keep_ratio(metric) for metric in METRICS},
        "damage": plan.damage,
        "latency": None if plan.latency is None else plan.latency.predicted,
        "layers": len(plan.settings),
        "groups": len(plan.groups),
        "blocks": len(plan.dropped),
    }


def setting_facts(setting: Setting) -> dict[str, Json]:
    """A setting, without what its form does not have."""
    return {name: value for name, value in asdict(setting).items() if value is not None}
