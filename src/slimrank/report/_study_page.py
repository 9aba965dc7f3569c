# SPDX-License-Identifier: Apache-2.0
"""A study as one self-contained HTML page."""

from collections.abc import Sequence

from slimrank.records import METRICS, BlockDamage, ChannelMap, Cost, GroupCurve, LayerSpec, Note
from slimrank.report._chart import Bar, bar_chart, legend
from slimrank.report._numbers import format_count, format_exact, format_percent
from slimrank.report._page import cards, page, section, table
from slimrank.report._sections import channel_sections, definitions_section, metric_card, warning_parts
from slimrank.report._words import (
    ELSEWHERE_LABEL,
    layers_by_reason,
    name_text,
    shape_text,
    warnings_and_others,
    why_not,
)


def render_study_html(
    title: str,
    specs: Sequence[LayerSpec],
    before: Cost,
    notes: Sequence[Note],
    *,
    channels: ChannelMap | None = None,
    curves: Sequence[GroupCurve] = (),
    blocks: Sequence[BlockDamage] = (),
) -> str:
    """A study as one HTML page: what each layer costs and what can be done to it.

    Args:
        title: heading.
        specs: every layer, in execution order.
        before: counted cost of the whole model.
        notes: what the user should know.
        channels: groups and blocks of the model; None where they were not looked for.
        curves: damage by units kept, of groups.
        blocks: measured damage of dropping a block.

    Returns:
        A document that loads nothing; under 200 kB for 100 layers.
    """
    able = sum(1 for spec in specs if spec.methods)
    reasons = {spec.name: why_not(spec) for spec in specs if not spec.methods}
    warnings, others = warnings_and_others(notes)
    parts = [
        *warning_parts(warnings),
        cards(metric_card(name, before) for name in METRICS),
        section("MACs of each layer", _spec_chart(specs, before)),
        section("Layers", _spec_table(specs, before)),
        *([] if channels is None else channel_sections(channels, curves, blocks, before)),
        *definitions_section("Cannot be compressed", layers_by_reason(reasons)),
        *definitions_section("Notes", [(note.where, note.text) for note in others]),
    ]
    return page(title, f"{able} of {len(specs)} layers can be compressed.", "\n".join(parts))


def _spec_chart(specs: Sequence[LayerSpec], before: Cost) -> str:
    bars = [
        Bar(
            name=name_text(spec.name),
            before=spec.macs,
            # The solid colour marks what can shrink; nothing has shrunk yet.
            after=spec.macs if spec.methods else None,
            value=f"{format_count(spec.macs)}, {format_percent(spec.macs, before.macs)}",
            hint=f"{name_text(spec.name)}: {format_exact(spec.macs)} MACs; "
            f"{', '.join(spec.methods) or why_not(spec)}",
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
        ("methods", ""),
    )
    rows = [(_spec_row(spec, before), not spec.methods) for spec in specs]
    elsewhere = before.macs - sum(spec.macs for spec in specs)
    if elsewhere > 0:
        share = format_percent(elsewhere, before.macs)
        rows.append(((ELSEWHERE_LABEL, "", "", "", "", format_count(elsewhere), share, "", ""), True))
    return table(columns, rows)


def _spec_row(spec: LayerSpec, before: Cost) -> tuple[str, ...]:
    return (
        name_text(spec.name),
        spec.kind if spec.kind != "other" else spec.class_name,
        shape_text(spec.weight_shape),
        shape_text(spec.calls[0].output_shape) if spec.calls else "-",
        str(len(spec.calls)),
        format_count(spec.macs),
        format_percent(spec.macs, before.macs),
        format_count(spec.params),
        ", ".join(spec.methods) or "-",
    )
