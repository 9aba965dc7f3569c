# SPDX-License-Identifier: Apache-2.0
"""How numbers are written: the only place that decides digits, prefixes and units."""

from collections.abc import Iterable, Mapping
from math import isfinite

from slimrank.records import Cost, Measurement, Metric

# Decimal prefixes, each 1000 times the one before; beyond the last, every digit is written.
_PREFIXES = ("", "k", "M", "G", "T", "P")
# Stands where there is no number.
_NO_NUMBER = "-"


def format_count(value: int) -> str:
    """A count in three digits with its prefix.

    Args:
        value: MACs, params or any other count.

    Returns:
        "640", "12.3 k", "1.05 G"; below 1000 the count itself.
    """
    scaled = float(value)
    for prefix in _PREFIXES:
        text = f"{scaled:#.3g}"
        # Compared after rounding: 999_999 is "1.00 M", not "1000 k".
        if abs(float(text)) < 1000:
            return f"{text.rstrip('.')} {prefix}" if prefix else str(value)
        scaled /= 1000
    return format_exact(value)


def format_metric(name: Metric, value: int) -> str:
    """A count in the unit of its metric.

    Args:
        name: "macs", "params" or "bytes".
        value: the count.

    Returns:
        As ``format_count``; bytes end in "B" ("1.20 MB", decimal prefixes).
    """
    text = format_count(value)
    if name != "bytes":
        return text
    return f"{text}B" if " " in text else f"{text} B"


def format_exact(value: int) -> str:
    """Every digit, with thousands separators."""
    return f"{value:,}"


def format_ratio(after: float, before: float) -> str:
    """Three decimals of after / before; "-" where before is 0."""
    return f"{after / before:.3f}" if before else _NO_NUMBER


def format_percent(part: float, whole: float) -> str:
    """One decimal of 100 * part / whole; "-" where the whole is 0."""
    return f"{100 * part / whole:.1f} %" if whole else _NO_NUMBER


def format_share(value: float, *, digits: int) -> str:
    """A share as percent; "100 %" in as many digits only for all of it.

    Args:
        value: 0 to 1.
        digits: decimals.

    Returns:
        "98.91 %"; "99.99 %" for 0.99999.
    """
    text = f"{100 * value:.{digits}f}"
    if value < 1 and float(text) >= 100:
        text = f"{100 - 10**-digits:.{digits}f}"
    return f"{text} %"


def format_cosine(value: float, *, digits: int) -> str:
    """A cosine with so many decimals: "0.9981"."""
    return f"{value:.{digits}f}"


def format_short(value: float) -> str:
    """Two significant digits: "0.064", "12", "3.1e+03"."""
    return f"{value:#.2g}".rstrip(".")


def format_damage(value: float | None) -> str:
    """Three significant digits ("0.0120"); "-" for None."""
    return _NO_NUMBER if value is None else f"{value:#.3g}"


def format_seconds(value: float) -> str:
    """Wall time for people: "0.04 s", "8.1 s", "2 min 05 s"."""
    if value < 60:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes} min {seconds:02d} s"


def format_phases(seconds: Mapping[str, float]) -> str:
    """Every phase with its wall time, and their sum; "" where there are none."""
    if not seconds:
        return ""
    phases = ", ".join(f"{phase} {format_seconds(value)}" for phase, value in seconds.items())
    return f"{phases}; {format_seconds(sum(seconds.values()))} in all"


def format_measured(value: float, unit: str) -> str:
    """A measured value with its unit: two decimals of a percentage, else four significant digits.

    Args:
        value: as measured.
        unit: "%", "ms", ...; "" for none.

    Returns:
        "96.30 %", "1.230 ms", "12,345 images/s".
    """
    if unit == "%":
        return f"{value:.2f} %"
    # Zeros at the end stay, so that before and after show the same digits.
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.4g}".rstrip(".")
    return f"{text} {unit}".rstrip()


def format_change(measurement: Measurement) -> str:
    """What changed: points for percentages, percent of the value before for all else.

    Args:
        measurement: values before and after.

    Returns:
        "-0.40 points", "-38.2 %"; "-" where before is 0 or a value is not finite.
    """
    before, after = measurement.before, measurement.after
    if not (isfinite(before) and isfinite(after)):
        return _NO_NUMBER
    if measurement.unit == "%":
        return f"{after - before:+.2f} points"
    return f"{100 * (after - before) / abs(before):+.1f} %" if before else _NO_NUMBER


def macs_elsewhere(total: Cost, layers: Iterable[Cost]) -> int:
    """MACs of a model outside its layers (attention products).

    Args:
        total: counted cost of the whole model.
        layers: cost of each layer.

    Returns:
        The difference; 0 where the layers are all there is.
    """
    return total.macs - sum(layer.macs for layer in layers)


def number_or_text(value: float) -> float | str:
    """A number as JSON can hold it: "inf", "-inf" and "nan" as text."""
    return value if isfinite(value) else str(float(value))


def finite_or_none(value: float | None) -> float | None:
    """A number that JSON can hold: it has no inf or nan, which become null."""
    return value if value is not None and isfinite(value) else None
