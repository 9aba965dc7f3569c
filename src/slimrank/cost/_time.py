# SPDX-License-Identifier: Apache-2.0
"""Measured times, added up over what is left of a network."""

from collections.abc import Collection, Mapping

from slimrank.cost._slimming import outermost_blocks, slimmed_spec
from slimrank.records import ChannelMap, Kept, LayerSpec, NetworkTimes, Setting


def network_time(
    times: NetworkTimes,
    layers: Mapping[str, LayerSpec],
    channels: ChannelMap,
    *,
    settings: Mapping[str, Setting],
    kept: Kept,
    dropped: Collection[str],
) -> float:
    """Time of a whole network with settings, slimmed groups and dropped blocks.

    Ranks and widths count as the next step of the hardware.

    Args:
        times: measured.
        layers: every layer by name.
        channels: groups and blocks of the model.
        settings: layer -> setting; the pair replaces the layer once it is slimmed. A pair whose form was not
            measured counts as what it replaces.
        kept: group -> units that stay; groups not named stay whole.
        dropped: blocks replaced by the identity.

    Returns:
        ns for one run of the batch that was measured.
    """
    total = times.before
    blocks = tuple(block.name for block in outermost_blocks(channels, dropped))
    prefixes = tuple(f"{name}." for name in blocks)
    total -= sum(times.blocks.get(name, 0.0) for name in blocks)
    for name, layer in times.layers.items():
        if name not in layers:
            continue
        total -= float(layer.dense.time(*times.edge(rows_and_columns(layers[name]))))
        if not f"{name}.".startswith(prefixes):
            rows, columns = times.edge(rows_and_columns(slimmed_spec(layers[name], channels, kept)))
            setting = settings.get(name)
            pair = None if setting is None else layer.pairs.get(setting.form)
            if setting is None or pair is None:
                total += float(layer.dense.time(rows, columns))
            else:
                total += float(pair.time(times.edge(setting.rank), rows, columns))
    for name, unit in times.groups.items():
        if name not in channels.groups:
            continue
        units = channels.groups[name].units
        is_gone = any(group_is_inside(channels, name, (block,)) for block in blocks)
        total -= unit * (units if is_gone else units - len(kept.get(name, range(units))))
    return total


def rows_and_columns(spec: LayerSpec) -> tuple[int, int]:
    """Outputs and inputs of a layer, as times count them.

    Args:
        spec: the layer.

    Returns:
        Its outputs; and its inputs, of one group of a grouped convolution.
    """
    if spec.is_transposed:
        return spec.n_outputs, spec.weight_shape[0]
    return spec.n_outputs, next(iter(spec.weight_shape[1:2]), 1)


def group_is_inside(channels: ChannelMap, group: str, blocks: Collection[str]) -> bool:
    """Whether every tensor that a group touches is inside one of these blocks."""
    touched = [
        name for name, tensor in channels.tensors.items() if any(axis.group == group for axis in tensor.axes)
    ]
    prefixes = tuple(f"{block}." for block in blocks)
    # A group without tensors is inside nothing, though ``all`` of nothing is true.
    return bool(touched) and all(name.startswith(prefixes) for name in touched)
