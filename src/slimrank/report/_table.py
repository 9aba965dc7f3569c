# SPDX-License-Identifier: Apache-2.0
"""Tables and lists as plain text."""

from collections.abc import Mapping, Sequence
from textwrap import fill

from slimrank.report._words import layers_by_reason


def render_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text: columns two blanks apart, each as wide as its longest cell.

    Args:
        columns: headings; ``>`` before one aligns its column right.
        rows: cells, as many as there are columns.

    Returns:
        Lines of text, without a newline at the end.
    """
    cells = [[heading.removeprefix(">") for heading in columns], *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    marks = [">" if heading.startswith(">") else "<" for heading in columns]
    # Stripped: blanks at the ends of lines would show up in files that are compared.
    lines = [
        "  ".join(
            f"{cell:{mark}{wide}}" for cell, mark, wide in zip(row, marks, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)


def wrapped(text: str, width: int | None, *, first: str = "", then: str = "") -> str:
    """A text in lines that are not longer than ``width``; None leaves it in one.

    Args:
        text: one paragraph.
        width: columns.
        first: what its first line begins with.
        then: what its other lines begin with.
    """
    return (
        f"{first}{text}" if width is None else fill(text, width, initial_indent=first, subsequent_indent=then)
    )


def list_text(heading: str, items: Sequence[str], width: int | None) -> str:
    """A heading and its items, wrapped; "" where there are none."""
    if not items:
        return ""
    return "\n".join([heading, *(wrapped(item, width, first=" - ", then="   ") for item in items)])


def reasons_text(heading: str, reasons: Mapping[str, str], width: int | None) -> str:
    """A heading and the names that share a reason, each reason written once; "" where there are none."""
    return list_text(heading, [f"{names}: {reason}" for names, reason in layers_by_reason(reasons)], width)


def joined_parts(parts: Sequence[str]) -> str:
    """Parts of a text with a blank line between them, the last line ended; empty parts are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"
