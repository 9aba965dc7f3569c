# SPDX-License-Identifier: Apache-2.0
"""One self-contained page: tables and a chart, no script, nothing loaded."""

from collections.abc import Sequence

from slimrank.records import METRICS, Cost, LayerResult, LayerSpec, Note, Summary
from slimrank.report._chart import Bar, bar_chart, legend
from slimrank.report._numbers import (
    format_change,
    format_count,
    format_damage,
    format_exact,
    format_measured,
    format_metric,
    format_percent,
    format_phases,
    format_ratio,
    macs_elsewhere,
)
from slimrank.report._page import card, cards, definitions, page, section, table
from slimrank.report._words import (
    DAMAGE_LABEL,
    DIVERGENCE_LABEL,
    ELSEWHERE_LABEL,
    METRIC_LABELS,
    setting_text,
    shape_text,
    why_left,
    why_not,
)


def render_html(summary: Summary) -> str:
    """A result as one HTML page.

    Args:
        summary: what to show.

    Returns:
        A document that loads nothing; under 200 kB for 100 layers.
    """
    done = sum(1 for layer in summary.layers if layer.setting is not None)
    parts = [
        cards(_cost_card(summary, index) for index in range(len(METRICS))),
        section("Totals", _totals(summary)),
        section("MACs of each layer", _layer_chart(summary.layers)),
        section("Layers", _layer_table(summary)),
        *_notes(summary.notes),
    ]
    return page(summary.title, f"{done} of {len(summary.layers)} layers compressed.", "\n".join(parts))


def render_study_html(title: str, specs: Sequence[LayerSpec], before: Cost, notes: Sequence[Note]) -> str:
    """A study as one HTML page: what each layer costs and what can be done to it.

    Args:
        title: heading.
        specs: every layer, in execution order.
        before: counted cost of the whole model.
        notes: what the user should know.

    Returns:
        A document that loads nothing; under 200 kB for 100 layers.
    """
    able = sum(1 for spec in specs if spec.methods)
    parts = [
        cards(
            card(METRIC_LABELS[name], format_metric(name, before.metric(name)), _exact(before, index))
            for index, name in enumerate(METRICS)
        ),
        section("MACs of each layer", _spec_chart(specs, before)),
        section("Layers", _spec_table(specs, before)),
        *_notes(notes),
    ]
    return page(title, f"{able} of {len(specs)} layers can be compressed.", "\n".join(parts))


def _cost_card(summary: Summary, index: int) -> str:
    name = METRICS[index]
    before, after = summary.before.metric(name), summary.after.metric(name)
    return card(
        METRIC_LABELS[name],
        format_metric(name, after),
        f"of {format_metric(name, before)}, keep ratio {format_ratio(after, before)}",
        after / before if before else None,
    )


def _exact(cost: Cost, index: int) -> str:
    return format_exact(cost.metric(METRICS[index]))


def _totals(summary: Summary) -> str:
    rows = [
        (
            (
                METRIC_LABELS[name],
                _exact(summary.before, index),
                _exact(summary.after, index),
                f"keep ratio {format_ratio(summary.after.metric(name), summary.before.metric(name))}",
            ),
            False,
        )
        for index, name in enumerate(METRICS)
    ]
    rows += [
        (
            (
                measured.name,
                format_measured(measured.before, measured.unit),
                format_measured(measured.after, measured.unit),
                format_change(measured),
            ),
            False,
        )
        for measured in summary.measurements
    ]
    divergence = "not measured"
    if summary.divergence is not None:
        divergence = f"{format_damage(summary.divergence)} {summary.unit}"
    pairs = [(DIVERGENCE_LABEL, divergence)]
    if summary.damage is not None:
        pairs.append((DAMAGE_LABEL, f"{format_damage(summary.damage)} {summary.unit}"))
    if summary.seconds:
        pairs.append(("Time", format_phases(summary.seconds)))
    columns = (("counted or measured", ""), ("before", "n"), ("after", "n"), ("change", "n"))
    return f'{table(columns, rows)}\n<div class="under">{definitions(pairs)}</div>'


def _layer_chart(layers: Sequence[LayerResult]) -> str:
    bars = [
        Bar(
            name=layer.name,
            before=layer.before.macs,
            after=None if layer.setting is None else layer.after.macs,
            value=_change_text(layer),
            hint=_hint(layer),
        )
        for layer in layers
    ]
    colours = [("a", "after"), ("b", "before"), ("k", "left alone")]
    return legend(colours) + bar_chart(bars, "MACs of each layer before and after")


def _change_text(layer: LayerResult) -> str:
    before, after = layer.before.macs, layer.after.macs
    if layer.setting is None:
        return format_count(before)
    return f"{format_count(before)} \N{RIGHTWARDS ARROW} {format_count(after)}"


def _hint(layer: LayerResult) -> str:
    before, after = layer.before.macs, layer.after.macs
    if layer.setting is None:
        return f"{layer.name}: {format_exact(before)} MACs, left alone: {why_left(layer)}"
    return (
        f"{layer.name}: {format_exact(before)} MACs before, {format_exact(after)} after "
        f"(keep ratio {format_ratio(after, before)}); {setting_text(layer.setting)}, rank {layer.setting.rank}"
    )


def _layer_table(summary: Summary) -> str:
    columns = (
        ("layer", ""),
        ("setting", "w"),
        ("rank", "n"),
        ("MACs before", "n"),
        ("after", "n"),
        ("keep ratio", "n"),
        ("params before", "n"),
        ("after", "n"),
        ("predicted damage", "n"),
        ("fit, or why left alone", "wide"),
    )
    rows = [(_layer_row(layer), layer.setting is None) for layer in summary.layers]
    before = macs_elsewhere(summary.before, (layer.before for layer in summary.layers))
    after = macs_elsewhere(summary.after, (layer.after for layer in summary.layers))
    if before > 0:
        numbers = (format_count(before), format_count(after), format_ratio(after, before))
        rows.append(((ELSEWHERE_LABEL, "", "", *numbers, "", "", "", ""), True))
    return table(columns, rows)


def _layer_row(layer: LayerResult) -> tuple[str, ...]:
    return (
        layer.name,
        setting_text(layer.setting),
        "-" if layer.setting is None else str(layer.setting.rank),
        format_count(layer.before.macs),
        format_count(layer.after.macs),
        format_ratio(layer.after.macs, layer.before.macs),
        format_count(layer.before.params),
        format_count(layer.after.params),
        format_damage(layer.damage),
        why_left(layer) if layer.setting is None else layer.fit or "-",
    )


def _spec_chart(specs: Sequence[LayerSpec], before: Cost) -> str:
    bars = [
        Bar(
            name=spec.name,
            before=spec.macs,
            # The solid colour marks what can shrink; nothing has shrunk yet.
            after=spec.macs if spec.methods else None,
            value=f"{format_count(spec.macs)}, {format_percent(spec.macs, before.macs)}",
            hint=f"{spec.name}: {format_exact(spec.macs)} MACs; {', '.join(spec.methods) or why_not(spec)}",
        )
        for spec in specs
    ]
    colours = [("a", "can be compressed"), ("k", "left alone")]
    return legend(colours) + bar_chart(bars, "MACs of each layer")


def _spec_table(specs: Sequence[LayerSpec], before: Cost) -> str:
    columns = (
        ("layer", ""),
        ("kind", "w"),
        ("weight", "n"),
        ("output", "n"),
        ("calls", "n"),
        ("MACs", "n"),
        ("share", "n"),
        ("params", "n"),
        ("methods, or why none", "wide"),
    )
    rows = [(_spec_row(spec, before), not spec.methods) for spec in specs]
    elsewhere = before.macs - sum(spec.macs for spec in specs)
    if elsewhere > 0:
        share = format_percent(elsewhere, before.macs)
        rows.append(((ELSEWHERE_LABEL, "", "", "", "", format_count(elsewhere), share, "", ""), True))
    return table(columns, rows)


def _spec_row(spec: LayerSpec, before: Cost) -> tuple[str, ...]:
    return (
        spec.name,
        spec.kind if spec.kind != "other" else spec.class_name,
        shape_text(spec.weight_shape),
        shape_text(spec.calls[0].output_shape) if spec.calls else "-",
        str(len(spec.calls)),
        format_count(spec.macs),
        format_percent(spec.macs, before.macs),
        format_count(spec.params),
        ", ".join(spec.methods) or why_not(spec),
    )


def _notes(notes: Sequence[Note]) -> list[str]:
    return [section("Notes", definitions((note.where, note.text) for note in notes))] if notes else []
