# SPDX-License-Identifier: Apache-2.0
"""Plain text for terminals, logs and files: ASCII, no colours, no number cut short."""

from collections.abc import Iterator, Sequence

from slimrank.cost import layer_cost, pair_has_bias, setting_cost, slimmed_spec
from slimrank.plan import Plan, is_inside
from slimrank.records import METRICS, Cost, LayerResult, LayerSpec, Note, PlannedLatency, Summary
from slimrank.report._agreement import agreement_lines, divergence_text, output_table
from slimrank.report._groups import DROPPED_COLUMNS, KEPT_COLUMNS, counts_text, dropped_rows, kept_rows
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
from slimrank.report._table import joined_parts, list_text, reasons_text, render_table, wrapped
from slimrank.report._words import (
    DAMAGE_LABEL,
    DIVERGENCE_LABEL,
    ELSEWHERE_LABEL,
    METRIC_LABELS,
    MULTIPLES_LABEL,
    done_text,
    is_left_alone,
    multiples_text,
    name_text,
    setting_text,
    shape_text,
    slimmed_text,
    warnings_and_others,
    why_left,
    why_not,
)

# ``>`` before a heading aligns its column right.
LAYER_COLUMNS = ("layer", "kind", ">weight", ">output", ">calls", ">MACs", ">share", ">params", "methods")
RESULT_COLUMNS = ("layer", "setting", ">rank", ">MACs", ">after", ">keep ratio", ">damage", "fit")
COST_COLUMNS = ("cost", ">before", ">after", ">keep ratio")


def render_text(summary: Summary, *, plan: Plan | None = None, width: int | None = 110) -> str:
    """A result as plain text.

    Args:
        summary: what to show.
        plan: that made it, for what ranks and widths are multiples of, the groups it slims and the blocks it
            drops; None leaves them out.
        width: columns at which remarks wrap, None for nowhere; tables take what they need (about 100).

    Returns:
        Lines of ASCII (names and notes as given), the last one ended.
    """
    remarks = [*_damage_lines(summary)]
    if plan is not None and multiples_text(plan):
        remarks.append(f"{MULTIPLES_LABEL}: {multiples_text(plan)}")
    if summary.seconds:
        remarks.append(f"Time: {format_phases(summary.seconds)}")
    reasons = {layer.name: why_left(layer) for layer in summary.layers if is_left_alone(layer)}
    warnings, notes = warnings_and_others(summary.notes)
    top = (wrapped(f"Warning: {warning}", width, then="  ") for warning in warnings)
    parts = [
        "\n".join([summary.title, *top]),
        _cost_table("counted", summary.before, summary.after),
        _measurement_table(summary),
        "\n".join(wrapped(line, width, then="  ") for line in remarks),
        _output_table(summary),
        render_table(RESULT_COLUMNS, result_rows(summary)),
        *([] if plan is None else _groups_and_blocks(plan, summary)),
        reasons_text("Left alone", reasons, width),
        list_text("Notes", [str(note) for note in notes], width),
    ]
    return joined_parts(parts)


def render_layers(
    specs: Sequence[LayerSpec], before: Cost, notes: Sequence[Note] = (), *, width: int | None = 110
) -> str:
    """The layers of a model as plain text: what each costs and what can be done to it.

    Args:
        specs: every layer, in execution order.
        before: counted cost of the whole model.
        notes: of its study; warnings come first, others last, each on a line of its own.
        width: columns at which reasons wrap, None for nowhere; the table takes what it needs (about 110).

    Returns:
        Lines of ASCII (names and reasons as given), the last one ended.
    """
    reasons = {spec.name: why_not(spec) for spec in specs if not spec.methods}
    warnings, others = warnings_and_others(notes)
    return joined_parts(
        [
            "\n".join(f"Warning: {warning}" for warning in warnings),
            render_table(LAYER_COLUMNS, layer_rows(specs, before)),
            layers_line(specs, before),
            reasons_text("Cannot be compressed", reasons, width),
            "\n".join(f"- {note}" for note in others),
        ]
    )


def layer_rows(specs: Sequence[LayerSpec], before: Cost) -> list[tuple[str, ...]]:
    """Cells of ``LAYER_COLUMNS`` for every layer, and for what is outside of them."""
    rows: list[tuple[str, ...]] = [
        (
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
        for spec in specs
    ]
    elsewhere = before.macs - sum(spec.macs for spec in specs)
    if elsewhere > 0:
        share = format_percent(elsewhere, before.macs)
        rows.append((ELSEWHERE_LABEL, "", "", "", "", format_count(elsewhere), share, "", ""))
    return rows


def layers_line(specs: Sequence[LayerSpec], before: Cost) -> str:
    """Layers, counted, and what the model costs."""
    return (
        f"{len(specs)} layers, {sum(1 for spec in specs if spec.methods)} can be compressed; "
        f"{format_count(before.macs)} MACs, {format_count(before.params)} parameters, "
        f"{format_metric('bytes', before.bytes)}"
    )


def render_plan(plan: Plan, unit: str = "", *, width: int | None = 110) -> str:
    """A plan as plain text: what is done to each layer, and what the model then costs.

    Args:
        plan: what to show.
        unit: of its damage; "" where it is not known.
        width: columns at which remarks wrap, None for nowhere; tables take what they need (about 90).

    Returns:
        Lines of ASCII (names as given), the last one ended.
    """
    specs = plan.steps[-1].structure.layers if plan.steps else {}
    reasons = {
        spec.name: why_not(spec)
        for spec in specs.values()
        if not spec.methods and slimmed_text(plan.steps[-1], spec) is None
    }
    given = dict.fromkeys(name for names in plan.fixed.values() for name in names)
    fixed = f"given, not chosen: {', '.join(given)}" if given else ""
    remarks = (plan_line(plan, unit), multiples_text(plan), fixed)
    return joined_parts(
        [
            render_table(*plan_table(plan)),
            *_groups_and_blocks(plan),
            _cost_table("computed from shapes", plan.before, plan.after),
            "\n".join(wrapped(line, width, then="  ") for line in remarks if line),
            reasons_text("Cannot be compressed", reasons, width),
        ]
    )


def plan_table(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Columns and rows of what the last step of a plan does to each layer."""
    specs = plan.steps[-1].structure.layers if plan.steps else {}
    slimmed = {name: slimmed_text(plan.steps[-1], spec) for name, spec in specs.items()}
    rows = [_plan_row(plan, spec, slimmed[spec.name]) for spec in specs.values()]
    columns: tuple[str, ...] = (
        "layer",
        "method",
        "form",
        ">rank",
        "channels",
        ">MACs",
        ">after",
        ">keep ratio",
    )
    # An empty column would only make the table wider.
    if not any(slimmed.values()):
        index = columns.index("channels")
        columns, *rows = ((*row[:index], *row[index + 1 :]) for row in (columns, *rows))
    return columns, rows


def plan_line(plan: Plan, unit: str = "") -> str:
    """How a plan was chosen, how much it does, and what it predicts."""
    closing = f"{plan.select}: {counts_text(plan)}"
    if len(plan.steps) > 1:
        closing = f"step {len(plan.steps)}, {closing}"
    if plan.damage is not None:
        closing += f"; predicted damage {format_damage(plan.damage)} {unit}".rstrip()
    if plan.score_loss is not None:
        closing += f"; predicted loss of the score {format_damage(plan.score_loss)}"
    if plan.gap is not None:
        closing += f" ({_gap_text(plan.gap)})"
    if plan.asked:
        closing += f"; asked for: {', '.join(f'{metric} {words}' for metric, words in plan.asked.items())}"
    if plan.latency is not None:
        closing += f"; {_latency_text(plan.latency)}"
    if plan.activations is not None:
        peak = plan.activations
        closing += f"; peak of activations {peak.keep_ratio:.4f} of {peak.before:,} bytes, asked {peak.text}"
    return closing


def _latency_text(latency: PlannedLatency) -> str:
    threads = "1 thread" if latency.threads == 1 else f"{latency.threads} threads"
    asked = f"{latency.asked:.4f}" + f" ({latency.words})" * bool(latency.words)
    return (
        f"predicted latency {latency.predicted:.4f} of {latency.before_ms:.3f} ms, asked {asked} "
        f"({latency.backend}, {latency.precision}, batch {latency.batch}, {threads})"
    )


def _gap_text(gap: float) -> str:
    """What is certain of other choices; a bound that shows as all of it says nothing."""
    saved = format_percent(gap, 1)
    if saved == format_percent(1, 1):
        return "no useful bound on what another choice could save"
    return f"another choice could save at most {saved} of it"


def _plan_row(plan: Plan, spec: LayerSpec, slimmed: str | None) -> tuple[str, ...]:
    """Cells of one layer; what its channels become stands beside the pair, if any."""
    setting, before = plan.settings.get(spec.name), layer_cost(spec).macs
    step = plan.steps[-1]
    left = slimmed_spec(spec, step.structure.channels, step.groups)
    if setting is not None:
        after = setting_cost(
            left,
            setting,
            has_bias=pair_has_bias(spec, plan_has_bias=plan.has_bias),
        ).macs
        done: tuple[str, ...] = (setting.method, setting.form, setting.rank_text)
    elif is_inside(spec.name, plan.dropped):
        after, done = 0, ("dropped", "", "-")
    else:
        after = layer_cost(left).macs
        done = (setting_text(None) if slimmed is None else "slimmed", "", "-")
    numbers = (format_count(before), format_count(after), format_ratio(after, before))
    return (name_text(spec.name), *done, slimmed or "", *numbers)


def _groups_and_blocks(plan: Plan, summary: Summary | None = None) -> list[str]:
    """Tables of the groups that a plan slims and of the blocks that it drops; of a result with damages."""
    parts = ((KEPT_COLUMNS, kept_rows(plan, summary)), (DROPPED_COLUMNS, dropped_rows(plan, summary)))
    return [render_table(columns[: len(rows[0])], rows) for columns, rows in parts if rows]


def _cost_table(heading: str, before: Cost, after: Cost) -> str:
    return render_table((heading, *COST_COLUMNS[1:]), cost_rows(before, after))


def cost_rows(before: Cost, after: Cost) -> list[tuple[str, ...]]:
    """Cells of ``COST_COLUMNS`` for each metric."""
    rows: list[tuple[str, ...]] = []
    for name in METRICS:
        old, new = before.metric(name), after.metric(name)
        rows.append(
            (METRIC_LABELS[name], format_metric(name, old), format_metric(name, new), format_ratio(new, old))
        )
    return rows


def _measurement_table(summary: Summary) -> str:
    rows = measurement_rows(summary)
    return render_table(("measured", ">before", ">after", ">change"), rows) if rows else ""


def measurement_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Name, value before, value after and change of everything that was measured."""
    return [
        (
            measured.name,
            format_measured(measured.before, measured.unit),
            format_measured(measured.after, measured.unit),
            format_change(measured),
        )
        for measured in summary.measurements
    ]


def _damage_lines(summary: Summary) -> Iterator[str]:
    yield f"{DIVERGENCE_LABEL}: {divergence_text(summary)}"
    for label, text in agreement_lines(summary):
        yield f"{label}: {text}"
    if summary.damage is not None:
        yield f"{DAMAGE_LABEL}: {format_damage(summary.damage)} {summary.damage_unit}"


def _output_table(summary: Summary) -> str:
    """How each of several outputs agrees; "" for one."""
    if summary.agreement is None or len(summary.agreement) < 2:
        return ""
    return render_table(*output_table(summary.agreement))


def result_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Cells of ``RESULT_COLUMNS`` for every layer, and for what is outside of them."""
    rows = [_text_layer_row(layer) for layer in summary.layers]
    before = macs_elsewhere(summary.start, (layer.before for layer in summary.layers))
    after = macs_elsewhere(summary.after, (layer.after for layer in summary.layers))
    if before > 0:
        numbers = (format_count(before), format_count(after), format_ratio(after, before))
        rows.append((ELSEWHERE_LABEL, "", "", *numbers, "", ""))
    return rows


def _text_layer_row(layer: LayerResult) -> tuple[str, ...]:
    return (
        name_text(layer.name),
        done_text(layer),
        "-" if layer.setting is None else layer.setting.rank_text,
        format_count(layer.before.macs),
        format_count(layer.after.macs),
        format_ratio(layer.after.macs, layer.before.macs),
        format_damage(layer.damage),
        layer.fit or "-",
    )
