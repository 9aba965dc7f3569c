# SPDX-License-Identifier: Apache-2.0
"""Plain text for terminals, logs and files: ASCII, no colours."""

from collections.abc import Mapping, Sequence
from io import StringIO

from rich.box import Box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

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

_UNLIMITED = 100_000

# ASCII only: a report piped into a file or an old terminal must not fail on a line of dashes.
_RULED = Box("    \n    \n -- \n    \n -- \n -- \n    \n    \n", ascii=True)


def render_text(summary: Summary, *, width: int = 120) -> str:
    """A result as plain text.

    Args:
        summary: what to show.
        width: columns to fill at most; remarks wrap, a table that needs more takes it.

    Returns:
        Lines of ASCII (names and notes as given), the last one ended.
    """
    parts: list[RenderableType] = [summary.title, "", _totals(summary)]
    if summary.measurements:
        parts += ["", _measurements(summary)]
    parts += ["", *_damage_lines(summary)]
    if summary.seconds:
        parts.append(f"Time: {format_phases(summary.seconds)}")
    reasons = {layer.name: why_left(layer) for layer in summary.layers if layer.setting is None}
    parts += ["", _layers(summary), *_reason_lines("Left alone", reasons)]
    parts += _list("Notes", [str(note) for note in summary.notes])
    return _rendered(parts, width=width)


def render_layers(specs: Sequence[LayerSpec], before: Cost, *, width: int = 120) -> str:
    """The layers of a model as plain text: what each costs and what can be done to it.

    Args:
        specs: every layer, in execution order.
        before: counted cost of the whole model.
        width: columns to fill at most; a table that needs more takes it.

    Returns:
        Lines of ASCII (names and reasons as given), the last one ended.
    """
    table = _table("layer")
    table.add_column("kind", no_wrap=True)
    for column in ("weight", "output", "calls", "MACs", "share", "params"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("methods", no_wrap=True)
    for spec in specs:
        table.add_row(
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
    elsewhere = before.macs - sum(spec.macs for spec in specs)
    if elsewhere > 0:
        share = format_percent(elsewhere, before.macs)
        table.add_row(ELSEWHERE_LABEL, "", "", "", "", format_count(elsewhere), share, "", "")
    closing = (
        f"{len(specs)} layers, {sum(1 for spec in specs if spec.methods)} can be compressed; "
        f"{format_count(before.macs)} MACs, {format_count(before.params)} parameters, "
        f"{format_metric('bytes', before.bytes)}"
    )
    reasons = {spec.name: why_not(spec) for spec in specs if not spec.methods}
    return _rendered([table, "", closing, *_reason_lines("Cannot be compressed", reasons)], width=width)


def _totals(summary: Summary) -> Table:
    table = _table("counted", "before", "after", "keep ratio")
    for name in METRICS:
        before, after = summary.before.metric(name), summary.after.metric(name)
        table.add_row(
            METRIC_LABELS[name],
            format_metric(name, before),
            format_metric(name, after),
            format_ratio(after, before),
        )
    return table


def _measurements(summary: Summary) -> Table:
    table = _table("measured", "before", "after", "change")
    for measured in summary.measurements:
        table.add_row(
            measured.name,
            format_measured(measured.before, measured.unit),
            format_measured(measured.after, measured.unit),
            format_change(measured),
        )
    return table


def _damage_lines(summary: Summary) -> list[str]:
    lines = []
    if summary.divergence is None:
        lines.append(f"{DIVERGENCE_LABEL}: not measured")
    else:
        lines.append(f"{DIVERGENCE_LABEL}: {format_damage(summary.divergence)} {summary.unit}")
    if summary.damage is not None:
        lines.append(f"{DAMAGE_LABEL}: {format_damage(summary.damage)} {summary.unit}")
    return lines


def _layers(summary: Summary) -> Table:
    table = _table("layer")
    table.add_column("setting", no_wrap=True)
    for column in ("rank", "MACs", "after", "keep ratio", "damage"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("fit", no_wrap=True)
    for layer in summary.layers:
        table.add_row(*_layer_row(layer))
    before = macs_elsewhere(summary.before, (layer.before for layer in summary.layers))
    after = macs_elsewhere(summary.after, (layer.after for layer in summary.layers))
    if before > 0:
        ratio = format_ratio(after, before)
        table.add_row(ELSEWHERE_LABEL, "", "", format_count(before), format_count(after), ratio, "", "")
    return table


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


def _reason_lines(heading: str, reasons: Mapping[str, str]) -> list[RenderableType]:
    return _list(heading, [f"{names}: {reason}" for names, reason in layers_by_reason(reasons)])


def _list(heading: str, lines: Sequence[str]) -> list[RenderableType]:
    if not lines:
        return []
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column()
    grid.add_column(overflow="fold")
    for line in lines:
        grid.add_row(" -", line)
    return ["", heading, grid]


def _table(first: str | None = None, *numbers: str) -> Table:
    table = Table(box=_RULED, pad_edge=False, show_edge=False, padding=(0, 1), collapse_padding=True)
    if first is not None:
        table.add_column(first, no_wrap=True)
    for column in numbers:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _rendered(parts: Sequence[RenderableType], *, width: int) -> str:
    # Markup off: names and reasons may hold square brackets.
    console = Console(
        file=StringIO(), width=_UNLIMITED, color_system=None, markup=False, emoji=False, highlight=False
    )
    with console.capture() as capture:
        for part in parts:
            # A number cut short would be a wrong number: a table that cannot fit stands out to the right.
            needed = Measurement.get(console, console.options, part).minimum
            console.print(part, width=max(width, needed))
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines())
