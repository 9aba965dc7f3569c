# SPDX-License-Identifier: Apache-2.0
"""Plans for tools that read a model by its configuration: no new biases, one width for all layers."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from slimrank.cost import pair_costs, pair_has_bias
from slimrank.records import ChannelMap, Curve, GroupSpec, LayerSpec

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


def without_new_bias(curves: Sequence[Curve], layers: Mapping[str, LayerSpec]) -> tuple[Curve, ...]:
    """Curves whose pairs have a bias only where the layer has one.

    Args:
        curves: of pairs that all have one.
        layers: of the model.

    Returns:
        The same ranks and damages, at what they then cost.
    """
    found = []
    for curve in curves:
        spec = layers[curve.layer]
        has_bias = pair_has_bias(spec, plan_has_bias=False)
        macs, params = pair_costs(spec, curve.form, curve.ranks, curve.ranks_in, has_bias=has_bias)
        found.append(replace(curve, macs=macs, params=params, bytes=params * spec.itemsize))
    return tuple(found)
