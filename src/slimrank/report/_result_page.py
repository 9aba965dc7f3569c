# SPDX-License-Identifier: Apache-2.0
"""A result as one self-contained HTML page."""

from collections.abc import Iterator, Sequence

from slimrank.plan import Plan, slimmable_groups
from slimrank.records import METRICS, Agreement, LayerResult, Summary
from slimrank.report._agreement import (
    agreement_lines,
    agreement_text,
    divergence_text,
    element_lists,
    has_elements,
    output_table,
)
from slimrank.report._chart import Bar, bar_chart, legend
from slimrank.report._exported import exported_part
from slimrank.report._groups import (
    DROPPED_COLUMNS,
    KEPT_COLUMNS,
    counts_text,
    dropped_rows,
    kept_rows,
    readers_of,
)
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
from slimrank.report._page import card, cards, definitions, elements_list, page, section, table
from slimrank.report._sections import definitions_section, rows_table, warning_parts
from slimrank.report._words import (
    DAMAGE_LABEL,
    DIVERGENCE_LABEL,
    ELSEWHERE_LABEL,
    METRIC_LABELS,
    MULTIPLES_LABEL,
    done_text,
    first_of,
    is_left_alone,
    layers_by_reason,
    multiples_text,
    name_text,
    setting_text,
    warnings_and_others,
    why_left,
)

# Text for terminals is ASCII and has "->" instead.
_ARROW = "\N{RIGHTWARDS ARROW}"
# Elements of an output that are all listed; of more, as many as agree least.
_ALL_ELEMENTS, _WORST_ELEMENTS = 64, 8


def render_html(summary: Summary, *, plan: Plan | None = None) -> str:
    """A result as one HTML page.

    Args:
        summary: what to show.
        plan: that made it, for the channels that each group keeps and the blocks that are dropped; None
            leaves them out.

    Returns:
        A document that loads nothing; under 200 kB for 100 layers.
    """
    done = sum(1 for layer in summary.layers if not is_left_alone(layer))
    reasons = {layer.name: why_left(layer) for layer in summary.layers if is_left_alone(layer)}
    warnings, notes = warnings_and_others(summary.notes)
    parts = [
        *warning_parts(warnings),
        cards(_cards(summary)),
        section("Totals", _totals(summary, plan)),
        *([] if summary.agreement is None else _output_sections(summary.agreement)),
        exported_part(summary.exports),
        section("MACs of each layer", _layer_chart(summary.layers)),
        *([] if plan is None else _plan_sections(plan, summary)),
        section("Layers", _html_layer_table(summary)),
        *definitions_section("Left alone", layers_by_reason(reasons)),
        *definitions_section("Notes", [(note.where, note.text) for note in notes]),
    ]
    lead = f"{done} of {len(summary.layers)} layers compressed"
    if plan is not None and (plan.groups or plan.dropped):
        lead = counts_text(plan)
    return page(summary.title, f"{lead}.", "\n".join(parts))


def _cards(summary: Summary) -> Iterator[str]:
    for name in METRICS:
        before, after = summary.before.metric(name), summary.after.metric(name)
        detail = f"of {format_metric(name, before)}, keep ratio {format_ratio(after, before)}"
        share = after / before if before else None
        yield card(METRIC_LABELS[name], format_metric(name, after), detail, share)
    for measured in summary.measurements:
        detail = f"from {format_measured(measured.before, measured.unit)}, {format_change(measured)}"
        yield card(measured.name, format_measured(measured.after, measured.unit), detail)
    if summary.divergence is not None:
        detail = summary.unit
        # Only of the same quantity: a share of weight energy does not predict a divergence.
        if summary.damage is not None and summary.damage_unit == summary.unit:
            detail += f"; predicted: {format_damage(summary.damage)}"
        if summary.agreement:
            detail += f"; {agreement_text(summary.agreement)}"
        yield card("held-out divergence", format_damage(summary.divergence), detail)


def _totals(summary: Summary, plan: Plan | None) -> str:
    rows = [
        (
            METRIC_LABELS[name],
            format_exact(summary.before.metric(name)),
            format_exact(summary.after.metric(name)),
            format_percent(
                summary.after.metric(name) - summary.before.metric(name), summary.before.metric(name)
            ),
        )
        for name in METRICS
    ]
    rows += [
        (
            measured.name,
            format_measured(measured.before, measured.unit),
            format_measured(measured.after, measured.unit),
            format_change(measured),
        )
        for measured in summary.measurements
    ]
    pairs = [(DIVERGENCE_LABEL, divergence_text(summary)), *agreement_lines(summary)]
    if summary.damage is not None:
        pairs.append((DAMAGE_LABEL, f"{format_damage(summary.damage)} {summary.damage_unit}"))
    if plan is not None and multiples_text(plan):
        pairs.append((MULTIPLES_LABEL, multiples_text(plan)))
    if summary.seconds:
        pairs.append(("Time", format_phases(summary.seconds)))
    columns = (("counted or measured", ""), ("before", "n"), ("after", "n"), ("change", "n"))
    return f'{table(columns, [(row, False) for row in rows])}\n<div class="under">{definitions(pairs)}</div>'


def _output_sections(agreement: Agreement) -> list[str]:
    """How each output agrees, where there are several outputs or several elements of one."""
    if len(agreement) < 2 and not has_elements(agreement):
        return []
    lists = element_lists(agreement, all_up_to=_ALL_ELEMENTS, most=_WORST_ELEMENTS)
    parts = [rows_table(*output_table(agreement)), *(elements_list(*named) for named in lists)]
    return [section("Outputs", "\n".join(parts))]


def _layer_chart(layers: Sequence[LayerResult]) -> str:
    bars = [
        Bar(
            name=name_text(layer.name),
            before=layer.before.macs,
            after=None if is_left_alone(layer) else layer.after.macs,
            value=_change_text(layer),
            hint=_hint(layer),
        )
        for layer in layers
    ]
    colours = [("a", "after"), ("b", "before"), ("k", "left alone")]
    return legend(colours) + bar_chart(bars, "MACs of each layer before and after")


def _change_text(layer: LayerResult) -> str:
    before = format_count(layer.before.macs)
    return before if is_left_alone(layer) else _arrow(before, format_count(layer.after.macs))


def _arrow(before: str, after: str) -> str:
    return f"{before} {_ARROW} {after}"


def _hint(layer: LayerResult) -> str:
    name, before, after = name_text(layer.name), layer.before.macs, layer.after.macs
    if is_left_alone(layer):
        return f"{name}: {format_exact(before)} MACs, left alone: {why_left(layer)}"
    rank = "" if layer.setting is None else f", rank {layer.setting.rank_text}"
    setting = f"{done_text(layer)}{rank}"
    ratio = f"keep ratio {format_ratio(after, before)}"
    return f"{name}: {format_exact(before)} MACs before, {format_exact(after)} after, {ratio}; {setting}"


def _html_layer_table(summary: Summary) -> str:
    # What becomes of channels is too long for one line.
    is_slimmed = any(layer.slimmed is not None for layer in summary.layers)
    columns = (
        ("layer", ""),
        ("setting", "" if is_slimmed else "w"),
        ("rank", "n"),
        ("MACs", "n"),
        ("keep ratio", "n"),
        ("params", "n"),
        ("damage", "n"),
        ("fit", "w"),
    )
    rows = [(_html_layer_row(layer), is_left_alone(layer)) for layer in summary.layers]
    before = macs_elsewhere(summary.start, (layer.before for layer in summary.layers))
    after = macs_elsewhere(summary.after, (layer.after for layer in summary.layers))
    if before > 0:
        macs = _arrow(format_count(before), format_count(after))
        rows.append(((ELSEWHERE_LABEL, "", "", macs, format_ratio(after, before), "", "", ""), True))
    return table(columns, rows)


def _html_layer_row(layer: LayerResult) -> tuple[str, ...]:
    macs, params = format_count(layer.before.macs), format_count(layer.before.params)
    ratio = format_ratio(layer.after.macs, layer.before.macs)
    if is_left_alone(layer):
        return name_text(layer.name), setting_text(None), "-", macs, ratio, params, "-", "-"
    return (
        name_text(layer.name),
        done_text(layer).replace("->", _ARROW),
        "-" if layer.setting is None else layer.setting.rank_text,
        _arrow(macs, format_count(layer.after.macs)),
        ratio,
        _arrow(params, format_count(layer.after.params)),
        format_damage(layer.damage),
        layer.fit or "-",
    )


def _plan_sections(plan: Plan, summary: Summary) -> list[str]:
    """The channels that groups keep, and the blocks that went."""
    parts = []
    if plan.groups:
        kept = rows_table(KEPT_COLUMNS, kept_rows(plan, summary))
        parts.append(section("Channels that stay", f"{_kept_chart(plan)}\n{kept}"))
    if plan.dropped:
        parts.append(section("Dropped blocks", rows_table(DROPPED_COLUMNS, dropped_rows(plan, summary))))
    return parts


def _kept_chart(plan: Plan) -> str:
    bars = []
    channels = plan.steps[-1].structure.channels
    for group in slimmable_groups(channels).values():
        kept = plan.groups.get(group.name)
        count = group.units if kept is None else len(kept)
        made = f"made by {first_of(group.producers)}, read by {first_of(readers_of(channels, group))}"
        bars.append(
            Bar(
                name=group.name,
                before=group.units * group.unit_width,
                after=None if kept is None else count * group.unit_width,
                value=str(group.units) if kept is None else f"{count} of {group.units}",
                hint=f"{group.name}: {count} of {group.units} units of {group.unit_width} stay; {made}",
            )
        )
    colours = [("a", "after"), ("b", "before"), ("k", "stays whole")]
    return legend(colours) + bar_chart(bars, "Channels of each group before and after")
