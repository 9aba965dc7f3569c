# SPDX-License-Identifier: Apache-2.0
"""Numbers of bytes as typed and as shown."""

import numpy as np
import pytest

import slimrank as sr
from slimrank.cost import bytes_text, read_bytes


@pytest.mark.parametrize(
    ("value", "n_bytes"),
    [
        (1, 1),
        (2_000_000_000, 2_000_000_000),
        (np.int64(5_000), 5_000),
        ("2GB", 2_000_000_000),
        ("2gb", 2_000_000_000),
        (" 500 MB ", 500_000_000),
        ("1.5GiB", 3 * 2**29),
        ("1.5gib", 3 * 2**29),
        (".5 kB", 500),
        ("64KiB", 65_536),
        ("2.GB", 2_000_000_000),
        ("1TB", 10**12),
        ("700", 700),
        ("700 b", 700),
    ],
)
def test_numbers_and_texts_are_read(value: object, n_bytes: int) -> None:
    assert read_bytes(value, "memory") == n_bytes


@pytest.mark.parametrize(
    "value",
    [
        *(0, -1, True, False, 1.5, 2e9, float("nan"), None, [1], b"2GB"),
        *(
            "",
            "GB",
            "-2GB",
            "0GB",
            "0.1 B",
            "1e9",
            "nan",
            "inf",
            "2 GB more",
            "2,5GB",
            "1_000",
            "1.5",
            "9" * 99,
        ),
        "\u0663GB",
    ],
)
def test_other_values_are_refused_with_an_example(value: object) -> None:
    with pytest.raises(sr.OptionError, match=r"memory=.*'2GB', '500 MB' or '1.5GiB'"):
        read_bytes(value, "memory")


@pytest.mark.parametrize(
    ("text", "close"),
    [("2GX", "'GB'"), ("2G", "'GB'"), ("5 bytes", "known are 'B', 'kB'"), ("3 MiX", "'MiB'")],
)
def test_an_unknown_unit_is_named_with_close_ones(text: str, close: str) -> None:
    with pytest.raises(sr.OptionError, match=close):
        read_bytes(text, "memory")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [
        (0, "0 bytes"),
        (12, "12 bytes"),
        (1_000, "1 kB"),
        (999_999, "1 MB"),
        (12_345_678, "12 MB"),
        (1_340_000_000, "1.3 GB"),
        (2_500_000_000, "2.5 GB"),
        (12_400_000_000, "12 GB"),
    ],
)
def test_bytes_are_shown_in_two_digits(n_bytes: int, text: str) -> None:
    assert bytes_text(n_bytes) == text
