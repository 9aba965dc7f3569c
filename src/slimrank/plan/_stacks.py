# SPDX-License-Identifier: Apache-2.0
"""Stacks: the groups of layers that repeat, whose names differ in numbers alone."""

from collections import defaultdict
from collections.abc import Collection, Mapping

from slimrank.records import ChannelMap, GroupSpec

Stack = tuple[str, int, int]


def stack_of(name: str, group: GroupSpec) -> Stack:
    """What groups of one stack of layers share.

    Args:
        name: of the group.
        group: what it is.

    Returns:
        Its name with every number of the path left open, its units and their width.
    """
    path = ".".join("#" if part.isdigit() else part for part in name.split("."))
    return path, group.units, group.unit_width


def stacks_in(channels: ChannelMap) -> tuple[tuple[str, ...], ...]:
    """The groups of each stack, a group that stands alone among them.

    Args:
        channels: of the model.

    Returns:
        Names, in the order of the map.
    """
    stacks: dict[Stack, list[str]] = defaultdict(list)
    for name, group in channels.groups.items():
        stacks[stack_of(name, group)].append(name)
    return tuple(tuple(names) for names in stacks.values())


def has_uniform_widths(groups: Mapping[str, Collection[int]], channels: ChannelMap) -> bool:
    """Whether all groups of a stack keep the same number of units.

    Args:
        groups: name -> units that stay, of the groups that are slimmed.
        channels: of the model.

    Returns:
        Whether they do, in every stack.
    """
    return all(
        len({len(groups[name]) if name in groups else channels.groups[name].units for name in names}) == 1
        for names in stacks_in(channels)
    )


def has_stacks(groups: Mapping[str, Collection[int]], channels: ChannelMap) -> bool:
    """Whether several groups of one stack are slimmed.

    Args:
        groups: name -> units that stay, of the groups that are slimmed.
        channels: of the model.

    Returns:
        Whether there is such a stack.
    """
    return any(sum(name in groups for name in names) > 1 for names in stacks_in(channels))
