# SPDX-License-Identifier: Apache-2.0
"""Plain text for terminals, logs and files: ASCII, no colours, no number cut short."""

from collections.abc import Iterator, Mapping, Sequence
from textwrap import fill

from slimrank.cost import layer_cost, pair_cost
from slimrank.plan import Plan
from slimrank.records import METRICS, Cost, LayerResult, LayerSpec, Summary
from slimrank.report._numbers import (
    format_change,
    format_count,
    format_damage,
    format_measured,
    format_metric,
    format_percent,
    format_phases,
    format_ratio,
    macs_elsewhere,
)
from slimrank.report._table import render_table
from slimrank.report._words import (
    DAMAGE_LABEL,
    DIVERGENCE_LABEL,
    ELSEWHERE_LABEL,
    METRIC_LABELS,
    layers_by_reason,
    setting_text,
    shape_text,
    why_left,
    why_not,
)


def render_text(summary: Summary, *, width: int = 110) -> str:
    """A result as plain text.

    Args:
        summary: what to show.
        width: columns at which remarks wrap; tables take what they need (about 100).

    Returns:
        Lines of ASCII (names and notes as given), the last one ended.
    """
    remarks = [*_damage_lines(summary)]
    if summary.seconds:
        remarks.append(f"Time: {format_phases(summary.seconds)}")
    reasons = {layer.name: why_left(layer) for layer in summary.layers if layer.setting is None}
    blocks = [
        summary.title,
        _costs("counted", summary.before, summary.after),
        _measurements(summary),
        "\n".join(fill(line, width, subsequent_indent="  ") for line in remarks),
        _layers(summary),
        _reasons("Left alone", reasons, width),
        _list("Notes", [str(note) for note in summary.notes], width),
    ]
    return _joined(blocks)


def render_layers(specs: Sequence[LayerSpec], before: Cost, *, width: int = 110) -> str:
    """The layers of a model as plain text: what each costs and what can be done to it.

    Args:
        specs: every layer, in execution order.
        before: counted cost of the whole model.
        width: columns at which remarks wrap; the table takes what it needs (about 110).

    Returns:
        Lines of ASCII (names and reasons as given), the last one ended.
    """
    rows = [
        (
            spec.name,
            spec.kind if spec.kind != "other" else spec.class_name,
            shape_text(spec.weight_shape),
            shape_text(spec.calls[0].output_shape) if spec.calls else "-",
            str(len(spec.calls)),
            format_count(spec.macs),
            format_percent(spec.macs, before.macs),
            format_count(spec.params),
            ", ".join(spec.methods) or "-",
        )
        for spec in specs
    ]
    elsewhere = before.macs - sum(spec.macs for spec in specs)
    if elsewhere > 0:
        share = format_percent(elsewhere, before.macs)
        rows.append((ELSEWHERE_LABEL, "", "", "", "", format_count(elsewhere), share, "", ""))
    columns = ("layer", "kind", ">weight", ">output", ">calls", ">MACs", ">share", ">params", "methods")
    closing = (
        f"{len(specs)} layers, {sum(1 for spec in specs if spec.methods)} can be compressed; "
        f"{format_count(before.macs)} MACs, {format_count(before.params)} parameters, "
        f"{format_metric('bytes', before.bytes)}"
    )
    reasons = {spec.name: why_not(spec) for spec in specs if not spec.methods}
    return _joined([render_table(columns, rows), closing, _reasons("Cannot be compressed", reasons, width)])


def render_plan(plan: Plan, unit: str = "", *, width: int = 110) -> str:
    """A plan as plain text: what is done to each layer, and what the model then costs.

    Args:
        plan: what to show.
        unit: of its damage; "" where it is not known.
        width: columns at which remarks wrap; tables take what they need (about 90).

    Returns:
        Lines of ASCII (names as given), the last one ended.
    """
    specs = plan.steps[-1].structure.layers if plan.steps else {}
    rows = [_plan_row(plan, spec) for spec in specs.values()]
    layers = render_table(("layer", "method", "form", ">rank", ">MACs", ">after", ">keep ratio"), rows)
    closing = f"{plan.select}: {len(plan.settings)} of {len(specs)} layers compressed"
    if len(plan.steps) > 1:
        closing = f"step {len(plan.steps)}, {closing}"
    if plan.damage is not None:
        closing += f"; predicted damage {format_damage(plan.damage)} {unit}".rstrip()
    if plan.score_loss is not None:
        closing += f"; predicted loss of the score {format_damage(plan.score_loss)}"
    if plan.gap is not None:
        closing += f" (another choice could save at most {format_percent(plan.gap, 1)} of it)"
    reasons = {spec.name: why_not(spec) for spec in specs.values() if not spec.methods}
    return _joined(
        [
            layers,
            _costs("computed from shapes", plan.before, plan.after),
            fill(closing, width, subsequent_indent="  "),
            _reasons("Cannot be compressed", reasons, width),
        ]
    )


def _plan_row(plan: Plan, spec: LayerSpec) -> tuple[str, ...]:
    setting = plan.settings.get(spec.name)
    before = layer_cost(spec).macs
    if setting is None:
        return (spec.name, setting_text(None), "", "-", format_count(before), format_count(before), "1.000")
    after = pair_cost(spec, setting.form, setting.rank, has_bias=plan.has_bias or spec.has_bias).macs
    return (
        spec.name,
        setting.method,
        setting.form,
        str(setting.rank),
        format_count(before),
        format_count(after),
        format_ratio(after, before),
    )


def _costs(heading: str, before: Cost, after: Cost) -> str:
    rows = []
    for name in METRICS:
        old, new = before.metric(name), after.metric(name)
        rows.append(
            (METRIC_LABELS[name], format_metric(name, old), format_metric(name, new), format_ratio(new, old))
        )
    return render_table((heading, ">before", ">after", ">keep ratio"), rows)


def _measurements(summary: Summary) -> str:
    if not summary.measurements:
        return ""
    rows = [
        (
            measured.name,
            format_measured(measured.before, measured.unit),
            format_measured(measured.after, measured.unit),
            format_change(measured),
        )
        for measured in summary.measurements
    ]
    return render_table(("measured", ">before", ">after", ">change"), rows)


def _damage_lines(summary: Summary) -> Iterator[str]:
    if summary.divergence is None:
        yield f"{DIVERGENCE_LABEL}: not measured"
    else:
        yield f"{DIVERGENCE_LABEL}: {format_damage(summary.divergence)} {summary.unit}"
    if summary.damage is not None:
        yield f"{DAMAGE_LABEL}: {format_damage(summary.damage)} {summary.damage_unit}"


def _layers(summary: Summary) -> str:
    rows = [_layer_row(layer) for layer in summary.layers]
    before = macs_elsewhere(summary.start, (layer.before for layer in summary.layers))
    after = macs_elsewhere(summary.after, (layer.after for layer in summary.layers))
    if before > 0:
        numbers = (format_count(before), format_count(after), format_ratio(after, before))
        rows.append((ELSEWHERE_LABEL, "", "", *numbers, "", ""))
    return render_table(
        ("layer", "setting", ">rank", ">MACs", ">after", ">keep ratio", ">damage", "fit"), rows
    )


def _layer_row(layer: LayerResult) -> tuple[str, ...]:
    return (
        layer.name,
        setting_text(layer.setting),
        "-" if layer.setting is None else str(layer.setting.rank),
        format_count(layer.before.macs),
        format_count(layer.after.macs),
        format_ratio(layer.after.macs, layer.before.macs),
        format_damage(layer.damage),
        layer.fit or "-",
    )


def _reasons(heading: str, reasons: Mapping[str, str], width: int) -> str:
    return _list(heading, [f"{names}: {reason}" for names, reason in layers_by_reason(reasons)], width)


def _list(heading: str, items: Sequence[str], width: int) -> str:
    if not items:
        return ""
    lines = (fill(item, width, initial_indent=" - ", subsequent_indent="   ") for item in items)
    return "\n".join([heading, *lines])


def _joined(blocks: Sequence[str]) -> str:
    return "\n\n".join(block for block in blocks if block) + "\n"
