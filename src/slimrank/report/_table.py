# SPDX-License-Identifier: Apache-2.0
"""Tables as plain text."""

from collections.abc import Sequence


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
    lines = [
        "  ".join(
            f"{cell:{mark}{wide}}" for cell, mark, wide in zip(row, marks, widths, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "-" * (sum(widths) + 2 * (len(widths) - 1)))
    return "\n".join(lines)
