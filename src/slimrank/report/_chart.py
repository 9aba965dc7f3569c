# SPDX-License-Identifier: Apache-2.0
"""One bar chart as inline SVG."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

# Pixels: height of a row and of a bar, and how far below the top of its row text and bar stand.
_ROW_HEIGHT, _BAR_HEIGHT, _TEXT_Y, _BAR_Y = 36, 11, 12, 18
# More letters do not fit on a phone. Names are cut in the middle: both the block and the layer stay readable.
_NAME_CHARS = 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """One row of the chart.

    Attributes:
        name: of the layer.
        before, after: lengths, any common unit; after is None where nothing was done.
        value: short text at the right end.
        hint: long text, shown under the pointer.
    """

    name: str
    before: int
    after: int | None
    value: str
    hint: str


def bar_chart(bars: Sequence[Bar], label: str) -> str:
    """Bars under each other, the longest as wide as the page.

    Args:
        bars: from top to bottom.
        label: what the chart shows, for those who cannot see it.

    Returns:
        An ``svg`` element of full width; lengths are percentages, so that text keeps its size on a phone.
    """
    # Never 0: a chart without MACs would divide by it.
    longest = max((max(bar.before, bar.after or 0) for bar in bars), default=0) or 1
    rows = "\n".join(_bar_row(bar, index * _ROW_HEIGHT, longest) for index, bar in enumerate(bars))
    height = _ROW_HEIGHT * len(bars)
    return f'<svg role="img" aria-label="{escape(label)}" height="{height}">\n{rows}\n</svg>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """The colours: CSS class and plain text of each."""
    return (
        '<div class="legend">'
        + "".join(f'<span><i class="{kind}"></i>{escape(text)}</span>' for kind, text in entries)
        + "</div>"
    )


def _bar_row(bar: Bar, top: int, longest: int) -> str:
    rects = _rect(top, 100 * bar.before / longest, "b" if bar.after is not None else "k")
    if bar.after is not None:
        rects += _rect(top, 100 * bar.after / longest, "a")
    return (
        f"<g><title>{escape(bar.hint)}</title>"
        f'<text y="{top + _TEXT_Y}">{escape(_shortened(bar.name))}</text>'
        f'<text class="v" x="100%" y="{top + _TEXT_Y}" text-anchor="end">{escape(bar.value)}</text>'
        f"{rects}</g>"
    )


def _rect(top: int, percent: float, kind: str) -> str:
    width = f"{percent:.2f}".rstrip("0").rstrip(".")
    return f'<rect class="{kind}" y="{top + _BAR_Y}" width="{width}%" height="{_BAR_HEIGHT}" rx="3"/>'


def _shortened(name: str) -> str:
    if len(name) <= _NAME_CHARS:
        return name
    half = (_NAME_CHARS - 1) // 2
    return f"{name[:half]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"
