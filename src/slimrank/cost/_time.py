# SPDX-License-Identifier: Apache-2.0
"""Measured times, added up over what is left of a network."""

from collections.abc import Collection, Mapping

from slimrank.cost._slimming import outermost_blocks, slimmed_spec
from slimrank.records import (
    ChannelMap,
    GroupSpec,
    Kept,
    LayerSpec,
    LayerTimes,
    NetworkTimes,
    Setting,
    Steps,
    step_edge,
)


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
    blocks = tuple(block.name for block in outermost_blocks(channels, dropped))
    total = times.fixed + _block_time(times, blocks)
    for time in layer_times(times, layers, channels, settings=settings, kept=kept, dropped=dropped).values():
        total += time
    for name in times.groups.keys() | times.ragged.keys():
        is_gone = any(group_is_inside(channels, name, (block,)) for block in blocks)
        if name in channels.groups and not is_gone:
            group = channels.groups[name]
            total += group_time(times, group, len(kept.get(name, range(group.units))))
    return total


def layer_times(
    times: NetworkTimes,
    layers: Mapping[str, LayerSpec],
    channels: ChannelMap,
    *,
    settings: Mapping[str, Setting],
    kept: Kept,
    dropped: Collection[str],
) -> dict[str, float]:
    """Time of each layer with settings, slimmed groups and dropped blocks.

    Args:
        times: measured.
        layers: as in ``network_time``, and so are all others.
        channels: see there.
        settings: see there.
        kept: see there.
        dropped: see there.

    Returns:
        ns for one run of the batch that was measured, by layer: of those that the table has and that are in
        no dropped block.
    """
    inside = tuple(f"{block.name}." for block in outermost_blocks(channels, dropped))
    return {
        name: _layer_time(times, layer, slimmed_spec(layers[name], channels, kept), settings.get(name))
        for name, layer in times.layers.items()
        if name in layers and not f"{name}.".startswith(inside)
    }


def _layer_time(times: NetworkTimes, layer: LayerTimes, spec: LayerSpec, setting: Setting | None) -> float:
    pair = None if setting is None else layer.pairs.get(setting.form)
    if setting is None or pair is None:
        return float(layer.dense.time(*timed_sizes(spec, times.steps)))
    return float(pair.time(times.edge(setting.rank), *timed_pair_sizes(spec, times.steps)))


def _block_time(times: NetworkTimes, dropped: Collection[str]) -> float:
    """Of the blocks that stay: that of a block holds that of the blocks inside it, so the outermost count."""
    names = list(times.blocks)
    outermost = [
        name for name in names if not any(name.startswith(f"{other}.") for other in names if other != name)
    ]
    return sum(times.blocks[name] for name in outermost) - sum(
        times.blocks.get(name, 0.0) for name in dropped
    )


def group_time(times: NetworkTimes, group: GroupSpec, count: int) -> float:
    """Time of what goes with the units of a group and is no layer.

    Args:
        times: measured.
        group: of channels.
        count: units that stay.

    Returns:
        ns.
    """
    units = float(times.edge(count * group.unit_width)) / group.unit_width
    whole = times.ragged.get(group.name, 0.0) if count == group.units else 0.0
    return times.groups.get(group.name, 0.0) * units + whole


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


def timed_sizes(spec: LayerSpec, steps: Steps) -> tuple[int, int]:
    """Outputs and inputs of a layer in one piece, up to the steps up to which runtimes compute them.

    Args:
        spec: the layer.
        steps: of the hardware.

    Returns:
        As ``rows_and_columns``. What one group of a grouped convolution reads counts as it is: where it is no
        whole step as it stands, kernels that pad nothing compute it, and else plans leave whole steps of it.
    """
    rows, columns = rows_and_columns(spec)
    edge = columns if spec.groups > 1 else int(step_edge(columns, steps.columns))
    return int(step_edge(rows, steps.rows)), edge


def timed_pair_sizes(spec: LayerSpec, steps: Steps) -> tuple[int, int]:
    """``pair_rows_and_columns`` of a layer, up to the steps up to which runtimes compute them.

    Args:
        spec: the layer that a pair replaces.
        steps: of the hardware.

    Returns:
        Both.
    """
    rows, columns = pair_rows_and_columns(spec)
    return int(step_edge(rows, steps.rows)), int(step_edge(columns, steps.columns))


def pair_rows_and_columns(spec: LayerSpec) -> tuple[int, int]:
    """Outputs of a pair's second factor and inputs of its first, as times count them.

    Args:
        spec: the layer that it replaces.

    Returns:
        As ``rows_and_columns``, but the inputs of all groups of a grouped convolution.
    """
    rows, columns = rows_and_columns(spec)
    return rows, columns * spec.groups


def group_is_inside(channels: ChannelMap, group: str, blocks: Collection[str]) -> bool:
    """Whether every tensor that a group touches is inside one of these blocks."""
    if not blocks:
        return False
    touched = [
        name for name, tensor in channels.tensors.items() if any(axis.group == group for axis in tensor.axes)
    ]
    prefixes = tuple(f"{block}." for block in blocks)
    # A group without tensors is inside nothing, though ``all`` of nothing is true.
    return bool(touched) and all(name.startswith(prefixes) for name in touched)
