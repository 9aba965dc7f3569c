# SPDX-License-Identifier: Apache-2.0
"""Maps of channel groups without what the caller wants left alone."""

from collections.abc import Collection, Mapping
from dataclasses import replace

from slimrank.records import ChannelMap, TensorSpec


def freeze(channels: ChannelMap, reasons: Mapping[str, str]) -> ChannelMap:
    """The map without what belongs to some groups.

    Args:
        channels: of a model.
        reasons: why nothing of a group can go, by group.

    Returns:
        The groups with their reasons; tensors and products that no other group touches are gone.
    """
    groups = {
        name: replace(group, reason=reasons[name], sizes=()) if name in reasons else group
        for name, group in channels.groups.items()
    }
    tensors: dict[str, TensorSpec] = {}
    for name, tensor in channels.tensors.items():
        axes = tuple(axis for axis in tensor.axes if axis.group not in reasons)
        if axes:
            tensors[name] = replace(tensor, axes=axes)
    products = [
        replace(product, groups=tuple(name for name in product.groups if name not in reasons))
        for product in channels.products
    ]
    return replace(
        channels,
        groups=groups,
        tensors=tensors,
        products=tuple(product for product in products if product.groups),
    )


def without_layers(channels: ChannelMap, layers: Collection[str]) -> ChannelMap:
    """The map without the groups and blocks that would change some layers.

    Args:
        channels: the map.
        layers: that shall stay as they are, to the bit.

    Returns:
        The map; groups with tensors of these layers are frozen, blocks around them are gone.
    """
    left_alone = frozenset(layers)
    reasons = {
        axis.group: f"the caller skips {tensor.name.rpartition('.')[0]}, which is part of it"
        for tensor in channels.tensors.values()
        for axis in tensor.axes
        if tensor.name.rpartition(".")[0] in left_alone
    }
    blocks = {
        name: block
        for name, block in channels.blocks.items()
        if not any(layer.startswith(f"{name}.") for layer in left_alone)
    }
    return replace(freeze(channels, reasons), blocks=blocks)
