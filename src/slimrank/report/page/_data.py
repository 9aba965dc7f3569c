# SPDX-License-Identifier: Apache-2.0
"""All that a page shows, as one JSON value: the page is drawn from it alone, and it is saved beside the page.

Its keys are documented in docs/howto/report.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import isfinite
from platform import python_version

import numpy as np
from numpy.typing import NDArray

from slimrank._version import __version__
from slimrank.files import Json
from slimrank.plan import Plan, is_inside
from slimrank.records import (
    METRICS,
    AxisUnits,
    BlockDamage,
    ChannelMap,
    Cost,
    Curve,
    GroupCurve,
    LayerResult,
    LayerSpec,
    Note,
    Setting,
    Summary,
    ratio_of,
)
from slimrank.report._agreement import (
    agreement_lines,
    agreement_text,
    divergence_text,
    element_lists,
    has_elements,
    output_table,
)
from slimrank.report._exported import export_facts
from slimrank.report._facts import (
    agreement_facts,
    cost_facts,
    measurement_facts,
    setting_facts,
    warning_facts,
)
from slimrank.report._groups import counts_text, groups_line, readers_by_group
from slimrank.report._numbers import finite_or_none
from slimrank.report._words import counted, is_left_alone, multiples_text, shape_text
from slimrank.report.page._advice import result_advice, study_advice

# Of the keys.
VERSION = 1
# Elements of an output that are all listed; of more, as many as agree least.
_ALL_ELEMENTS, _WORST_ELEMENTS = 64, 8
# Points of one curve: as many as a small picture can tell apart.
_POINTS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeFrom:
    """What a study can be made again by.

    Attributes:
        call: of Python; None where what was asked is not known.
        seed: of everything drawn; None likewise.
        fingerprint: of the study.
    """

    call: str | None
    seed: int | None
    fingerprint: Mapping[str, str]


def study_data(
    title: str,
    specs: Sequence[LayerSpec],
    before: Cost,
    notes: Sequence[Note],
    *,
    unit: str = "",
    seconds: Mapping[str, float] | None = None,
    made: MadeFrom | None = None,
    channels: ChannelMap | None = None,
    curves: Sequence[Curve] = (),
    group_curves: Sequence[GroupCurve] = (),
    blocks: Sequence[BlockDamage] = (),
    pareto: Json = None,
    scores: Json = None,
) -> dict[str, Json]:
    """What the page of a study shows.

    Args:
        title: heading.
        specs: every layer, in execution order.
        before: counted cost of the whole model.
        notes: what the user should know.
        unit: of damage.
        seconds: wall time of each phase.
        made: what the study can be made again by; None where that is not known.
        channels: groups and blocks of the model; None where they were not looked for.
        curves: cost and damage by rank, of layers.
        group_curves: damage by units kept, of groups.
        blocks: measured damage of dropping a block.
        pareto: plans over their cost, as ``slimrank.pareto.pareto_facts`` tells them; None for none.
        scores: an eval-score table, as ``slimrank.scores.scores_facts`` tells it; None for none.

    Returns:
        The data.
    """
    channels = ChannelMap() if channels is None else channels
    known = _Known(channels, curves)
    by_group = {curve.group: curve for curve in group_curves}
    layers = [
        _layer_data(
            spec.name,
            Cost(macs=spec.macs, params=spec.params, bytes=spec.params * spec.itemsize),
            spec,
            known,
        )
        | {"reason": spec.reason}
        for spec in specs
    ]
    able = [spec for spec in specs if spec.methods]
    share = sum(spec.macs for spec in able) / before.macs if before.macs else 0.0
    data: dict[str, Json] = {
        **_head("study", title, notes),
        "verdict": f"{len(able)} of {counted(len(specs), 'layer')} can be compressed. They hold "
        f"{share:.0%} of the MACs.",
        "counts": f"{groups_line(channels)}.",
        "before": cost_facts(before),
        "start": cost_facts(before),
        "after": None,
        "keep_ratio": None,
        "divergence": None,
        "agreement": None,
        "damage": None,
        "unit": unit,
        "damage_unit": unit,
        "told": {"divergence": None, "agreement": [], "outputs": None, "elements": []},
        "measurements": [],
        "exports": [],
        "layers": layers,
        "groups": [_group_data(name, channels, known, by_group, None, {}) for name in channels.groups],
        "blocks": _block_data(channels, {block.block: block.damage for block in blocks}, ()),
        "plan": None,
        "seconds": dict(seconds or {}),
        **_made_data(made),
        "pareto": pareto,
        "scores": scores,
    }
    data["advice"] = study_advice(data)
    return data


def result_data(
    summary: Summary,
    plan: Plan | None = None,
    *,
    curves: Sequence[Curve] = (),
    group_curves: Sequence[GroupCurve] = (),
    unrounded: Plan | None = None,
    made: MadeFrom | None = None,
    pareto: Json = None,
    scores: Json = None,
) -> dict[str, Json]:
    """What the page of a result shows.

    Args:
        summary: what was done.
        plan: that made it; None where it is not known.
        curves: cost and damage by rank, of the study that it was planned on.
        group_curves: damage by units kept, of that study.
        unrounded: the plan as it would be if ranks and widths were multiples of nothing; None where that is
            not known, or nothing was rounded.
        made: what that study can be made again by; None where that is not known.
        pareto: as in ``study_data``.
        scores: as in ``study_data``.

    Returns:
        The data.
    """
    step = plan.steps[-1] if plan is not None and plan.steps else None
    specs = {} if step is None else step.structure.layers
    channels = ChannelMap() if step is None else step.structure.channels
    dropped = () if plan is None else plan.dropped
    known = _Known(channels, curves)
    by_group = {curve.group: curve for curve in group_curves}
    free = {} if unrounded is None else unrounded.settings
    layers = [
        _layer_data(layer.name, layer.before, specs.get(layer.name), known, layer.setting)
        | _done_data(layer, dropped)
        | {"unrounded": _setting_data(free.get(layer.name))}
        for layer in summary.layers
    ]
    done = sum(1 for layer in summary.layers if not is_left_alone(layer))
    counts = f"{done} of {len(summary.layers)} layers compressed"
    if plan is not None and (plan.groups or plan.dropped):
        counts = counts_text(plan)
    kept = {} if plan is None else {name: len(units) for name, units in plan.groups.items()}
    data: dict[str, Json] = {
        **_head("result", summary.title, summary.notes),
        "verdict": _verdict(summary),
        "counts": f"{counts}.",
        "before": cost_facts(summary.before),
        "start": cost_facts(summary.start),
        "after": cost_facts(summary.after),
        "keep_ratio": {metric: ratio_of(summary.before, summary.after, metric) for metric in METRICS},
        "divergence": finite_or_none(summary.divergence),
        "agreement": None if summary.agreement is None else agreement_facts(summary.agreement),
        "damage": finite_or_none(summary.damage),
        "unit": summary.unit,
        "damage_unit": summary.damage_unit,
        "told": _told(summary),
        "measurements": [measurement_facts(measured) for measured in summary.measurements],
        "exports": export_facts(summary.exports),
        "layers": layers,
        "groups": [
            _group_data(name, channels, known, by_group, kept.get(name), summary.group_damages)
            | {"unrounded": None if unrounded is None else len(unrounded.groups.get(name, ())) or None}
            for name in channels.groups
        ],
        "blocks": _block_data(channels, summary.block_damages, dropped),
        "plan": None if plan is None else _plan_data(plan, unrounded),
        "seconds": dict(summary.seconds),
        **_made_data(made),
        "pareto": pareto,
        "scores": scores,
    }
    data["advice"] = result_advice(data)
    return data


def _head(kind: str, title: str, notes: Sequence[Note]) -> dict[str, Json]:
    return {
        "report": VERSION,
        "slimrank": __version__,
        "versions": {
            "python": python_version(),
            **{package: version(package) for package in ("torch", "numpy")},
        },
        "kind": kind,
        "title": title,
        "warnings": warning_facts(notes),
        "notes": [{"where": note.where, "text": note.text} for note in notes if not note.is_warning],
    }


def _made_data(made: MadeFrom | None) -> dict[str, Json]:
    """By what it can be made again."""
    return {
        "call": None if made is None else made.call,
        "seed": None if made is None else made.seed,
        "fingerprint": {} if made is None else dict(made.fingerprint),
    }


def _verdict(summary: Summary) -> str:
    """What became of the model, in one sentence."""
    kept = ratio_of(summary.before, summary.after, "macs")
    size = ratio_of(summary.before, summary.after, "bytes")
    text = f"{kept:.1%} of the MACs and {size:.1%} of the size are left"
    if summary.agreement:
        text += f"; {agreement_text(summary.agreement)}"
    elif summary.divergence is None:
        text += "; what that costs in accuracy was not measured"
    return f"{text}."


def _told(summary: Summary) -> dict[str, Json]:
    """How outputs agree with the original's, in the words that people read."""
    agreement = summary.agreement
    found: dict[str, Json] = {
        "divergence": divergence_text(summary),
        "agreement": [list(pair) for pair in agreement_lines(summary)],
        "outputs": None,
        "elements": [],
    }
    if agreement is not None and (len(agreement) > 1 or has_elements(agreement)):
        columns, rows = output_table(agreement)
        found["outputs"] = {"columns": list(columns), "rows": [list(row) for row in rows]}
        found["elements"] = [
            [heading, [list(pair) for pair in pairs]]
            for heading, pairs in element_lists(agreement, all_up_to=_ALL_ELEMENTS, most=_WORST_ELEMENTS)
        ]
    return found


class _Known:
    """What is known of layers, by their names: looked up for each of them.

    Attributes:
        blocks: that can be dropped.
        axes: of the tensors of a layer.
        readers: of a group: layers that sum over its channels.
        curves: of a layer.
    """

    def __init__(self, channels: ChannelMap, curves: Sequence[Curve]) -> None:
        self.blocks = channels.blocks
        self.axes: dict[str, list[AxisUnits]] = {}
        for tensor in channels.tensors.values():
            self.axes.setdefault(tensor.name.rpartition(".")[0], []).extend(tensor.axes)
        self.readers = readers_by_group(channels)
        self.curves: dict[str, list[Curve]] = {}
        for curve in curves:
            self.curves.setdefault(curve.layer, []).append(curve)


def _layer_data(
    name: str, before: Cost, spec: LayerSpec | None, known: _Known, setting: Setting | None = None
) -> dict[str, Json]:
    """What a layer is, what it costs, and what can be done to it."""
    axes = known.axes.get(name, [])
    return {
        "name": name,
        "kind": None if spec is None else spec.kind if spec.kind != "other" else spec.class_name,
        "weight": None if spec is None else shape_text(spec.weight_shape),
        "output": None if spec is None or not spec.calls else shape_text(spec.calls[0].output_shape),
        "calls": None if spec is None else len(spec.calls),
        "before": cost_facts(before),
        "methods": [] if spec is None else list(spec.methods),
        "makes": list(dict.fromkeys(axis.group for axis in axes if axis.role == "output")),
        "reads": list(dict.fromkeys(axis.group for axis in axes if axis.role == "input")),
        "block": next((block for block in known.blocks if is_inside(name, (block,))), None),
        "curves": [_curve_data(curve, before.macs, setting) for curve in known.curves.get(name, [])],
    }


def _done_data(layer: LayerResult, dropped: Sequence[str]) -> dict[str, Json]:
    """What became of a layer."""
    return {
        "after": cost_facts(layer.after),
        "setting": _setting_data(layer.setting),
        "slimmed": layer.slimmed,
        "dropped": is_inside(layer.name, dropped),
        "damage": finite_or_none(layer.damage),
        "fit": layer.fit,
        "reason": layer.reason,
    }


def _curve_data(curve: Curve, macs: int, setting: Setting | None) -> dict[str, Json]:
    """Points of a curve, and what was measured of it: share of the layer's MACs that stays, damage, rank."""
    shares = curve.macs / max(macs, 1)
    is_chosen = setting is not None and (setting.method, setting.form) == (curve.method, curve.form)
    chosen = setting.rank if setting is not None and is_chosen else None
    return {
        "method": curve.method,
        "form": curve.form,
        **_point_data(curve.ranks.tolist(), shares, curve.damage, curve.anchors, chosen),
    }


def _point_data(
    sizes: Sequence[int],
    shares: Sequence[float] | NDArray[np.float64],
    damages: Sequence[float] | NDArray[np.float64],
    anchors: Mapping[int, float],
    chosen: int | None,
) -> dict[str, Json]:
    """Points of a curve: a few of all, with what was chosen and measured; and what was measured."""
    index_of = {size: index for index, size in enumerate(sizes)}
    measured = {index_of[size]: value for size, value in anchors.items() if size in index_of}
    shown = {*_spread(len(sizes)), *measured, *([index_of[chosen]] if chosen in index_of else [])}
    return {
        "points": [
            [_short(shares[index]), _short(damages[index]), sizes[index]]
            for index in sorted(shown)
            if isfinite(damages[index])
        ],
        "anchors": [
            [_short(shares[index]), _short(value), sizes[index]]
            for index, value in sorted(measured.items())
            if isfinite(value)
        ],
    }


def _group_data(
    name: str,
    channels: ChannelMap,
    known: _Known,
    curves: Mapping[str, GroupCurve],
    kept: int | None,
    damages: Mapping[str, float],
) -> dict[str, Json]:
    group = channels.groups[name]
    curve = curves.get(name)
    points: dict[str, Json] = {"points": [], "anchors": []}
    if curve is not None:
        shares = curve.kept / group.units
        points = _point_data(curve.kept.tolist(), shares, curve.damage, curve.anchors, kept)
    return {
        "name": name,
        "units": group.units,
        "unit_width": group.unit_width,
        "makers": list(group.producers),
        "readers": list(known.readers[name]),
        "sizes": [f"{module}.{size}" if module else size for module, size in group.sizes],
        "reason": group.reason,
        **points,
        "kept": kept,
        "damage": finite_or_none(damages.get(name)),
    }


def _block_data(channels: ChannelMap, damages: Mapping[str, float], dropped: Sequence[str]) -> list[Json]:
    return [
        {
            "name": name,
            "macs": block.macs,
            "params": block.params,
            "bytes": block.bytes,
            "damage": finite_or_none(damages.get(name)),
            "dropped": name in dropped,
        }
        for name, block in channels.blocks.items()
    ]


def _setting_data(setting: Setting | None) -> Json:
    return None if setting is None else setting_facts(setting)


def _plan_data(plan: Plan, unrounded: Plan | None) -> dict[str, Json]:
    latency = plan.latency
    return {
        "select": plan.select,
        "steps": len(plan.steps),
        "gap": finite_or_none(plan.gap),
        "score_loss": finite_or_none(plan.score_loss),
        "rounding": multiples_text(plan),
        "unrounded": None if unrounded is None else _unrounded_data(plan, unrounded),
        "latency": None if latency is None else dict(asdict(latency)),
    }


def _unrounded_data(plan: Plan, unrounded: Plan) -> dict[str, Json]:
    """What rounding to multiples changed, over all."""
    pairs: list[tuple[object, object]] = []
    for rounded, free in ((plan.settings, unrounded.settings), (plan.groups, unrounded.groups)):
        pairs += [(rounded.get(name), free.get(name)) for name in {**rounded, **free}]
    return {
        "damage": finite_or_none(unrounded.damage),
        "changed": sum(1 for one, other in pairs if one != other),
        "of": len(pairs),
    }


def _spread(count: int) -> list[int]:
    """Up to ``_POINTS`` indices, both ends among them."""
    if count <= _POINTS:
        return list(range(count))
    return sorted({round(index * (count - 1) / (_POINTS - 1)) for index in range(_POINTS)})


def _short(value: float) -> float:
    """Three significant digits: pictures show no more, and pages stay small."""
    return float(f"{float(value):.3g}")
