# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from seams import (
    format_change,
    format_cosine,
    format_count,
    format_damage,
    format_measured,
    format_metric,
    format_percent,
    format_phases,
    format_ratio,
    format_seconds,
    format_share,
    format_short,
    macs_elsewhere,
)
from slimrank.records import Cost, Measurement


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (1234, "1.23 k"),
        (9_999, "10.0 k"),
        (12_345, "12.3 k"),
        (999_499, "999 k"),
        (999_999, "1.00 M"),
        (1_702_904_192, "1.70 G"),
        (5 * 10**15, "5.00 P"),
        (5 * 10**18, "5,000,000,000,000,000,000"),
        (-1234, "-1.23 k"),
    ],
)
def test_format_count_keeps_three_digits(value: int, text: str) -> None:
    assert format_count(value) == text


def test_format_metric_adds_the_unit_to_bytes_only() -> None:
    assert format_metric("bytes", 640) == "640 B"
    assert format_metric("bytes", 46_745_760) == "46.7 MB"
    assert format_metric("macs", 46_745_760) == "46.7 M"


def test_a_ratio_of_nothing_is_a_dash() -> None:
    assert format_ratio(1, 0) == "-"
    assert format_percent(1, 0) == "-"
    assert format_ratio(1, 3) == "0.333"
    assert format_percent(1, 8) == "12.5 %"


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0.012, "0.0120"), (1.5e-6, "1.50e-06"), (12.3, "12.3")]
)
def test_format_damage(value: float | None, text: str) -> None:
    assert format_damage(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.031, "0.03 s"), (8.06, "8.1 s"), (60.0, "1 min 00 s"), (125.4, "2 min 05 s"), (119.7, "2 min 00 s")],
)
def test_format_seconds(value: float, text: str) -> None:
    assert format_seconds(value) == text


def test_format_phases_ends_in_the_sum() -> None:
    assert format_phases({"study": 8.1, "plan": 0.02}) == "study 8.1 s, plan 0.02 s; 8.1 s in all"
    assert format_phases({}) == ""


@pytest.mark.parametrize(
    ("before", "after", "unit", "text"),
    [
        (96.31, 96.02, "%", "-0.29 points"),
        (12.345, 7.912, "ms", "-35.9 %"),
        (-2.0, -1.0, "nats", "+50.0 %"),
        (0.0, 1.0, "ms", "-"),
        (float("nan"), 1.0, "%", "-"),
    ],
)
def test_format_change(before: float, after: float, unit: str, text: str) -> None:
    assert format_change(Measurement(name="x", before=before, after=after, unit=unit)) == text


def test_format_measured_has_four_digits_or_thousands() -> None:
    assert format_measured(96.3, "%") == "96.30 %"
    assert format_measured(12345.6, "images/s") == "12,346 images/s"
    assert format_measured(0.5, "") == "0.5000"
    assert format_measured(1.23, "ms") == "1.230 ms"


def test_macs_elsewhere_is_what_the_layers_leave() -> None:
    total = Cost(macs=10, params=5, bytes=20)
    assert macs_elsewhere(total, [Cost(macs=4, params=5, bytes=20), Cost(macs=3, params=5, bytes=20)]) == 3


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.98906, 2, "98.91 %"),
        (0.98906, 1, "98.9 %"),
        (1.0, 2, "100.00 %"),
        (0.99999, 2, "99.99 %"),
        (0.9996, 1, "99.9 %"),
        (0.0, 1, "0.0 %"),
    ],
)
def test_format_share_says_100_only_of_all(value: float, digits: int, text: str) -> None:
    assert format_share(value, digits=digits) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.064, "0.064"), (0.1, "0.10"), (12.4, "12"), (0.0, "0.0"), (3123.0, "3.1e+03"), (math.inf, "inf")],
)
def test_format_short_has_two_digits(value: float, text: str) -> None:
    assert format_short(value) == text


def test_format_cosine_has_the_decimals_asked_for() -> None:
    assert format_cosine(0.99812, digits=4) == "0.9981"
    assert format_cosine(-0.5, digits=3) == "-0.500"
