# SPDX-License-Identifier: Apache-2.0
"""A curve drawn with plain characters, for terminals and logs."""

from collections.abc import Mapping, Sequence
from math import isfinite, isnan, log10

from slimrank.report._numbers import format_damage

_HEIGHT = 12
# Columns below which a curve shows nothing.
_MIN_COLUMNS = 10
# Powers of ten that the axis of a curve spans at most: what is lower stands on the lowest line.
_MAX_DECADES = 6.0


def render_curve(
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    mark: float | None = None,
    is_log: bool = False,
    width: int = 80,
) -> str:
    """Points over an axis.

    Args:
        series: character -> points (x, y); where several fall into one place, the last series is seen.
        title: above the curve.
        mark: x of a line from top to bottom; None for none.
        is_log: the height of a point is the logarithm of its y; what is 0 or less stands at the bottom.
        width: columns in all.

    Returns:
        Lines of ASCII, none wider than ``width`` (but at least some 20), the last one ended; "" without a
        finite point.
    """
    points = [(x, y) for found in series.values() for x, y in found if isfinite(x) and isfinite(y)]
    if not points:
        return ""
    xs = [x for x, _ in points]
    scale = _Scale([y for _, y in points], is_log=is_log)
    labels = {0: format_damage(scale.high), _HEIGHT - 1: format_damage(scale.low)}
    margin = max(map(len, labels.values()))
    n_columns = max(width - margin - 2, _MIN_COLUMNS)
    left, right = min(xs), max(xs)

    def column(x: float) -> int:
        return round((x - left) / (right - left) * (n_columns - 1)) if right > left else n_columns // 2

    canvas = [[" "] * n_columns for _ in range(_HEIGHT)]
    if mark is not None:
        for line in canvas:
            line[column(mark)] = "|"
    for character, found in series.items():
        for x, y in found:
            if isfinite(x) and not isnan(y):
                canvas[scale.line(y)][column(x)] = character
    lines = [
        f"{labels.get(number, ''):>{margin}} |{''.join(line)}".rstrip() for number, line in enumerate(canvas)
    ]
    ends = f"{left:.3f}", f"{right:.3f}"
    lines.append(f"{'':>{margin}} +{'-' * n_columns}")
    lines.append(f"{'':>{margin}}  {ends[0]}{ends[1]:>{n_columns - len(ends[0])}}")
    return "\n".join([title[:width], *lines]) + "\n"


class _Scale:
    """Heights of values.

    Attributes:
        low: value of the lowest line.
        high: value of the highest line.
    """

    def __init__(self, values: Sequence[float], *, is_log: bool) -> None:
        positive = [value for value in values if value > 0]
        self._is_log = is_log and bool(positive)
        self.high = max(values)
        self.low = max(min(positive), self.high * 10**-_MAX_DECADES) if self._is_log else min(values)

    def line(self, value: float) -> int:
        """Its line, 0 at the top."""
        low, high = self._height(self.low), self._height(self.high)
        if value >= self.high or high <= low:
            return 0
        if value <= self.low:
            return _HEIGHT - 1
        return round((high - self._height(value)) / (high - low) * (_HEIGHT - 1))

    def _height(self, value: float) -> float:
        return log10(value) if self._is_log else value
