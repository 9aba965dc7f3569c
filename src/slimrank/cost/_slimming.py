# SPDX-License-Identifier: Apache-2.0
"""What is left of tensors, layers and the whole model once channels are gone."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from slimrank.cost._formulas import layer_cost, setting_cost
from slimrank.cost._new_bias import carries_mean, consumer_gains_bias
from slimrank.records import (
    AxisUnits,
    BlockSpec,
    Call,
    ChannelMap,
    Cost,
    Kept,
    LayerSpec,
    ProductSpec,
    Setting,
    TensorSpec,
)

_NO_COST = Cost(macs=0, params=0, bytes=0)


def stays(tensor: TensorSpec, kept: Kept) -> dict[int, NDArray[np.int64]]:
    """Which indices of a tensor stay.

    Args:
        tensor: the tensor.
        kept: group -> units that stay; groups not named stay whole.

    Returns:
        Dimension -> indices that stay, ascending, for every dimension that a named group touches. An index
        stays where all its units do.
    """
    masks: dict[int, NDArray[np.bool_]] = {}
    for axis in tensor.axes:
        if axis.group in kept:
            masks[axis.dim] = masks.get(axis.dim, True) & _is_staying(axis, kept[axis.group])
    return {dim: np.flatnonzero(mask) for dim, mask in masks.items()}


def query_scales(tensor: TensorSpec, kept: Kept) -> dict[int, NDArray[np.float64]]:
    """Factors for the indices of a tensor that stay, where it makes queries of heads that become narrower.

    Args:
        tensor: the tensor.
        kept: group -> units that stay; groups not named stay whole.

    Returns:
        Dimension -> factor of each index that stays, ascending, for every dimension whose indices make
        queries of a named group.
    """
    scales: dict[int, NDArray[np.float64]] = {}
    for axis in tensor.axes:
        if axis.group in kept and axis.queries:
            queries, factors = list(axis.queries), np.ones(len(axis.units))
            factors[queries] = np.sqrt(_is_staying(axis, kept[axis.group])[queries].mean())
            scales[axis.dim] = scales.get(axis.dim, 1.0) * factors
    staying = stays(tensor, kept) if scales else {}
    return {dim: scale[staying[dim]] for dim, scale in scales.items()}


def matrix_names(spec: LayerSpec) -> tuple[str, ...]:
    """Names that the weights and biases of a layer's matrix may have in the model.

    Args:
        spec: the layer.

    Returns:
        Weight and bias; of a recurrent layer, those of both directions, whether it has one or two.
    """
    if not spec.is_recurrent:
        return f"{spec.name}.weight", f"{spec.name}.bias"
    return tuple(f"{spec.name}.{leaf}_ih_l0{end}" for leaf in ("weight", "bias") for end in ("", "_reverse"))


def matrix_tensor(spec: LayerSpec, channels: ChannelMap) -> TensorSpec | None:
    """The weight of a layer, and which of its indices belong to groups.

    Args:
        spec: the layer.
        channels: the channel map of the model.

    Returns:
        The tensor; of a recurrent layer, the input matrices of both directions as one. None where no group
        touches it.
    """
    tensor = channels.tensors.get(matrix_names(spec)[0])
    if tensor is None or not spec.is_recurrent:
        return tensor
    n_directions = spec.weight_shape[0] // tensor.shape[0]
    axes = tuple(
        replace(axis, units=axis.units * n_directions) if axis.dim == 0 else axis for axis in tensor.axes
    )
    return replace(tensor, shape=spec.weight_shape, axes=axes)


def kept_shape(tensor: TensorSpec, kept: Kept) -> tuple[int, ...]:
    """Shape of a tensor once channels are gone.

    Args:
        tensor: the tensor.
        kept: group -> units that stay; groups not named stay whole.

    Returns:
        The shape.
    """
    staying = stays(tensor, kept)
    return tuple(len(staying[dim]) if dim in staying else size for dim, size in enumerate(tensor.shape))


def slimmed_spec(spec: LayerSpec, channels: ChannelMap, kept: Kept) -> LayerSpec:
    """A layer once channels are gone.

    Args:
        spec: the layer as it stands.
        channels: the channel map of the model.
        kept: group -> units that stay; groups not named stay whole.

    Returns:
        The layer with the weight shape, groups, calls, MACs and params that are left (kind "other" keeps its
        calls); ``spec`` itself where no named group touches it.
    """
    weight = matrix_tensor(spec, channels)
    if spec.kind == "other":
        return _slimmed_other(spec, channels, kept)
    if weight is None or not _touches(weight, kept):
        return spec
    rows, columns, *kernel = kept_shape(weight, kept)
    n_groups = spec.groups if spec.groups == 1 else _n_groups_left(spec, stays(weight, kept))
    slimmed = replace(
        spec,
        weight_shape=(rows, columns, *kernel),
        groups=n_groups,
        calls=tuple(_slimmed_call(spec, call, columns * n_groups, rows) for call in spec.calls),
    )
    cost = layer_cost(slimmed)
    return replace(slimmed, macs=cost.macs, params=cost.params)


def model_cost(
    before: Cost,
    layers: Mapping[str, LayerSpec],
    channels: ChannelMap,
    *,
    settings: Mapping[str, Setting],
    kept: Kept,
    dropped: Collection[str],
    has_bias: bool,
) -> Cost:
    """Cost of a whole model with settings, slimmed groups and dropped blocks.

    Args:
        before: cost of the model as it stands.
        layers: every layer by name.
        channels: groups and blocks of the model.
        settings: layer -> setting; the pair replaces the layer once it is slimmed.
        kept: group -> units that stay; groups not named stay whole.
        dropped: blocks replaced by the identity; settings and channels inside them count for nothing.
        has_bias: whether every second factor, and every consumer that is fitted anew, carries a bias; else
            only where the layer has one.

    Returns:
        The cost for one sample, exact.
    """
    # A group that keeps all its units changes nothing: its consumers are not fitted anew, and get no bias.
    kept = {group: units for group, units in kept.items() if len(units) < channels.groups[group].units}
    blocks = outermost_blocks(channels, dropped)
    prefixes = tuple(f"{block.name}." for block in blocks)
    replaced = {name: setting for name, setting in settings.items() if not f"{name}.".startswith(prefixes)}
    cost = before
    for block in blocks:
        cost -= Cost(macs=block.macs, params=block.params, bytes=block.bytes)
    for name, setting in replaced.items():
        spec, slimmed = layers[name], slimmed_spec(layers[name], channels, kept)
        keeps_mean = carries_mean(has_bias=spec.has_bias, plan_has_bias=has_bias)
        pair = setting_cost(slimmed, setting, has_bias=keeps_mean)
        cost += pair - layer_cost(spec)
    if not kept:
        return cost
    pair_tensors = {tensor_name for name in replaced for tensor_name in matrix_names(layers[name])}
    for tensor in channels.tensors.values():
        if tensor.name not in pair_tensors and not tensor.name.startswith(prefixes):
            cost -= _saved(tensor, kept)
    for product in channels.products:
        if not f"{product.module}.".startswith(prefixes):
            cost -= _saved_product(product, channels, kept)
    fitted = (
        layers[name]
        for name in dict.fromkeys(name for group in kept for name in channels.groups[group].consumers)
        if name not in replaced and not f"{name}.".startswith(prefixes)
    )
    with_new_bias = (spec for spec in fitted if consumer_gains_bias(spec, channels, plan_has_bias=has_bias))
    return sum((_bias_cost(slimmed_spec(spec, channels, kept)) for spec in with_new_bias), cost)


def group_share(channels: ChannelMap, group: str, count: int) -> float | None:
    """Share of the MACs of everything a group takes part in that is left when it alone is slimmed.

    Args:
        channels: the channel map of the model.
        group: its name.
        count: how many units stay.

    Returns:
        MACs after / before of every tensor and product that the group touches, as if the first units stayed;
        None where these have no MACs.
    """
    kept = {group: range(count)}
    whole = sum(
        prod(tensor.shape) * tensor.positions
        for tensor in channels.tensors.values()
        if _touches(tensor, kept)
    )
    whole += sum(product.macs for product in channels.products if group in product.groups)
    saved = sum(_saved(tensor, kept).macs for tensor in channels.tensors.values())
    saved += sum(_saved_product(product, channels, kept).macs for product in channels.products)
    return (whole - saved) / whole if whole else None


def _is_staying(axis: AxisUnits, kept: Sequence[int]) -> NDArray[np.bool_]:
    """Which indices of a dimension stay when these units of a group do."""
    units, chosen = np.array(axis.units, dtype=np.int64), np.array(kept, dtype=np.int64)
    # One entry more than the largest unit: indices of no unit, -1, read that one, and stay.
    is_kept = np.zeros(max(units.max(initial=0), chosen.max(initial=0)) + 2, dtype=np.bool_)
    is_kept[chosen] = True
    is_kept[-1] = True
    is_staying: NDArray[np.bool_] = is_kept[units]
    return is_staying


def _touches(tensor: TensorSpec, kept: Kept) -> bool:
    return any(axis.group in kept for axis in tensor.axes)


def _saved(tensor: TensorSpec, kept: Kept) -> Cost:
    """How much less a tensor costs."""
    if not _touches(tensor, kept):
        return _NO_COST
    gone = prod(tensor.shape) - prod(kept_shape(tensor, kept))
    # A buffer is no parameter, but may be a factor of a product.
    params = gone if tensor.is_parameter else 0
    return Cost(macs=gone * tensor.positions, params=params, bytes=params * tensor.itemsize)


def _saved_product(product: ProductSpec, channels: ChannelMap, kept: Kept) -> Cost:
    """How much less a product of two activations costs."""
    slimmed = [group for group in product.groups if group in kept]
    staying = prod(len(kept[group]) for group in slimmed)
    units = prod(channels.groups[group].units for group in slimmed)
    return Cost(macs=product.macs - product.macs * staying // units, params=0, bytes=0)


def _bias_cost(spec: LayerSpec) -> Cost:
    """What the bias of a layer costs."""
    return Cost(macs=0, params=spec.n_outputs, bytes=spec.n_outputs * spec.itemsize)


def outermost_blocks(channels: ChannelMap, dropped: Collection[str]) -> tuple[BlockSpec, ...]:
    """Dropped blocks that are inside no other dropped one: their costs include what is inside them."""
    return tuple(
        channels.blocks[name]
        for name in dict.fromkeys(dropped)
        if not any(name.startswith(f"{other}.") for other in dropped)
    )


def _n_groups_left(spec: LayerSpec, staying: Mapping[int, NDArray[np.int64]]) -> int:
    """Groups of a convolution that have outputs left; the outputs of each lie side by side."""
    outputs_per_group = spec.weight_shape[0] // spec.groups
    return len(np.unique(staying[0] // outputs_per_group)) if 0 in staying else spec.groups


def _slimmed_call(spec: LayerSpec, call: Call, n_inputs: int, n_outputs: int) -> Call:
    """One call with other numbers of channels."""
    # Counted from the right: a sample may come without a batch dimension.
    from_right = len(spec.kernel) + 1
    if spec.is_recurrent:
        # A layer gives as many outputs as it has units, each of which has several rows.
        n_outputs = n_outputs * call.output_shape[-1] // spec.weight_shape[0] if call.output_shape else 0

    def with_channels(shape: tuple[int, ...], n_channels: int) -> tuple[int, ...]:
        dim = len(shape) - from_right
        return (*shape[:dim], n_channels, *shape[dim + 1 :]) if dim >= 0 else shape

    return Call(
        input_shape=with_channels(call.input_shape, n_inputs),
        output_shape=with_channels(call.output_shape, n_outputs),
    )


def _slimmed_other(spec: LayerSpec, channels: ChannelMap, kept: Kept) -> LayerSpec:
    """A layer that no method knows: what it loses follows from its tensors."""
    slimmed = [
        tensor
        for tensor in channels.tensors.values()
        if tensor.name.rpartition(".")[0] == spec.name and _touches(tensor, kept)
    ]
    saved = sum((_saved(tensor, kept) for tensor in slimmed), _NO_COST)
    weight = next((tensor for tensor in slimmed if tensor.name == f"{spec.name}.weight"), None)
    return (
        replace(
            spec,
            weight_shape=spec.weight_shape if weight is None else kept_shape(weight, kept),
            macs=spec.macs - saved.macs,
            params=spec.params - saved.params,
        )
        if slimmed
        else spec
    )
