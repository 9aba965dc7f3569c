# SPDX-License-Identifier: Apache-2.0
"""The sections of a page: each is a function of the page's data, and "" where there is nothing to show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import cast

from slimrank.files import Json
from slimrank.records import METRICS, PRUNING, Measurement, Setting
from slimrank.report._exported import export_rows, exports_from_facts
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
)
from slimrank.report._words import (
    DAMAGE_LABEL,
    DIVERGENCE_LABEL,
    ELSEWHERE_LABEL,
    METRIC_LABELS,
    MULTIPLES_LABEL,
    counted,
    done_of,
    first_of,
    layers_by_reason,
    name_text,
    setting_text,
)
from slimrank.report.page._charts import (
    Bar,
    Line,
    Span,
    bar_list,
    equal_plot,
    small_curves,
    span_chart,
    wide_plot,
)
from slimrank.report.page._frame import box, definitions, legend, paragraph, part, table
from slimrank.report.page._reading import Facts, facts_of, number_of, number_or_none, rows_of, texts_of

# Text for terminals is ASCII and has "->" instead.
_ARROW = "\N{RIGHTWARDS ARROW}"
# Layers that have a bar, layers and groups that have a curve, groups in the picture of who reads whom; the
# costliest. Tables and data have all of them.
_MOST_BARS, _MOST_CURVES, _MOST_SPANS = 50, 24, 60
# Of the lines of methods; others have the next one.
_COLOURS: Mapping[str, int] = {"weight_svd": 0, "spatial_svd": 1, PRUNING: 2, "tucker2": 3}
# Rows from which on a table is folded at first.
_LONG = 60


def warnings(data: Facts) -> str:
    """What must not be missed, above all else."""
    texts = texts_of(data["warnings"])
    if not texts:
        return ""
    heading = "Warning" if len(texts) == 1 else "Warnings"
    return box(heading, "\n".join(f"<p>{escape(text)}</p>" for text in texts), "warning")


def verdict(data: Facts) -> str:
    """Title and verdict."""
    return (
        f"<h1>{escape(str(data['title']))}</h1>\n"
        f'<p class="verdict">{escape(str(data["verdict"]))}</p>\n{paragraph(str(data["counts"]))}'
    )


def numbers(data: Facts) -> str:
    """Costs, and what was measured, before and after."""
    before, after = facts_of(data["before"]), data["after"]
    # The cost, times and what was measured of the outputs first: a phone shows hardly more at once.
    found: list[str] = []
    others: list[str] = []
    for metric in METRICS:
        cards = found if metric == METRICS[0] else others
        old = int(number_of(before[metric]))
        if after is None:
            cards.append(
                _card(METRIC_LABELS[metric], "", format_metric(metric, old), format_exact(old), None)
            )
            continue
        new = int(number_of(facts_of(after)[metric]))
        detail = f"keep ratio {format_ratio(new, old)}"
        share = new / old if old else None
        old_text, new_text = format_metric(metric, old), format_metric(metric, new)
        cards.append(_card(METRIC_LABELS[metric], old_text, new_text, detail, share))
    found += _time_card(data)
    for measured in _measurements(data):
        old_text, new_text = (
            format_measured(value, measured.unit) for value in (measured.before, measured.after)
        )
        # Memory is a cost of the second rank.
        cards = others if measured.name.startswith("peak of activations") else found
        cards.append(_card(measured.name, old_text, new_text, format_change(measured), None))
    if data["divergence"] is not None:
        detail = str(data["unit"])
        # Only of the same quantity: a share of weight energy does not predict a divergence.
        if data["damage"] is not None and data["damage_unit"] == data["unit"]:
            detail += f"; predicted: {format_damage(number_of(data['damage']))}"
        value = format_damage(number_of(data["divergence"]))
        found.append(_card("held-out divergence", "", value, detail, None))
    return '<div class="numbers">\n' + "\n".join((*found, *others)) + "\n</div>"


def _time_card(data: Facts) -> list[str]:
    """The time of the network by a table of measured times, where one was given."""
    if data.get("latency") is None:
        return []
    times = facts_of(data["latency"])
    before, after = number_of(times["before_ms"]), number_or_none(times["after_ms"])
    if after is None:
        return [_card("time of a batch", "", format_measured(before, "ms"), _conditions(times), None)]
    since = ", of the last step" if number_of(facts_of(data["plan"])["steps"]) > 1 else ""
    detail = (
        f"keep ratio {format_ratio(after, before)}{since}, by the times of its parts; {_conditions(times)}"
    )
    old, new = format_measured(before, "ms"), format_measured(after, "ms")
    return [_card("time of a batch", old, new, detail, after / before if before else None)]


def _conditions(times: Facts) -> str:
    """What times were measured with."""
    threads = int(number_of(times["threads"]))
    return f"{times['backend']}, {times['precision']}, batch {times['batch']}, {counted(threads, 'thread')}"


def _card(heading: str, before: str, after: str, detail: str, share: float | None) -> str:
    meter = ""
    if share is not None:
        meter = f'<div class="meter"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></div>'
    old = f"<s>{escape(before)} {_ARROW}</s>" if before else ""
    return (
        f"<section><h2>{escape(heading)}</h2>{old}<b>{escape(after)}</b>{meter}{paragraph(detail)}</section>"
    )


def advice(data: Facts) -> str:
    """What to do next."""
    lines = "".join(f"<li>{escape(str(line['text']))}</li>" for line in rows_of(data["advice"]))
    return box("What to do next", f'<ol class="advice">{lines}</ol>') if lines else ""


def costs(data: Facts) -> str:
    """Where the cost is."""
    layers = sorted(rows_of(data["layers"]), key=lambda row: -_weight(data, row))
    shown = {str(row["name"]) for row in layers[:_MOST_BARS]}
    rows = [(index, row) for index, row in enumerate(rows_of(data["layers"])) if str(row["name"]) in shown]
    whole = number_of(facts_of(data["start"])["macs"])
    bars = [_cost_bar(data, index, row, whole) for index, row in rows]
    colours = [("a", "can be compressed"), ("k", "left alone")]
    if data["kind"] == "result":
        colours = [("a", "after"), ("b", "before"), ("k", "left alone")]
    rest = len(layers) - len(rows)
    note = paragraph(f"The {len(rows)} costliest of {len(layers)} layers.") if rest else ""
    label = "Cost of each layer" if data["kind"] == "study" else "Cost of each layer before and after"
    lead = ""
    if data.get("latency") is not None:
        conditions = _conditions(facts_of(data["latency"]))
        lead = paragraph(
            f"Times of layers inside the network, in ms for one batch ({conditions}), follow from a table of "
            "measured times."
        )
    body = legend(colours) + lead + note + bar_list(bars, label, is_switched=True)
    return part("Where the cost is", body)


def _weight(data: Facts, row: Facts) -> float:
    """What a layer counts where only the costliest have room: its share of the MACs, and of the time."""
    whole = number_of(facts_of(data["start"])["macs"])
    share = _cost(row, "macs") / whole if whole else 0.0
    if data.get("latency") is not None:
        share += number_of(facts_of(row["before"])["ms"]) / number_of(facts_of(data["latency"])["before_ms"])
    return share


def _cost_bar(data: Facts, index: int, row: Facts, whole: float) -> Bar:
    name, before = name_text(str(row["name"])), _cost(row, "macs")
    if data["kind"] == "study":
        can = ", ".join(texts_of(row["methods"])) or str(row["reason"] or "no method applies")
        return Bar(
            layer=index,
            name=name,
            before=before,
            after=before if row["methods"] else None,
            value=f"{format_count(int(before))}, {format_percent(before, whole)}",
            hint=f"{format_exact(int(before))} MACs{_time_hint(row)}; {can}",
        )
    if _is_alone(row):
        return Bar(
            layer=index,
            name=name,
            before=before,
            after=None,
            value=format_count(int(before)),
            hint=f"{format_exact(int(before))} MACs{_time_hint(row)}, left alone: "
            f"{row['reason'] or 'not in the plan'}",
        )
    after = number_of(facts_of(row["after"])["macs"])
    setting = _setting(row)
    rank = "" if setting is None else f", rank {setting.rank_text}"
    return Bar(
        layer=index,
        name=name,
        before=before,
        after=after,
        value=f"{format_count(int(before))} {_ARROW} {format_count(int(after))}",
        hint=f"{format_exact(int(before))} MACs before, {format_exact(int(after))} after, keep ratio "
        f"{format_ratio(after, before)}{_time_hint(row)}; {_done(row)}{rank}",
    )


def _time_hint(row: Facts) -> str:
    """The time of a layer, where it is known."""
    text = _time_text(row)
    return "" if text == "-" else f", {text} ms"


def _time_text(row: Facts) -> str:
    """Milliseconds of a layer, before and after; "-" where they are not known."""
    before = number_or_none(facts_of(row["before"]).get("ms"))
    if before is None:
        return "-"
    after = None if "after" not in row else number_or_none(facts_of(row["after"]).get("ms"))
    return f"{before:.3g}" if after is None or after == before else f"{before:.3g} {_ARROW} {after:.3g}"


def layer_table(data: Facts) -> str:
    """Every layer."""
    rows = rows_of(data["layers"])
    body = _study_layers(data, rows) if data["kind"] == "study" else _result_layers(data, rows)
    heading = "What can be done to each layer" if data["kind"] == "study" else "Layers"
    return part(heading, body, count=str(len(rows)), is_open=len(rows) <= _LONG)


def _study_layers(data: Facts, rows: Sequence[Facts]) -> str:
    whole = number_of(facts_of(data["before"])["macs"])
    has_times = data.get("latency") is not None
    cells: list[tuple[str, ...]] = []
    values: list[tuple[float | None, ...]] = []
    for row in rows:
        macs, params = _cost(row, "macs"), _cost(row, "params")
        methods = ", ".join(texts_of(row["methods"])) or "-"
        cells.append(
            (
                name_text(str(row["name"])),
                str(row["kind"] or "-"),
                str(row["weight"] or "-"),
                str(row["output"] or "-"),
                str(row["calls"] or 0),
                format_count(int(macs)),
                format_percent(macs, whole),
                format_count(int(params)),
                *((_time_text(row),) if has_times else ()),
                methods,
            )
        )
        values.append(
            (
                *(None,) * 5,
                macs,
                macs / whole if whole else 0.0,
                params,
                *((number_or_none(facts_of(row["before"])["ms"]),) if has_times else ()),
                None,
            )
        )
    elsewhere = whole - sum(_cost(row, "macs") for row in rows)
    layers: list[int | None] = list(range(len(rows)))
    idle = [not row["methods"] for row in rows]
    if elsewhere > 0:
        share = format_percent(elsewhere, whole)
        rest = ("",) * (3 if has_times else 2)
        cells.append((ELSEWHERE_LABEL, "", "", "", "", format_count(int(elsewhere)), share, *rest))
        values.append((None, None, None, None, None, elsewhere, elsewhere / whole, *(None for _ in rest)))
        layers.append(None)
        idle.append(True)
    times = (">ms",) if has_times else ()
    columns = (
        *("layer", "kind", ">weight", ">output", ">calls", ">MACs", ">share", ">params"),
        *times,
        "methods",
    )
    return table(columns, cells, values=values, layers=layers, idle=idle)


def _result_layers(data: Facts, rows: Sequence[Facts]) -> str:
    cells: list[tuple[str, ...]] = []
    values: list[tuple[float | None, ...]] = []
    has_times = data.get("latency") is not None
    has_unrounded = _has_unrounded(data) and any(row["setting"] or row["unrounded"] for row in rows)
    for row in rows:
        macs, params = _cost(row, "macs"), _cost(row, "params")
        after = facts_of(row["after"])
        new, new_params = number_of(after["macs"]), number_of(after["params"])
        setting, is_alone = _setting(row), _is_alone(row)
        free, free_rank = _free_text(row)
        cells.append(
            (
                name_text(str(row["name"])),
                setting_text(None) if is_alone else _done(row).replace("->", _ARROW),
                "-" if setting is None else setting.rank_text,
                *((free,) if has_unrounded else ()),
                _from_to(macs, new, is_alone=is_alone),
                format_ratio(new, macs),
                _from_to(params, new_params, is_alone=is_alone),
                *((_time_text(row),) if has_times else ()),
                format_damage(number_or_none(row["damage"])),
                str(row["fit"] or "-"),
            )
        )
        rank = None if setting is None else float(setting.rank)
        values.append(
            (
                *(None, None, rank),
                *((free_rank,) if has_unrounded else ()),
                *(new, new / macs if macs else None, new_params),
                *((number_or_none(after["ms"]),) if has_times else ()),
                *(number_or_none(row["damage"]), None),
            )
        )
    layers: list[int | None] = list(range(len(rows)))
    idle = [_is_alone(row) for row in rows]
    before = number_of(facts_of(data["start"])["macs"]) - sum(_cost(row, "macs") for row in rows)
    new = number_of(facts_of(data["after"])["macs"]) - sum(
        number_of(facts_of(row["after"])["macs"]) for row in rows
    )
    free_columns, time_columns = (">unrounded",) * has_unrounded, (">ms",) * has_times
    if before > 0:
        head, rest = ("", "", *("" for _ in free_columns)), ("", *("" for _ in time_columns), "", "")
        macs_text = _from_to(before, new, is_alone=False)
        cells.append((ELSEWHERE_LABEL, *head, macs_text, format_ratio(new, before), *rest))
        values.append((None, *(None for _ in head), new, new / before, *(None for _ in rest)))
        layers.append(None)
        idle.append(True)
    columns = (
        *("layer", "setting", ">rank", *free_columns, ">MACs", ">keep ratio", ">params"),
        *(*time_columns, ">damage", "fit"),
    )
    body = table(columns, cells, values=values, layers=layers, idle=idle)
    if has_unrounded:
        body = (
            paragraph("Unrounded: what the same budget would take there if any rank and width were allowed.")
            + body
        )
    return body


def _from_to(before: float, after: float, *, is_alone: bool) -> str:
    """A count before and after; one alone where nothing was done."""
    old = format_count(int(before))
    return old if is_alone else f"{old} {_ARROW} {format_count(int(after))}"


def _has_unrounded(data: Facts) -> bool:
    """Whether it is known what rounding to multiples changed."""
    plan = data["plan"]
    return plan is not None and facts_of(plan).get("unrounded") is not None


def _free_text(row: Facts) -> tuple[str, float | None]:
    """What a layer would be if nothing were rounded, and its rank; "whole" where it then stays as it is."""
    setting = _setting(row, "unrounded")
    if setting is None:
        return ("-" if row["setting"] is None else "whole"), None
    chosen = _setting(row)
    is_same = chosen is not None and (chosen.method, chosen.form) == (setting.method, setting.form)
    text = setting.rank_text if is_same else f"{setting_text(setting)} {setting.rank_text}"
    return text, float(setting.rank)


def curves(data: Facts) -> str:
    """Damage over what stays, of layers and groups, with what was chosen."""
    found: list[_Damages] = []
    places = _places(data)
    for index, row in enumerate(rows_of(data["layers"])):
        name, curves = name_text(str(row["name"])), rows_of(row["curves"])
        if _has_picture(curves):
            found.append(_Damages(_cost(row, "macs"), name, curves, index, row, f"layers {index}"))
    layer_costs = {str(row["name"]): _cost(row, "macs") for row in rows_of(data["layers"])}
    for index, group in enumerate(rows_of(data["groups"])):
        makers = texts_of(group["makers"])
        maker = next((places[name] for name in makers if name in places), None)
        if _has_picture([group]):
            cost = sum(layer_costs.get(name, 0.0) for name in {*makers, *texts_of(group["readers"])})
            name = f"{group['name']} (group)"
            found.append(_Damages(cost, name, [group], maker, group, f"groups {index}", is_group=True))
    shown = _costliest(found)
    if not shown:
        return ""
    table_text = _measured_table(shown)
    text = (
        "Damage of the whole network with only this layer or group compressed, by the share of its MACs or "
        "units that stays: 0 at the left, 1 at the right, each on a log scale of its own, whose ends are "
        "written in."
    )
    if table_text:
        text += " Lines are predicted, dots were measured on held-out samples."
    if len(found) > len(shown):
        text += f" The {len(shown)} costliest of {len(found)}; a click on a layer shows its own."
    if data["kind"] == "result":
        text += " Rings mark what was chosen."
    figures = "\n".join(one.figure for one in shown)
    body = f'{paragraph(text)}<div class="charts">{figures}</div>{table_text}'
    return part("Damage curves", body, count=str(len(found)))


@dataclass(frozen=True, slots=True)
class _Damages:
    """The damages of a layer or group.

    Attributes:
        cost: MACs of what it touches.
        name: plain text.
        curves: its curves.
        layer: index of the layer whose details a click opens.
        row: of the layer or group.
        key: what the script finds its data by.
        is_group: of a group.
    """

    cost: float
    name: str
    curves: Sequence[Facts]
    layer: int | None
    row: Facts
    key: str
    is_group: bool = False

    @property
    def figure(self) -> str:
        """HTML."""
        lines = [_group_line(self.row)] if self.is_group else _layer_lines(self.row)
        return small_curves(name_text(str(self.row["name"])), lines, self.key, self.layer)


def _has_picture(curves: Sequence[Facts]) -> bool:
    """Whether there are two damages above 0, which can be drawn."""
    return sum(1 for curve in curves for _, damage, _ in _shown_points(curve) if damage > 0) > 1


def _costliest(found: Sequence[_Damages]) -> list[_Damages]:
    """Those that have a picture, in their order: groups, which touch several layers, leave layers room."""
    ranked = sorted(range(len(found)), key=lambda index: -found[index].cost)
    layers = [index for index in ranked if not found[index].is_group]
    groups = [index for index in ranked if found[index].is_group]
    n_groups = min(len(groups), max(_MOST_CURVES // 3, _MOST_CURVES - len(layers)))
    return [found[index] for index in sorted((*layers[: _MOST_CURVES - n_groups], *groups[:n_groups]))]


def _measured_table(shown: Sequence[_Damages]) -> str:
    """What was measured of the curves that are drawn, beside what they predict there; "" for nothing."""
    rows: list[tuple[str, ...]] = []
    values: list[tuple[float | None, ...]] = []
    layers: list[int | None] = []
    for damages in shown:
        for curve in damages.curves:
            predicted = {size: damage for _, damage, size in _points(curve)}
            for keep, divergence, size in _anchors(curve):
                method = "channels" if "method" not in curve else f"{curve['method']} {curve['form']}"
                damage = predicted.get(size)
                rows.append(
                    (
                        damages.name,
                        method.removesuffix(" linear"),
                        format_percent(keep, 1),
                        f"{size:g}",
                        format_damage(damage),
                        format_damage(divergence),
                    )
                )
                values.append((None, None, keep, size, damage, divergence))
                layers.append(damages.layer)
    if not rows:
        return ""
    columns = ("layer or group", "method", ">stays", ">rank or units", ">predicted", ">measured")
    body = table(columns, rows, values=values, layers=layers)
    return f'<details class="under"><summary>Measured points, {len(rows)}</summary>{body}</details>'


def _layer_lines(row: Facts) -> list[Line]:
    """The curves of a layer: a colour for each method, a second form of one dashed."""
    lines, seen = [], set()
    for curve in rows_of(row["curves"]):
        method, form = str(curve["method"]), str(curve["form"])
        lines.append(
            Line(
                name=method if form == "linear" else f"{method} {form}",
                points=_shown_points(curve),
                colour=_COLOURS.get(method, len(_COLOURS)),
                is_dashed=method in seen,
                chosen=_chosen(row, curve),
                has_dots=False,
                measured=_measured_points(curve),
            )
        )
        seen.add(method)
    return lines


def _group_line(group: Facts) -> Line:
    units, kept = number_of(group["units"]), number_or_none(group["kept"])
    return Line(
        name=f"channels, {units:g} units",
        points=_shown_points(group),
        colour=_COLOURS[PRUNING],
        chosen=None if kept is None else kept / units,
        has_dots=False,
        measured=_measured_points(group),
    )


def _measured_points(curve: Facts) -> list[tuple[float, float, str]]:
    """What was measured of a curve, and what the pointer shows of it."""
    return [
        (keep, divergence, f"measured at {_point(keep, size, divergence)}")
        for keep, divergence, size in _anchors(curve)
        if keep <= 1
    ]


def _shown_points(curve: Facts) -> list[tuple[float, float, str]]:
    """Points of a curve, and what the pointer shows of them.

    What saves parameters alone has more MACs than the layer, and no place in a picture of shares.
    """
    return [(keep, damage, _point(keep, size, damage)) for keep, damage, size in _points(curve) if keep <= 1]


def _point(keep: float, count: float, damage: float) -> str:
    return f"{keep:.1%} ({count:g}): {damage:.3g}"


def _chosen(row: Facts, curve: Facts) -> float | None:
    """The share of the MACs at which a layer's chosen rank stands on a curve; None on another curve."""
    setting = _setting(row)
    if setting is None or (setting.method, setting.form) != (curve["method"], curve["form"]):
        return None
    points = _points(curve)
    if not points:
        return None
    keep = min(points, key=lambda point: abs(point[2] - setting.rank))[0]
    return keep if keep <= 1 else None


def channel_groups(data: Facts) -> str:
    """Who makes and who reads the channels that can only go together, and what freezes them."""
    groups = rows_of(data["groups"])
    if not groups:
        return ""
    places = _places(data)
    spans = []
    for group in groups[:_MOST_SPANS]:
        makers, readers = texts_of(group["makers"]), texts_of(group["readers"])
        state = "stays whole: " + str(group["reason"]) if group["reason"] is not None else _kept_text(group)
        spans.append(
            Span(
                name=str(group["name"]),
                makers=[places[name] for name in makers if name in places],
                readers=[places[name] for name in readers if name in places],
                is_frozen=group["reason"] is not None,
                hint=f"made by {', '.join(makers) or '-'}; read by {', '.join(readers) or '-'}; {state}",
            )
        )
    able = [group for group in groups if group["reason"] is None]
    has_unrounded = _has_unrounded(data) and any(g["kept"] or g["unrounded"] for g in able)
    rows = [
        (
            str(group["name"]),
            _kept_text(group),
            *((_free_units(group),) if has_unrounded else ()),
            f"{number_of(group['unit_width']):g}",
            _makers_text(group),
            first_of(tuple(texts_of(group["readers"]))),
            first_of(tuple(texts_of(group["sizes"]))),
            format_damage(number_or_none(group["damage"]) if data["kind"] == "result" else _at_half(group)),
        )
        for group in able
    ]
    damage = ">damage" if data["kind"] == "result" else ">damage at half"
    free = (">unrounded",) * has_unrounded
    columns = ("group", ">units", *free, ">unit width", "made by", "read by", "sizes changed", damage)
    frozen = {str(group["name"]): str(group["reason"]) for group in groups if group["reason"] is not None}
    picture = span_chart(spans, len(places), "Channel groups over the layers in execution order")
    lead = paragraph(
        "Channels that can only go together, over the layers from first to last: squares make them, rings "
        "read "
        "them, grey ones stay whole."
    )
    whole = f"<h3>Stay whole</h3>{definitions(layers_by_reason(frozen))}" if frozen else ""
    return part(
        "Channel groups",
        f'{lead}{picture}<div class="under">{table(columns, rows)}</div>{whole}',
        count=f"{len(groups)}, {len(able)} can be slimmed",
        is_open=len(groups) <= _LONG,
    )


def _kept_text(group: Facts) -> str:
    units, kept = number_of(group["units"]), number_or_none(group["kept"])
    return f"{units:g}" if kept is None else f"{kept:g} of {units:g}"


def _makers_text(group: Facts) -> str:
    """Who makes the channels of a group, whose name is mostly that of its first maker."""
    makers = tuple(texts_of(group["makers"]))
    text = first_of(makers)
    return text.replace(makers[0], "itself", 1) if makers[:1] == (group["name"],) else text


def _free_units(group: Facts) -> str:
    """Units that would stay if nothing were rounded."""
    units = number_or_none(group["unrounded"])
    if units is None:
        return "-" if group["kept"] is None else "whole"
    return f"{units:g}"


def _at_half(group: Facts) -> float | None:
    points = _points(group)
    return min(points, key=lambda point: abs(point[0] - 0.5))[1] if points else None


def blocks(data: Facts) -> str:
    """Blocks that can be dropped whole."""
    rows = rows_of(data["blocks"])
    whole = number_of(facts_of(data["start"])["macs"])
    cells = [
        (
            str(row["name"]),
            *(("dropped" if row["dropped"] else "stays",) if data["kind"] == "result" else ()),
            format_count(int(number_of(row["macs"]))),
            format_percent(number_of(row["macs"]), whole),
            format_count(int(number_of(row["params"]))),
            format_damage(number_or_none(row["damage"])),
        )
        for row in rows
    ]
    values = [
        (
            None,
            *((None,) if data["kind"] == "result" else ()),
            number_of(row["macs"]),
            number_of(row["macs"]),
            number_of(row["params"]),
            number_or_none(row["damage"]),
        )
        for row in rows
    ]
    state = ("in this model",) if data["kind"] == "result" else ()
    columns = ("block", *state, ">MACs", ">share", ">params", ">damage")
    gone = sum(1 for row in rows if row["dropped"])
    count = f"{gone} of {len(rows)} dropped" if gone else str(len(rows))
    return part(
        "Blocks that can be dropped whole",
        table(columns, cells, values=values),
        count=count,
        is_open=bool(gone),
    )


def left_alone(data: Facts) -> str:
    """Layers of which nothing can go, or went, by their reason."""
    if data["kind"] == "study":
        heading = "Cannot be compressed"
        rows = [row for row in rows_of(data["layers"]) if not row["methods"]]
        other = "no method applies"
    else:
        heading, other = "Left alone", "not in the plan"
        rows = [row for row in rows_of(data["layers"]) if _is_alone(row)]
    reasons = {str(row["name"]): str(row["reason"] or other) for row in rows}
    return part(
        heading, definitions(layers_by_reason(reasons)), count=str(len(rows)), is_open=len(rows) <= _LONG
    )


def totals(data: Facts) -> str:
    """Every number of the whole model."""
    after = data["after"]
    if after is None:
        return ""
    before = facts_of(data["before"])
    rows = []
    for metric in METRICS:
        old, new = int(number_of(before[metric])), int(number_of(facts_of(after)[metric]))
        rows.append(
            (METRIC_LABELS[metric], format_exact(old), format_exact(new), format_percent(new - old, old))
        )
    rows += [
        (
            measured.name,
            format_measured(measured.before, measured.unit),
            format_measured(measured.after, measured.unit),
            format_change(measured),
        )
        for measured in _measurements(data)
    ]
    told = facts_of(data["told"])
    pairs = [(DIVERGENCE_LABEL, str(told["divergence"]))]
    pairs += [(str(label), str(text)) for label, text in cast("Sequence[Sequence[str]]", told["agreement"])]
    if data["damage"] is not None:
        pairs.append((DAMAGE_LABEL, f"{format_damage(number_of(data['damage']))} {data['damage_unit']}"))
    plan = data["plan"]
    if plan is not None and facts_of(plan)["rounding"]:
        pairs.append((MULTIPLES_LABEL, f"{facts_of(plan)['rounding']}{_rounding_cost(data)}"))
    body = (
        table(("", ">before", ">after", ">change"), rows) + f'<div class="under">{definitions(pairs)}</div>'
    )
    return part("Totals", body)


def _rounding_cost(data: Facts) -> str:
    """What rounding to multiples changed over all; "" where that is not known."""
    if not _has_unrounded(data):
        return ""
    found = facts_of(facts_of(data["plan"])["unrounded"])
    if not found["changed"]:
        return "; any rank and width would give the same"
    text = f"; with any rank and width, {found['changed']:g} of {found['of']:g} would differ"
    if data["damage"] is None or found["damage"] is None:
        return text
    old, new = (format_damage(number_of(damage)) for damage in (data["damage"], found["damage"]))
    return f"{text}, and the predicted damage would be {new} in place of {old}"


def outputs(data: Facts) -> str:
    """How each of several outputs, or elements, agrees."""
    told = facts_of(data["told"])
    if told["outputs"] is None:
        return ""
    found = facts_of(told["outputs"])
    body = table(
        texts_of(found["columns"]), [tuple(texts_of(row)) for row in cast("Sequence[Json]", found["rows"])]
    )
    for heading, pairs in cast("Sequence[tuple[str, Sequence[Sequence[str]]]]", told["elements"]):
        items = "".join(f"<li><span>{escape(a)}</span>{escape(b)}</li>" for a, b in pairs)
        body += f'<div class="under">{escape(heading)}<ul class="elements">{items}</ul></div>'
    return part("Outputs", body)


def exported(data: Facts) -> str:
    """Files that the model was exported to."""
    files = exports_from_facts(data["exports"], "data of the page: exports")
    if not files:
        return ""
    columns, rows = export_rows(files)
    notes = [(file.path.as_posix(), str(note)) for file in files for note in file.notes]
    under = f'<div class="under">{definitions(notes)}</div>' if notes else ""
    return part("Exported files", table(columns, rows) + under, count=str(len(files)))


def pareto(data: Facts) -> str:
    """Damage over cost, with what was chosen and where damage begins to rise fast."""
    if data["pareto"] is None:
        return ""
    found = facts_of(data["pareto"])
    metric, points = str(found["metric"]), rows_of(found["points"])
    chosen = None
    if data["keep_ratio"] is not None and metric in METRICS:
        # Of the model that the plans start from, as their costs are.
        start = number_of(facts_of(data["start"])[metric])
        chosen = number_of(facts_of(data["after"])[metric]) / start if start else None
    lines = [
        _pareto_line(points, metric, key, colour) for colour, key in enumerate(("predicted", "measured"))
    ]
    unit = str(found["unit"])
    label = f"share of the {metric} that stays" + ("; the dashed line is this model" if chosen else "")
    plot = ""
    if found["measured_unit"] not in (None, found["unit"]):
        # A score is no damage: it has a scale of its own.
        measured_line, level = [replace(lines[1], name="measured")], number_or_none(found["baseline"])
        heading = str(found["measured_unit"])
        if level is not None:
            heading += f" (the original: {level:.4g})"
        plot = wide_plot(
            measured_line, across_label=label, up_label=heading, chosen=chosen, is_log=False, level=level
        )
        lines = lines[:1]
    plot += wide_plot(lines, across_label=label, up_label=f"damage, {unit}", chosen=chosen)
    rows = [
        (
            f"{number_of(point['cost']):.4f}",
            format_damage(number_or_none(point["predicted"])),
            format_damage(number_or_none(point["measured"])),
            *(f"{number_of(point[key]):g}" for key in ("layers", "groups", "blocks")),
            "knee" if index == found["knee"] else "",
        )
        for index, point in enumerate(points)
    ]
    measured = ">measured" if found["measured_unit"] in (None, unit) else f">{found['measured_unit']}"
    columns = (f"share of {metric}", ">predicted", measured, ">layers", ">groups", ">blocks", "")
    under = f'<div class="under">{table(columns, rows)}</div>'
    return part("Cost against damage", plot + under, count=f"{len(points)} plans")


def predicted_and_measured(data: Facts) -> str:
    """How far measured divergences are from predicted damages, of this model and of the plans of a curve."""
    found: list[tuple[str, float | None, float | None]] = []
    curve = None if data["pareto"] is None else facts_of(data["pareto"])
    if curve is not None and curve["measured_unit"] == curve["unit"]:
        found = [
            (
                f"{number_of(point['cost']):.1%} of the {curve['metric']}",
                number_or_none(point["predicted"]),
                number_or_none(point["measured"]),
            )
            for point in rows_of(curve["points"])
        ]
    if data["damage_unit"] == data["unit"]:
        found.append(("this model", number_or_none(data["damage"]), number_or_none(data["divergence"])))
    known = [(name, x, y) for name, x, y in found if x is not None and y is not None]
    unit = str(data["unit"])
    plot = equal_plot(
        [(x, y, f"{name}: predicted {x:.3g}, measured {y:.3g}") for name, x, y in known],
        across_label=f"predicted damage, {unit}",
        up_label="measured divergence",
    )
    if not plot:
        return ""
    rows = [(name, format_damage(x), format_damage(y), format_ratio(y, x)) for name, x, y in known]
    values = [(None, x, y, y / x if x else None) for _, x, y in known]
    columns = ("plan", ">predicted", ">measured", ">measured / predicted")
    lead = paragraph(
        "On the dashed line they are equal; above it the parts of a plan disturb each other, below it they "
        "make up for each other."
    )
    body = f'{lead}{plot}<div class="under">{table(columns, rows, values=values)}</div>'
    return part("Predicted against measured damage", body, count=f"{len(known)} plans")


def _pareto_line(points: Sequence[Facts], metric: str, key: str, colour: int) -> Line:
    known = [(number_of(point["cost"]), number_or_none(point[key])) for point in points]
    return Line(
        name=key,
        colour=colour,
        points=[(x, y, f"{x:.1%} of the {metric}: {y:.3g}") for x, y in known if y is not None],
    )


def scores(data: Facts) -> str:
    """Scores of layers by what stays of them, as a map of colours."""
    if data["scores"] is None:
        return ""
    found = facts_of(data["scores"])
    rows, baseline = rows_of(found["rows"]), number_of(found["baseline"])
    # A score may be missing that was not finite.
    tried = [_score_points(row) for row in rows]
    columns = max((len(points) for points in tried), default=0)
    farthest = max((abs(score - baseline) for points in tried for _, score, _ in points), default=0.0) or 1.0
    lines = []
    for row, points in zip(rows, tried, strict=True):
        cells = "".join(_score_cell(point, abs(point[1] - baseline) / farthest) for point in points)
        cells += "<td></td>" * (columns - len(points))
        name = f"{name_text(str(row['name']))}, {row['method']}"
        lines.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    heading = "".join(f"<th>try {number}</th>" for number in range(1, columns + 1))
    body = (
        '<div class="scroll"><table class="heat" data-tools><thead><tr><th>layer or group, method</th>'
        f"{heading}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )
    better = "lower is better" if found["lower_is_better"] else "higher is better"
    lead = (
        "Score of the whole model with only this layer compressed, or group slimmed, and the share of it "
        f"that stays, from the smallest on; untouched {baseline:.4g}, {better}. The redder, the farther from "
        "it."
    )
    return part("Eval scores", paragraph(lead) + body, count=str(len(rows)))


def _score_points(row: Facts) -> list[tuple[float, float, float]]:
    points = cast("Sequence[tuple[float, float | None, float]]", row["points"])
    return [(keep, score, rank) for keep, score, rank in points if score is not None]


def _score_cell(point: tuple[float, float, float], redness: float) -> str:
    keep, score, rank = point
    colour = f"background:color-mix(in srgb, var(--hot) {70 * redness:.0f}%, transparent)"
    return (
        f'<td style="{colour}" data-v="{score:.6g}" title="{keep:.1%}, {rank:g}">{score:.4g}<br>'
        f"<small>{keep:.0%}</small></td>"
    )


def notes(data: Facts) -> str:
    """What else the user should know."""
    pairs = [(str(note["where"]), str(note["text"])) for note in rows_of(data["notes"])]
    return part("Notes", definitions(pairs), count=str(len(pairs)))


def reproduce(data: Facts) -> str:
    """By what it can be made again."""
    seconds = {name: number_of(value) for name, value in facts_of(data["seconds"]).items()}
    versions = [f"slimrank {data['slimrank']}"]
    # Pages of older versions do not tell the others, nor what was called.
    versions += [f"{name} {number}" for name, number in facts_of(data.get("versions") or {}).items()]
    pairs = [("versions", ", ".join(versions))]
    if data.get("call") is not None:
        pairs.append(("study", str(data["call"])))
    plan = data["plan"]
    if plan is not None:
        found = facts_of(plan)
        gap = number_or_none(found["gap"])
        chosen = str(found["select"])
        if gap is not None and gap < 1:
            chosen += f"; another choice could save at most {format_percent(gap, 1)} of its damage"
        pairs.append(("chosen by", chosen))
    if seconds:
        pairs.append(("time", format_phases(seconds)))
    pairs += [(f"fingerprint: {name}", str(value)) for name, value in facts_of(data["fingerprint"]).items()]
    if data["kind"] == "study":
        again = "study.save(dir) and slimrank.Study.load(dir, model=...), as often as there are budgets"
    else:
        again = (
            "study.apply(slimrank.Plan.load('plan.json')), or slimrank.apply(model, plan, batches) on a "
            "fresh model of the same class and weights"
        )
    pairs.append(("again", again))
    return part("How to reproduce", definitions(pairs), is_open=False)


def _measurements(data: Facts) -> Iterator[Measurement]:
    for row in rows_of(data["measurements"]):
        values = [float("nan") if row[key] is None else number_of(row[key]) for key in ("before", "after")]
        yield Measurement(name=str(row["name"]), before=values[0], after=values[1], unit=str(row["unit"]))


def _setting(row: Facts, key: str = "setting") -> Setting | None:
    if row.get(key) is None:
        return None
    return Setting(**cast("Mapping[str, object]", row[key]))  # type: ignore[arg-type]


def _done(row: Facts) -> str:
    """What was done to a layer: its setting, what became of its channels, or both."""
    slimmed = row["slimmed"]
    return done_of(_setting(row), None if slimmed is None else str(slimmed))


def _is_alone(row: Facts) -> bool:
    return row["setting"] is None and row["slimmed"] is None


def _places(data: Facts) -> dict[str, int]:
    """The index of each layer, by its name."""
    return {str(row["name"]): index for index, row in enumerate(rows_of(data["layers"]))}


def _cost(row: Facts, metric: str) -> float:
    return number_of(facts_of(row["before"])[metric])


def _points(curve: Facts) -> list[tuple[float, float, float]]:
    return _triples(curve["points"])


def _anchors(curve: Facts) -> list[tuple[float, float, float]]:
    """Share that stays, measured divergence and rank or units; pages of older versions have none."""
    return _triples(curve.get("anchors", []))


def _triples(points: Json) -> list[tuple[float, float, float]]:
    return [(float(x), float(y), float(size)) for x, y, size in cast("Sequence[Sequence[float]]", points)]
