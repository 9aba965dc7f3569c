# SPDX-License-Identifier: Apache-2.0
"""Two groups as one: what code cuts alike, though nothing that it computes says so."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from slimrank.records import AxisUnits, ChannelMap, GroupSpec, ProductSpec, TensorSpec


def mergeable(groups: Sequence[GroupSpec]) -> Iterator[tuple[str, str]]:
    """Pairs of groups whose units may have to go in step.

    Args:
        groups: those that fail alone, in order.

    Returns:
        An iterator of names: groups of as many units, made by layers that stand in the same module, such as
        the width of queries and keys, and that of values.
    """
    for index, first in enumerate(groups):
        for second in groups[index + 1 :]:
            if first.units == second.units and _holders(first) & _holders(second):
                yield first.name, second.name


def merged(channels: ChannelMap, first: str, second: str) -> ChannelMap:
    """The map with two groups as one, unit by unit.

    Args:
        channels: the map.
        first: name of a group, which the new one takes over.
        second: name of another one with as many units.

    Returns:
        The map without the second group.
    """
    a, b = channels.groups[first], channels.groups[second]
    group = replace(
        a,
        producers=_in_order(a.producers, b.producers),
        consumers=_in_order(a.consumers, b.consumers),
        is_inner=a.is_inner or b.is_inner,
        sizes=(),
    )
    groups = {
        name: group if name == first else other for name, other in channels.groups.items() if name != second
    }
    return replace(
        channels,
        groups=groups,
        tensors={name: _renamed(tensor, first, second) for name, tensor in channels.tensors.items()},
        products=tuple(_renamed_product(product, first, second) for product in channels.products),
    )


def _holders(group: GroupSpec) -> set[str]:
    return {name.rpartition(".")[0] for name in group.producers}


def _in_order(first: Iterable[str], second: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*first, *second)))


def _renamed(tensor: TensorSpec, first: str, second: str) -> TensorSpec:
    if not any(axis.group == second for axis in tensor.axes):
        return tensor
    axes: list[AxisUnits] = []
    for axis in tensor.axes:
        named = replace(axis, group=first) if axis.group == second else axis
        same = [index for index, other in enumerate(axes) if _key(other) == _key(named)]
        joined = _joined(axes[same[0]], named) if same and named.group == first else None
        if joined is None:
            axes.append(named)
        else:
            axes[same[0]] = joined
    return replace(tensor, axes=tuple(axes))


def _key(axis: AxisUnits) -> tuple[str, int, str]:
    return axis.group, axis.dim, axis.role


def _joined(a: AxisUnits, b: AxisUnits) -> AxisUnits | None:
    """One where they hold different indices; two stand side by side where they share any."""
    if any(x != -1 and y != -1 for x, y in zip(a.units, b.units, strict=True)):
        return None
    return replace(a, units=tuple(max(x, y) for x, y in zip(a.units, b.units, strict=True)))


def _renamed_product(product: ProductSpec, first: str, second: str) -> ProductSpec:
    names: Mapping[str, None] = dict.fromkeys(first if name == second else name for name in product.groups)
    return replace(product, groups=tuple(names))
