# SPDX-License-Identifier: Apache-2.0
import io
import re

import pytest

import seams
from slimrank.report import render_table, short_name

_NAMES = ("encoder.layers.11.self_attention.query_projection", "encoder.layers.2.feed_forward.first", "head")
_ROWS = [(name, "linear", str(100 * index), "weight_svd") for index, name in enumerate(_NAMES)]
_TABLE = render_table(("layer", "kind", ">MACs", "methods"), _ROWS)
_LINE = "A line that is longer than a narrow terminal, and goes on in the next."
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
    assert shown == seams.wrap_prose(seams.fit_tables(_TEXT, 60), 60)
    assert max(map(len, shown.split("\n"))) == 60
    assert ".11.self_" in shown
    assert _NAMES[0] not in shown


def test_lines_outside_of_tables_are_wrapped_below_their_beginning() -> None:
    item = f" - fc: {_LINE}"
    shown = seams.wrap_prose(f"Notes\n{item}\n{_TEXT}", 40).split("\n")
    assert shown[:4] == [
        "Notes",
        " - fc: A line that is longer than a",
        "   narrow terminal, and goes on in the",
        "   next.",
    ]
    # Then that line again, and the table, which is as before.
    assert shown[4:6] == ["A line that is longer than a narrow", "terminal, and goes on in the next."]
    assert shown[6:] == _TEXT.split("\n")[1:]
    assert " ".join(" ".join(shown).split()) == " ".join(f"Notes {item} {_TEXT}".split())


def test_words_that_are_longer_than_the_terminal_stay_whole() -> None:
    path = "/a/very-long/path/that-no-line-of/the-terminal/holds.json"
    assert seams.wrap_prose(f"Saved as {path}.", 20) == f"Saved as\n{path}."


def test_a_wide_terminal_still_gets_lines_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    shown = seams.fitted_to(" ".join([_LINE] * 4), Terminal()).split("\n")
    assert 100 < max(map(len, shown)) <= 110


def test_columns_and_curves_are_not_wrapped() -> None:
    for line in ("fc      weight_svd 12      weight_svd 16, half as much", "0.01 |    o o  o   *    * *"):
        assert seams.wrap_prose(line, 20) == line
