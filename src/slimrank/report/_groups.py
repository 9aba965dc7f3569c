# SPDX-License-Identifier: Apache-2.0
"""Channel groups and blocks: the cells that text and page share, and the text of a study."""

from collections.abc import Sequence
from dataclasses import replace

from slimrank.plan import Plan, slimmable_groups
from slimrank.records import PRUNING, BlockDamage, BlockSpec, ChannelMap, Cost, GroupCurve, GroupSpec, Summary
from slimrank.report._numbers import format_count, format_damage, format_percent
from slimrank.report._table import joined_parts, reasons_text, render_table
from slimrank.report._words import counted, first_of

# ``>`` before a heading aligns its column right, here and in the tables below.
GROUP_COLUMNS = (
    "group",
    ">units",
    ">unit width",
    "made by",
    "read by",
    "sizes changed",
    ">damage at half",
)
BLOCK_COLUMNS = ("block", ">MACs", ">share", ">params", ">damage")
# The damage stands in the tables of a result only; those of a plan leave the last column out.
KEPT_COLUMNS = ("group", "method", "keeps", "made by", "read by", ">damage")
DROPPED_COLUMNS = ("block", "method", ">MACs", ">share", ">params", ">damage")
# The heading of groups of which nothing can go, in text and page.
STAY_WHOLE = "Stay whole"


def render_groups(
    channels: ChannelMap,
    curves: Sequence[GroupCurve],
    blocks: Sequence[BlockDamage],
    *,
    before: Cost | None = None,
    width: int | None = 110,
) -> str:
    """Channel groups and blocks as plain text: who makes and reads them, what they can lose, or why not.

    Args:
        channels: groups and blocks of a model.
        curves: damage by units kept; groups without one show none.
        blocks: measured damage of dropping a block; blocks without one show none.
        before: counted cost of the whole model, for the share of each block; None leaves it out.
        width: columns at which reasons wrap, None for nowhere; tables take what they need (about 110).

    Returns:
        Lines of ASCII (names and reasons as given), the last one ended.
    """
    if not channels.groups and not channels.blocks:
        return f"No channel groups; a study with the method {PRUNING} looks for them.\n"
    rows = group_rows(channels, curves)
    dropped = block_rows(channels, blocks, before)
    columns = tuple(column for column in BLOCK_COLUMNS if before is not None or column != ">share")
    return joined_parts(
        [
            render_table(GROUP_COLUMNS, rows) if rows else "",
            groups_line(channels),
            reasons_text(STAY_WHOLE, frozen_reasons(channels), width),
            "Can be dropped whole\n" + render_table(columns, dropped) if dropped else "",
        ]
    )


def groups_line(channels: ChannelMap) -> str:
    """Groups and blocks, counted: "9 groups, 5 can be slimmed; 1 block can be dropped"."""
    text = f"{counted(len(channels.groups), 'group')}, {len(slimmable_groups(channels))} can be slimmed"
    return f"{text}; {counted(len(channels.blocks), 'block')} can be dropped" if channels.blocks else text


def group_rows(channels: ChannelMap, curves: Sequence[GroupCurve]) -> list[tuple[str, ...]]:
    """Cells of ``GROUP_COLUMNS`` for each group that can be slimmed."""
    by_group = {curve.group: curve for curve in curves}
    return [
        (
            group.name,
            str(group.units),
            str(group.unit_width),
            first_of(group.producers),
            first_of(readers_of(channels, group)),
            first_of(tuple(f"{module}.{name}" if module else name for module, name in group.sizes)),
            format_damage(damage_at_half(by_group.get(group.name))),
        )
        for group in slimmable_groups(channels).values()
    ]


def readers_of(channels: ChannelMap, group: GroupSpec) -> tuple[str, ...]:
    """Layers that sum over the channels of a group, those that cannot be fitted anew as well."""
    return readers_by_group(replace(channels, groups={group.name: group}))[group.name]


def readers_by_group(channels: ChannelMap) -> dict[str, tuple[str, ...]]:
    """Layers that sum over the channels of each group, those that cannot be fitted anew as well."""
    readers = {name: dict.fromkeys(group.consumers) for name, group in channels.groups.items()}
    for tensor in channels.tensors.values():
        for axis in tensor.axes:
            if axis.role == "input" and axis.group in readers:
                readers[axis.group].setdefault(tensor.name.rpartition(".")[0])
    return {name: tuple(names) for name, names in readers.items()}


def damage_at_half(curve: GroupCurve | None) -> float | None:
    """Damage at the number of units nearest to half of them; None without a curve."""
    if curve is None or not len(curve.kept):
        return None
    points = zip(curve.kept.tolist(), curve.damage.tolist(), strict=True)
    _, damage = min(points, key=lambda point: abs(2 * point[0] - len(curve.order)))
    return float(damage)


def frozen_reasons(channels: ChannelMap) -> dict[str, str]:
    """Group -> why nothing of it can go."""
    return {name: group.reason for name, group in channels.groups.items() if group.reason is not None}


def block_rows(
    channels: ChannelMap, damages: Sequence[BlockDamage], before: Cost | None
) -> list[tuple[str, ...]]:
    """Cells of ``BLOCK_COLUMNS`` for each block that can be dropped; no share where ``before`` is None."""
    known = {damage.block: damage.damage for damage in damages}
    return [
        (name, *_block_costs(block, before), format_damage(known.get(name)))
        for name, block in channels.blocks.items()
    ]


def kept_rows(plan: Plan, summary: Summary | None) -> list[tuple[str, ...]]:
    """Cells of ``KEPT_COLUMNS`` for each group that the last step of a plan slims; damages from a summary."""
    channels = _last_channels(plan)
    return [
        (
            name,
            PRUNING,
            f"{len(kept)} of {channels.groups[name].units}",
            first_of(channels.groups[name].producers),
            first_of(readers_of(channels, channels.groups[name])),
            *(() if summary is None else (format_damage(summary.group_damages.get(name)),)),
        )
        for name, kept in plan.groups.items()
    ]


def dropped_rows(plan: Plan, summary: Summary | None) -> list[tuple[str, ...]]:
    """Cells of ``DROPPED_COLUMNS`` for each block that the last step drops; damages from a summary."""
    if not plan.dropped:
        return []
    blocks = _last_channels(plan).blocks
    return [
        (
            name,
            "dropped",
            *_block_costs(blocks[name], plan.start),
            *(() if summary is None else (format_damage(summary.block_damages.get(name)),)),
        )
        for name in plan.dropped
    ]


def counts_text(plan: Plan) -> str:
    """What the last step of a plan does, counted.

    Args:
        plan: the plan.

    Returns:
        "12 of 30 layers compressed"; "12 of 30 layers, 5 of 9 groups, 1 block compressed" where there are
        groups that can be slimmed. Layers are those that become pairs.
    """
    layers = plan.steps[-1].structure.layers if plan.steps else {}
    groups = slimmable_groups(_last_channels(plan))
    counts = [f"{len(plan.settings)} of {len(layers)} layers"]
    if groups:
        counts.append(f"{len(plan.groups)} of {len(groups)} groups")
    if plan.dropped:
        counts.append(counted(len(plan.dropped), "block"))
    return f"{', '.join(counts)} compressed"


def _last_channels(plan: Plan) -> ChannelMap:
    return plan.steps[-1].structure.channels if plan.steps else ChannelMap()


def _block_costs(block: BlockSpec, before: Cost | None) -> tuple[str, ...]:
    share = () if before is None else (format_percent(block.macs, before.macs),)
    return (format_count(block.macs), *share, format_count(block.params))
