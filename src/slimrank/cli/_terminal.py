# SPDX-License-Identifier: Apache-2.0
"""Texts that fit the terminal: long names are shortened and lines wrapped there, and nowhere else."""

import re
import shutil
from collections.abc import Iterator, Sequence
from textwrap import fill
from typing import TextIO

from slimrank.report import short_name

# Columns that a name keeps at least.
_LEAST = 15
# Columns of a line that is still read with ease.
_WIDEST = 110
# Blanks, and the dash of an item.
_BEFORE_SENTENCE = re.compile(r" *(?:- )?")


def fitted_to(text: str, stream: TextIO) -> str:
    """A text as a stream shows it best.

    Args:
        text: in whole lines, with any number of tables.
        stream: that it goes to.

    Returns:
        The text as it is, for programs that read it line by line; where the stream is a terminal, with
        tables that fit its width as far as they can, and other lines wrapped.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    return wrap_prose(fit_tables(text, width), min(width, _WIDEST))


def fit_tables(text: str, width: int) -> str:
    """A text whose tables are not wider than this, where shorter names in their first column are enough.

    Args:
        text: tables as ``report.render_table`` writes them: headings, a line of dashes, rows, a blank line.
        width: columns.

    Returns:
        The text; names that were too long have shorter words, and all of their numbers. A table that would
        not fit is left whole.
    """
    lines = text.split("\n")
    for index, rows in _tables(lines):
        table = [lines[row] for row in rows]
        fitted = _fitted(table, width)
        for row, new in zip(rows, fitted, strict=True):
            lines[row] = new
        # As much shorter as the table.
        lines[index] = lines[index][max(map(len, table)) - max(map(len, fitted)) :]
    return "\n".join(lines)


def wrap_prose(text: str, width: int) -> str:
    """A text whose lines outside of tables are not longer than this, where words are short enough.

    Args:
        text: as for ``fit_tables``.
        width: columns.

    Returns:
        The text; columns and curves stay as they are, and what goes on in a new line stands below the
        beginning of its sentence.
    """
    lines = text.split("\n")
    in_tables = {row for index, rows in _tables(lines) for row in (index, *rows)}
    return "\n".join(
        line if index in in_tables else _wrapped(line, width) for index, line in enumerate(lines)
    )


def _wrapped(line: str, width: int) -> str:
    # Two blanks stand between columns, and in a curve that is drawn.
    if len(line) <= width or "  " in line.strip():
        return line
    then = " " * len(_BEFORE_SENTENCE.match(line)[0])  # type: ignore[index]
    return fill(line, width, subsequent_indent=then, break_long_words=False, break_on_hyphens=False)


def _tables(lines: Sequence[str]) -> Iterator[tuple[int, list[int]]]:
    """Where lines of dashes are, and where the headings and rows that they belong to."""
    for index, line in enumerate(lines):
        heading = lines[index - 1].strip() if index else ""
        if heading and line and not line.strip("-"):
            yield index, [index - 1, *_rows_after(lines, index)]


def _rows_after(lines: Sequence[str], index: int) -> range:
    """Lines up to the next blank one."""
    end = next((row for row in range(index + 1, len(lines)) if not lines[row].strip()), len(lines))
    return range(index + 1, end)


def _fitted(table: list[str], width: int) -> list[str]:
    """Headings and rows with a narrower first column, where that makes them fit."""
    over = max(map(len, table)) - width
    first = _first_column(table)
    narrow = first - over
    if over <= 0 or narrow < min(_LEAST, first):
        return table
    return [f"{short_name(line[:first].rstrip(), narrow):{narrow}}{line[first:]}".rstrip() for line in table]


def _first_column(table: list[str]) -> int:
    """Columns of the first cells: up to the first two blanks that all lines share."""
    longest = max(map(len, table))
    padded = [line.ljust(longest + 2) for line in table]
    return next(end for end in range(1, longest + 1) if all(line[end : end + 2] == "  " for line in padded))
