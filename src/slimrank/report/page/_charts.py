# SPDX-License-Identifier: Apache-2.0
"""Pictures: bars in HTML, so that names wrap and nothing is cut on a phone, and all else as inline SVG."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import isfinite, log10

from slimrank.report._words import short_name

# Units of a small picture of a curve; the edge keeps dots at its border whole.
_WIDTH, _HEIGHT, _EDGE = 240, 110, 8
# Of a wide picture, with room for the numbers at its sides.
_WIDE, _TALL, _LEFT, _BOTTOM = 640, 240, 56, 26
# Sides of a picture of pairs.
_SQUARE = 300
# Of one row in the picture of spans, and the room for names at the left.
_ROW, _NAMES = 24, 250
_NAME_LETTERS = 40
# Powers of ten that a small picture shows: what is lower lies on its floor, and does not flatten the rest.
_DECADES = 6
_Scale = Callable[[float], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of bars.

    Attributes:
        layer: index of the layer whose details a click opens; None for no layer.
        name: plain text.
        before, after: lengths, any common unit; after is None where nothing was done.
        value: short text at the right end.
        hint: long text, shown under the pointer.
    """

    layer: int | None
    name: str
    before: float
    after: float | None
    value: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of a picture.

    Attributes:
        name: plain text.
        points: x, y and what the pointer shows, by rising x.
        has_dots: each of the points is drawn; else the script shows their numbers under the pointer.
        measured: more points, drawn as larger dots.
        colour: index of its colour.
        is_dashed: beside another line of the same colour.
        chosen: x of the point that was chosen; None for none.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    colour: int = 0
    is_dashed: bool = False
    chosen: float | None = None
    has_dots: bool = True
    measured: Sequence[tuple[float, float, str]] = ()


def bar_list(bars: Sequence[Bar], label: str, *, is_switched: bool = False) -> str:
    """Bars under each other, the longest as wide as the page.

    Args:
        bars: from top to bottom.
        label: what they show, for those who cannot see them.
        is_switched: the script offers other metrics; once on a page.

    Returns:
        HTML; "" for none.
    """
    if not bars:
        return ""
    # Never 0: a chart without costs would divide by it.
    longest = max(max(bar.before, bar.after or 0) for bar in bars) or 1
    name = ' id="bars"' if is_switched else ""
    rows = "\n".join(_bar(bar, longest) for bar in bars)
    return f'<ul class="bars"{name} aria-label="{escape(label)}">\n{rows}\n</ul>'


def _bar(bar: Bar, longest: float) -> str:
    opens = "" if bar.layer is None else f' data-layer="{bar.layer}"'
    strokes = _stroke("k" if bar.after is None else "b", bar.before / longest)
    if bar.after is not None:
        strokes += _stroke("a", bar.after / longest)
    return (
        f'<li{opens} title="{escape(bar.hint)}"><span>{escape(bar.name)}</span>'
        f"<span>{escape(bar.value)}</span><div>{strokes}</div></li>"
    )


def _stroke(kind: str, share: float) -> str:
    return f'<i class="{kind}" style="width:{100 * share:.4g}%"></i>'


def small_curves(title: str, lines: Sequence[Line], curves: str, layer: int | None = None) -> str:
    """A small picture of damages over the share that stays, on a log scale of its own.

    Args:
        title: plain text.
        lines: x from 0 to 1.
        curves: what the script finds the data of the lines by: "layers" or "groups", and an index.
        layer: index of the layer whose details a click opens; None for no layer.

    Returns:
        A ``figure``; "" where no line has two damages above 0.
    """
    shown = _drawable(lines)
    heights = [log10(y) for line in shown for _, y, _ in (*line.points, *line.measured)]
    if len(heights) < 2:
        return ""
    high = max(heights)
    low = max(min(heights), high - _DECADES)

    def across(x: float) -> float:
        return _EDGE + min(x, 1.0) * (_WIDTH - 2 * _EDGE)

    def up(y: float) -> float:
        share = (max(log10(y), low) - low) / (high - low) if high > low else 0.5
        return _HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE)

    label = f"damage by the share that stays, from {10**low:.2g} to {10**high:.2g}"
    drawn = "".join(_polyline(line, across, up) for line in shown)
    ends = (
        f'<text x="{_WIDTH - 3}" y="10" text-anchor="end">{10**high:.2g}</text>'
        f'<text x="3" y="{_HEIGHT - 4}">{10**low:.2g}</text>'
    )
    opens = f' data-curves="{escape(curves)}"'
    if layer is not None:
        opens = f' data-layer="{layer}"{opens}'
    return (
        f"<figure{opens}><figcaption>{escape(title)}<br>{_names(shown)}</figcaption>"
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">{ends}{drawn}</svg>'
        "</figure>"
    )


def wide_plot(
    lines: Sequence[Line],
    *,
    across_label: str,
    up_label: str,
    chosen: float | None = None,
    is_log: bool = True,
    level: float | None = None,
) -> str:
    """A wide picture with axes.

    Args:
        lines: x from 0 to 1; y above 0 where heights are on a log scale.
        across_label: of the x axis, plain text.
        up_label: of the y axis, plain text.
        chosen: x of a line from top to bottom; None for none.
        is_log: heights are on a log scale.
        level: y of a line from side to side; None for none.

    Returns:
        A ``div``; "" where there are no two points.
    """
    shown = _drawable(lines) if is_log else [line for line in lines if line.points]
    points = [point for line in shown for point in line.points]
    if len(points) < 2:
        return ""
    height: _Scale = log10 if is_log else float
    heights = [height(y) for _, y, _ in points] + ([] if level is None else [height(level)])
    low, high = min(heights), max(heights)
    first = min(x for x, _, _ in points)
    # Room for half of a number at the right end of the axis.
    right = _WIDE - 3 * _EDGE

    def across(x: float) -> float:
        share = (x - first) / (1 - first) if first < 1 else 0.5
        return _LEFT + min(max(share, 0.0), 1.0) * (right - _LEFT)

    def up(y: float) -> float:
        share = (height(y) - low) / (high - low) if high > low else 0.5
        return _TALL - _BOTTOM - share * (_TALL - _BOTTOM - _EDGE)

    marks = []
    for tenth in range(11):
        x = tenth / 10
        if x >= first:
            marks.append(
                f'<line class="grid" x1="{across(x):.1f}" x2="{across(x):.1f}" y1="{_EDGE}" '
                f'y2="{_TALL - _BOTTOM}"/>'
                f'<text x="{across(x):.1f}" y="{_TALL - 10}" text-anchor="middle">{100 * x:.0f} %</text>'
            )
    for share in (0.0, 0.5, 1.0):
        y = low + share * (high - low)
        y = 10**y if is_log else y
        marks.append(f'<text x="4" y="{up(y) + 4:.1f}">{y:.3g}</text>')
    if chosen is not None:
        marks.append(
            f'<line class="guide" x1="{across(chosen):.1f}" x2="{across(chosen):.1f}" y1="{_EDGE}" '
            f'y2="{_TALL - _BOTTOM}"><title>chosen: {chosen:.4f}</title></line>'
        )
    if level is not None:
        marks.append(
            f'<line class="guide" x1="{_LEFT}" x2="{right}" y1="{up(level):.1f}" y2="{up(level):.1f}">'
            f"<title>{level:.4g}</title></line>"
        )
    drawn = "".join(_polyline(line, across, up) for line in shown)
    return (
        f'<div class="plot"><p>{escape(up_label)}: {_names(shown)}</p><div class="scroll"><svg role="img" '
        f'aria-label="{escape(up_label)} by {escape(across_label)}" style="min-width:30rem" '
        f'viewBox="0 0 {_WIDE} {_TALL}">{"".join(marks)}{drawn}</svg></div>'
        f'<p class="soft">{escape(across_label)}</p></div>'
    )


def equal_plot(points: Sequence[tuple[float, float, str]], *, across_label: str, up_label: str) -> str:
    """A picture of pairs of numbers that should be equal, on log scales, with the line where they are.

    Args:
        points: x, y and what the pointer shows, above 0.
        across_label: of the x axis, plain text.
        up_label: of the y axis, plain text.

    Returns:
        A ``div``; "" where there are no two points.
    """
    shown = [point for point in points if min(point[:2]) > 0 and isfinite(point[0]) and isfinite(point[1])]
    if len(shown) < 2:
        return ""
    logs = [log10(value) for x, y, _ in shown for value in (x, y)]
    low, high = min(logs), max(logs)

    def share(value: float) -> float:
        return (log10(value) - low) / (high - low) if high > low else 0.5

    def across(x: float) -> float:
        return _LEFT + share(x) * (_SQUARE - _LEFT - _EDGE)

    def up(y: float) -> float:
        return _SQUARE - _BOTTOM - share(y) * (_SQUARE - _BOTTOM - _EDGE)

    ends = (10**low, 10**high)
    marks = "".join(
        f'<text x="{across(end):.0f}" y="{_SQUARE - 10}" text-anchor="{anchor}">{end:.2g}</text>'
        f'<text x="4" y="{up(end) + 4:.0f}">{end:.2g}</text>'
        for end, anchor in zip(ends, ("start", "end"), strict=True)
    )
    diagonal = (
        f'<line class="guide" x1="{across(ends[0]):.0f}" y1="{up(ends[0]):.0f}" x2="{across(ends[1]):.0f}" '
        f'y2="{up(ends[1]):.0f}"/>'
    )
    line = Line(name="", points=())
    dots = _polyline(replace(line, measured=shown), across, up)
    return (
        f'<div class="plot square"><p>{escape(up_label)}, by {escape(across_label)}</p><svg role="img" '
        f'aria-label="{escape(up_label)} by {escape(across_label)}" viewBox="0 0 {_SQUARE} {_SQUARE}">'
        f"{marks}{diagonal}{dots}</svg></div>"
    )


def _drawable(lines: Sequence[Line]) -> list[Line]:
    """Lines without what has no place on a log scale, and without those of which nothing is left."""

    def drawable(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
        return [point for point in points if point[1] > 0 and isfinite(point[1])]

    kept = [replace(line, points=drawable(line.points), measured=drawable(line.measured)) for line in lines]
    return [line for line in kept if line.points]


def _names(lines: Sequence[Line]) -> str:
    return " ".join(f'<span class="c{line.colour}text">{escape(line.name)}</span>' for line in lines)


def _polyline(line: Line, across: _Scale, up: _Scale) -> str:
    """A line with its points and what was measured, and a ring around what was chosen."""
    path = " ".join(f"{across(x):.0f},{up(y):.1f}" for x, y, _ in line.points)

    def circles(points: Sequence[tuple[float, float, str]], kind: str) -> str:
        return "".join(
            f'<circle{kind} cx="{across(x):.0f}" cy="{up(y):.1f}"><title>{escape(hint)}</title></circle>'
            for x, y, hint in points
        )

    dots = (circles(line.points, "") if line.has_dots else "") + circles(line.measured, ' class="m"')
    ring = ""
    if line.chosen is not None:
        chosen = line.chosen
        x, y, _ = min(line.points, key=lambda point: abs(point[0] - chosen))
        ring = f'<circle class="chosen" cx="{across(x):.0f}" cy="{up(y):.1f}"/>'
    dashed = " dashed" if line.is_dashed else ""
    return f'<g class="c{line.colour}{dashed}"><polyline points="{path}"/>{dots}{ring}</g>'


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One row in the picture of who makes and who reads channels.

    Attributes:
        name: plain text.
        makers, readers: places in execution order.
        is_frozen: nothing of it can go.
        hint: long text, shown under the pointer.
    """

    name: str
    makers: Sequence[int]
    readers: Sequence[int]
    is_frozen: bool
    hint: str


def span_chart(spans: Sequence[Span], count: int, label: str) -> str:
    """Groups of channels as lines over the layers in execution order: squares make, rings read.

    Args:
        spans: from top to bottom.
        count: layers.
        label: what the picture shows, for those who cannot see it.

    Returns:
        An ``svg``; "" for none.
    """
    if not spans or not count:
        return ""
    width = 900

    def across(place: int) -> float:
        return _NAMES + (place + 0.5) / count * (width - _NAMES - _EDGE)

    rows = []
    for index, span in enumerate(spans):
        middle = index * _ROW + _ROW // 2
        places = [*span.makers, *span.readers]
        if not places:
            continue
        squares = "".join(f'<rect x="{across(place) - 4:.0f}" y="{middle - 4}"/>' for place in span.makers)
        rings = "".join(f'<circle cx="{across(place):.0f}" cy="{middle}"/>' for place in span.readers)
        frozen = ' class="frozen"' if span.is_frozen else ""
        rows.append(
            f'<g{frozen}><title>{escape(span.hint)}</title><text x="0" y="{middle + 4}">'
            f"{escape(short_name(span.name, _NAME_LETTERS))}</text>"
            f'<line x1="{across(min(places)):.0f}" x2="{across(max(places)):.0f}" y1="{middle}" '
            f'y2="{middle}"/>'
            f"{squares}{rings}</g>"
        )
    return (
        f'<div class="scroll"><svg class="spans" role="img" aria-label="{escape(label)}" '
        f'style="min-width:34rem" '
        f'viewBox="0 0 {width} {_ROW * len(spans)}">{"".join(rows)}</svg></div>'
    )
