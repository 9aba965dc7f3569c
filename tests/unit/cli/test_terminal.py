# SPDX-License-Identifier: Apache-2.0
import io
import re

import pytest

import seams
from slimrank.report import render_table, short_name

_NAMES = ("encoder.layers.11.self_attention.query_projection", "encoder.layers.2.feed_forward.first", "head")
_ROWS = [(name, "linear", str(100 * index), "weight_svd") for index, name in enumerate(_NAMES)]
_TABLE = render_table(("layer", "kind", ">MACs", "methods"), _ROWS)
_LINE = "A line that is longer than a narrow terminal, and stays as it is all the same."
_TEXT = f"{_LINE}\n{_TABLE}\n\n3 layers\n"


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [79, 70, 60, 50, 47])
def test_a_table_fits_and_keeps_its_columns(width: int) -> None:
    first, *table, blank, last, end = seams.fit_tables(_TEXT, width).split("\n")
    assert (first, blank, last, end) == (_LINE, "", "3 layers", "")
    assert max(map(len, table)) == min(width, max(map(len, _TABLE.split("\n"))))
    heading, dashes, *rows = table
    assert set(dashes) == {"-"}
    # All that stands behind the names is as before, in columns of its own.
    behind = heading.index("kind")
    assert [row[behind:] for row in rows] == [line[line.index("linear") :] for line in _TABLE.split("\n")[2:]]
    for name, row in zip(_NAMES, rows, strict=True):
        shown = row[:behind].strip()
        assert shown == short_name(name, behind - 2)
        assert re.findall(r"\d+", shown) == re.findall(r"\d+", name)


def test_a_table_that_cannot_fit_is_left_whole() -> None:
    assert seams.fit_tables(_TEXT, 30) == _TEXT


def test_a_table_that_fits_and_text_without_tables_stay() -> None:
    assert seams.fit_tables(_TEXT, 200) == _TEXT
    for text in (
        "",
        "----",
        "a\n\n---\nb",
        "a\n---\nb",
        _LINE,
    ):
        assert seams.fit_tables(text, 20) == text


def test_only_terminals_get_shorter_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert seams.fitted_to(_TEXT, io.StringIO()) == _TEXT
    shown = seams.fitted_to(_TEXT, Terminal())
    assert shown == seams.fit_tables(_TEXT, 60)
    assert ".11.self_" in shown
    assert _NAMES[0] not in shown
