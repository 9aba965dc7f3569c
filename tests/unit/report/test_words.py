# SPDX-License-Identifier: Apache-2.0
"""Words that text and page share."""

import re

import pytest

from slimrank.report import short_name

_NAME = "vision_model.encoder.stages.12.layers.3.intermediate.dense_projection"


@pytest.mark.parametrize("width", range(34, 71))
def test_a_short_name_keeps_its_numbers(width: int) -> None:
    text = short_name(_NAME, width)
    assert len(text) <= width
    assert re.findall(r"\d+", text) == ["12", "3"]
    parts, shown = _NAME.split("."), text.split(".")
    assert len(shown) == len(parts)
    for part, cut in zip(parts, shown, strict=True):
        assert cut == part or (cut.endswith("~") and part.startswith(cut[:-1]))
    # As long as it may be, but for the letter that a cut takes the place of.
    assert len(text) >= min(width, len(_NAME)) - 1


def test_the_last_word_keeps_more_than_the_others() -> None:
    shown = short_name(_NAME, 50).split(".")
    assert len(shown[-1]) > max(len(word) for word in shown[:-1])
    assert short_name("a.layer_of_many_words_12", 12) == "a.layer_o~12"
    assert short_name("fc", 40) == "fc"


def test_what_is_too_long_even_so_keeps_both_ends() -> None:
    assert short_name(_NAME, 16) == "vision...jection"
    assert len(short_name("x" * 50, 10)) == 10
