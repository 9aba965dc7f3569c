# SPDX-License-Identifier: Apache-2.0
"""Parts of a page that results and studies share."""

from collections.abc import Sequence
from html import escape

from slimrank.records import BlockDamage, ChannelMap, Cost, GroupCurve, Metric, Note
from slimrank.report._groups import (
    BLOCK_COLUMNS,
    GROUP_COLUMNS,
    STAY_WHOLE,
    block_rows,
    frozen_reasons,
    group_rows,
    groups_line,
)
from slimrank.report._numbers import format_exact, format_metric
from slimrank.report._page import card, definitions, section, table, warning_box
from slimrank.report._words import METRIC_LABELS, layers_by_reason


def metric_card(name: Metric, before: Cost) -> str:
    value = before.metric(name)
    return card(METRIC_LABELS[name], format_metric(name, value), format_exact(value))


def channel_sections(
    channels: ChannelMap, curves: Sequence[GroupCurve], blocks: Sequence[BlockDamage], before: Cost
) -> list[str]:
    """What a study knows of groups and blocks."""
    if not channels.groups and not channels.blocks:
        return []
    rows = group_rows(channels, curves)
    lead = f'<p class="soft">{escape(groups_line(channels))}</p>'
    parts = [section("Channel groups", lead + (rows_table(GROUP_COLUMNS, rows) if rows else ""))]
    parts += definitions_section(STAY_WHOLE, layers_by_reason(frozen_reasons(channels)))
    if channels.blocks:
        dropped = rows_table(BLOCK_COLUMNS, block_rows(channels, blocks, before))
        parts.append(section("Can be dropped whole", dropped))
    return parts


def rows_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table from columns written as for text: ``>`` before a heading aligns right."""
    kinds = [(heading.removeprefix(">"), "n" if heading.startswith(">") else "") for heading in columns]
    return table(kinds, [(row, False) for row in rows])


def definitions_section(heading: str, pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [section(heading, definitions(pairs))] if pairs else []


def warning_parts(warnings: Sequence[Note]) -> list[str]:
    """What stands on top of a page; nothing where nothing is wrong."""
    return [warning_box([str(warning) for warning in warnings])] if warnings else []
