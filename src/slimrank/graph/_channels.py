# SPDX-License-Identifier: Apache-2.0
"""Maps of channel groups without what the caller wants left alone."""

from collections.abc import Collection
from dataclasses import replace

from slimrank.graph._group_trial import freeze
from slimrank.records import ChannelMap


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
