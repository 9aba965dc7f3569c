# SPDX-License-Identifier: Apache-2.0
"""Tables that fit the terminal: long names are shortened there, and nowhere else."""

import shutil
from typing import TextIO

from slimrank.report import short_name

# Columns that a name keeps at least.
_LEAST = 15


def fitted_to(text: str, stream: TextIO) -> str:
    """A text as a stream shows it best.

    Args:
        text: with any number of tables.
        stream: that it goes to.

    Returns:
        The text; where the stream is a terminal, with tables that fit its width as far as they can.
    """
    return fit_tables(text, shutil.get_terminal_size().columns) if stream.isatty() else text


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
    for index, line in enumerate(lines):
        heading = lines[index - 1].strip() if index else ""
        if heading and line and not line.strip("-"):
            rows = [index - 1, *_rows_after(lines, index)]
            table = [lines[row] for row in rows]
            fitted = _fitted(table, width)
            for row, new in zip(rows, fitted, strict=True):
                lines[row] = new
            # As much shorter as the table.
            lines[index] = line[max(map(len, table)) - max(map(len, fitted)) :]
    return "\n".join(lines)


def _rows_after(lines: list[str], index: int) -> range:
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
