# SPDX-License-Identifier: Apache-2.0
"""What notebooks show of a value (``_repr_html_``): short tables that load nothing and style only themselves.

Colours are left to the notebook, so that the tables can be read on light and on dark pages.
"""

from collections.abc import Sequence
from html import escape

from slimrank.plan import Plan
from slimrank.records import ChannelMap, Cost, LayerSpec, Note, Summary
from slimrank.report._agreement import agreement_lines, divergence_text
from slimrank.report._groups import DROPPED_COLUMNS, KEPT_COLUMNS, dropped_rows, groups_line, kept_rows
from slimrank.report._text import (
    COST_COLUMNS,
    LAYER_COLUMNS,
    RESULT_COLUMNS,
    cost_rows,
    layer_rows,
    layers_line,
    measurement_rows,
    plan_line,
    plan_table,
    result_rows,
)
from slimrank.report._words import DIVERGENCE_LABEL, warnings_and_others

# Rows of a table; a cell of a notebook is no place for hundreds.
_MAX_ROWS = 30
_LINE = "1px solid rgba(128,128,128,.4)"
_CELL = f"padding:.15em .6em;border:0;border-bottom:{_LINE};white-space:nowrap"

Columns = Sequence[str]
Rows = Sequence[Sequence[str]]


def notebook_html(title: str, lines: Sequence[str], tables: Sequence[tuple[Columns, Rows]]) -> str:
    """A title, lines of text and tables for a cell of a notebook.

    Args:
        title: in bold.
        lines: below it.
        tables: columns and rows as in ``render_table``; those without rows are left out, and of long ones
            the first rows are shown.

    Returns:
        HTML with every text escaped, for the inside of a page.
    """
    told = "".join(f"<div>{escape(line)}</div>" for line in lines if line)
    shown = "".join(_table(columns, rows) for columns, rows in tables if rows)
    return f"<div><div><b>{escape(title)}</b></div>{told}{shown}</div>"


def _table(columns: Columns, rows: Rows) -> str:
    aligned = ["right" if heading.startswith(">") else "left" for heading in columns]
    headings = [heading.removeprefix(">") for heading in columns]
    body = "".join(_row("td", row, aligned) for row in rows[:_MAX_ROWS])
    more = len(rows) - _MAX_ROWS
    if more > 0:
        style = f"{_CELL};text-align:left"
        body += (
            f'<tr><td colspan="{len(columns)}" style="{style}">and {more} more; summary() has all</td></tr>'
        )
    return (
        '<table style="border-collapse:collapse;margin:.5em 0;font-variant-numeric:tabular-nums">'
        f"<thead>{_row('th', headings, aligned)}</thead><tbody>{body}</tbody></table>"
    )


def _row(tag: str, cells: Sequence[str], aligned: Sequence[str]) -> str:
    inside = "".join(
        f'<{tag} style="{_CELL};text-align:{side}">{escape(cell)}</{tag}>'
        for cell, side in zip(cells, aligned, strict=True)
    )
    return f"<tr>{inside}</tr>"


def study_notebook(
    layers: Sequence[LayerSpec], before: Cost, notes: Sequence[Note], *, channels: ChannelMap
) -> str:
    """A study: its layers, and how many groups and blocks it found.

    Args:
        layers: in execution order.
        before: counted cost of the model.
        notes: what the user should know; warnings are shown.
        channels: groups and blocks of the model.

    Returns:
        HTML for the inside of a page.
    """
    warnings, _ = warnings_and_others(notes)
    lines = [
        layers_line(layers, before),
        groups_line(channels) if channels.groups else "",
        *(f"Warning: {warning}" for warning in warnings),
    ]
    return notebook_html("Study", lines, [(LAYER_COLUMNS, layer_rows(layers, before))])


def plan_notebook(plan: Plan) -> str:
    """A plan: its costs, and what it does to layers, groups and blocks.

    Args:
        plan: any.

    Returns:
        HTML for the inside of a page.
    """
    return notebook_html(
        "Plan",
        [plan_line(plan)],
        [
            (COST_COLUMNS, cost_rows(plan.before, plan.after)),
            plan_table(plan),
            *_group_tables(plan, None),
        ],
    )


def result_notebook(summary: Summary, plan: Plan) -> str:
    """A result: what was counted and measured, and what became of each layer.

    Args:
        summary: of the result.
        plan: that made it.

    Returns:
        HTML for the inside of a page.
    """
    warnings, _ = warnings_and_others(summary.notes)
    lines = [
        *(f"Warning: {warning}" for warning in warnings),
        f"{DIVERGENCE_LABEL}: {divergence_text(summary)}",
        *(f"{label}: {text}" for label, text in agreement_lines(summary)),
    ]
    tables = [
        (COST_COLUMNS, cost_rows(summary.before, summary.after)),
        (("measured", ">before", ">after", ">change"), measurement_rows(summary)),
        (RESULT_COLUMNS, result_rows(summary)),
        *_group_tables(plan, summary),
    ]
    return notebook_html(summary.title, lines, tables)


def _group_tables(plan: Plan, summary: Summary | None) -> list[tuple[Columns, Rows]]:
    """Slimmed groups and dropped blocks, with damages where there is a summary."""
    parts = ((KEPT_COLUMNS, kept_rows(plan, summary)), (DROPPED_COLUMNS, dropped_rows(plan, summary)))
    return [(columns[: len(rows[0])], rows) for columns, rows in parts if rows]
