# SPDX-License-Identifier: Apache-2.0
"""An eval-score table as one self-contained page: a small chart for every layer and group."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from slimrank.report.page._frame import document, part

# Pixels of one small chart; the edge keeps dots at its border whole.
_WIDTH, _HEIGHT, _EDGE = 240, 90, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreLine:
    """Scores of one layer by one method, or of one channel group.

    Attributes:
        layer: dotted name.
        method: that was tried.
        points: share of the layer's MACs or group's units, score, and what was tried, by rising keep ratio.
    """

    layer: str
    method: str
    points: Sequence[tuple[float, float, str]]


def render_scores_html(
    lines: Sequence[ScoreLine], *, baseline: float, lower_is_better: bool, table: str
) -> str:
    """A score table as one HTML page.

    Args:
        lines: in execution order.
        baseline: score of the untouched model.
        lower_is_better: the score is a loss or an error rate.
        table: the same as plain text.

    Returns:
        A document that loads nothing. All charts share one scale, so that layers can be compared.
    """
    scores = [score for line in lines for _, score, _ in line.points]
    low, high = min((*scores, baseline)), max((*scores, baseline))
    charts = "\n".join(_figure(line, baseline, low, high) for line in lines)
    better = "lower is better" if lower_is_better else "higher is better"
    explanation = (
        f'<p class="soft">Score of the whole model ({escape(better)}) with only this layer compressed, by '
        "the share of its MACs that is kept, or this channel group slimmed, by the share of its units: "
        f"0 at the left, 1 at the right, {low:.4g} at the bottom, "
        f"{high:.4g} at the top. The dashed line is the untouched model, {baseline:.4g}. Point at a dot to "
        "see what was tried.</p>"
    )
    parts = [
        "<h1>Eval scores</h1>",
        f'<p class="verdict">{len(scores)} scores, each with one layer or group compressed.</p>',
        part("Layers", f'{explanation}\n<div class="charts">\n{charts}\n</div>'),
        part("Table", f"<pre>{escape(table)}</pre>"),
    ]
    return document("Eval scores", "\n".join(parts))


def _figure(line: ScoreLine, baseline: float, low: float, high: float) -> str:
    def across(ratio: float) -> str:
        return f"{_EDGE + ratio * (_WIDTH - 2 * _EDGE):.1f}"

    def up(score: float) -> str:
        share = (score - low) / (high - low) if high > low else 1.0
        return f"{_HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE):.1f}"

    # The line ends at the untouched model, which keeps everything.
    path = " ".join(f"{across(ratio)},{up(score)}" for ratio, score, _ in (*line.points, (1.0, baseline, "")))
    dots = "".join(
        f'<circle class="c0" cx="{across(ratio)}" cy="{up(score)}" r="3"><title>{escape(hint)}</title>'
        f"</circle>"
        for ratio, score, hint in line.points
    )
    label = f"{line.layer}, {line.method}"
    return (
        f"<figure><figcaption>{escape(line.layer)}<span>{escape(line.method)}</span></figcaption>"
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f'<line class="guide" x1="0" x2="{_WIDTH}" y1="{up(baseline)}" y2="{up(baseline)}"/>'
        f'<polyline class="c0" points="{path}"/>{dots}</svg></figure>'
    )
