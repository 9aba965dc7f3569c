# SPDX-License-Identifier: Apache-2.0
"""What channels that go leave of tensors, layers and the whole model."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod

import numpy as np
from numpy.typing import NDArray

from slimrank.cost._formulas import layer_cost, pair_cost
from slimrank.cost._new_bias import carries_mean, consumer_gains_bias
from slimrank.records import (
    AxisUnits,
    BlockSpec,
    Call,
    ChannelMap,
    Cost,
    LayerSpec,
    ProductSpec,
    Setting,
    TensorSpec,
)

Kept = Mapping[str, Sequence[int]]

_NOTHING = Cost(macs=0, params=0, bytes=0)


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
            masks[axis.dim] = masks.get(axis.dim, True) & _is_alive(axis, kept[axis.group])
    return {dim: np.flatnonzero(mask) for dim, mask in masks.items()}


def query_scales(tensor: TensorSpec, kept: Kept) -> dict[int, NDArray[np.float64]]:
    """By how much what stays of a tensor is multiplied, since it makes queries of narrower heads.

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
            own = np.ones(len(axis.units))
            own[list(axis.queries)] = np.sqrt(_is_alive(axis, kept[axis.group])[list(axis.queries)].mean())
            scales[axis.dim] = scales.get(axis.dim, 1.0) * own
    staying = stays(tensor, kept) if scales else {}
    return {dim: scale[staying[dim]] for dim, scale in scales.items()}


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
        channels: of the model.
        kept: group -> units that stay; groups not named stay whole.

    Returns:
        The layer with the weight shape, groups, calls, MACs and params that are left (kind "other" keeps its
        calls); ``spec`` itself where no named group touches it.
    """
    weight = channels.tensors.get(f"{spec.name}.weight")
    if spec.kind == "other":
        return _slimmed_other(spec, channels, kept)
    if weight is None or not _touches(weight, kept):
        return spec
    rows, columns, *kernel = kept_shape(weight, kept)
    groups = spec.groups if spec.groups == 1 else _groups_left(spec, stays(weight, kept))
    slimmed = replace(
        spec,
        weight_shape=(rows, columns, *kernel),
        groups=groups,
        calls=tuple(_slimmed_call(spec, call, columns * groups, rows) for call in spec.calls),
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
        before: of the model as it stands.
        layers: every layer by name.
        channels: groups and blocks of the model.
        settings: layer -> setting; the pair replaces the slimmed layer.
        kept: group -> units that stay; groups not named stay whole.
        dropped: blocks replaced by the identity; nothing inside them counts otherwise.
        has_bias: whether every second factor, and every consumer that is fitted anew, carries a bias; else
            only where the layer has one.

    Returns:
        The cost for one sample, exact.
    """
    kept = {group: units for group, units in kept.items() if len(units) < channels.groups[group].units}
    blocks = _outermost(channels, dropped)
    prefixes = tuple(f"{block.name}." for block in blocks)
    standing = {name: setting for name, setting in settings.items() if not f"{name}.".startswith(prefixes)}
    cost = before
    for block in blocks:
        cost -= Cost(macs=block.macs, params=block.params, bytes=block.bytes)
    for name, setting in standing.items():
        spec, slimmed = layers[name], slimmed_spec(layers[name], channels, kept)
        keeps_mean = carries_mean(has_bias=spec.has_bias, plan_has_bias=has_bias)
        pair = pair_cost(slimmed, setting.form, setting.rank, has_bias=keeps_mean)
        cost += pair - layer_cost(spec)
    if not kept:
        return cost
    counted = {f"{name}.{leaf}" for name in standing for leaf in ("weight", "bias")}
    for tensor in channels.tensors.values():
        if tensor.name not in counted and not tensor.name.startswith(prefixes):
            cost -= _lost(tensor, kept)
    for product in channels.products:
        if not f"{product.module}.".startswith(prefixes):
            cost -= _lost_product(product, channels, kept)
    fitted = (
        layers[name]
        for name in dict.fromkeys(name for group in kept for name in channels.groups[group].consumers)
        if name not in standing and not f"{name}.".startswith(prefixes)
    )
    new = (spec for spec in fitted if consumer_gains_bias(spec, channels, plan_has_bias=has_bias))
    return sum((_bias_cost(slimmed_spec(spec, channels, kept)) for spec in new), cost)


def group_share(channels: ChannelMap, group: str, count: int) -> float | None:
    """What is left of the MACs that a group takes part in, when it alone is slimmed.

    Args:
        channels: of the model.
        group: its name.
        count: units that stay.

    Returns:
        MACs after / before of every tensor and product that the group touches, as if the first units stayed;
        None where these take no MACs.
    """
    kept = {group: range(count)}
    whole = sum(prod(one.shape) * one.positions for one in channels.tensors.values() if _touches(one, kept))
    whole += sum(product.macs for product in channels.products if group in product.groups)
    lost = sum(_lost(tensor, kept).macs for tensor in channels.tensors.values())
    lost += sum(_lost_product(product, channels, kept).macs for product in channels.products)
    return (whole - lost) / whole if whole else None


def _is_alive(axis: AxisUnits, kept: Sequence[int]) -> NDArray[np.bool_]:
    """Which indices of a dimension stay when these units of a group do."""
    units, chosen = np.array(axis.units, dtype=np.int64), np.array(kept, dtype=np.int64)
    # One more than the largest unit: there -1 looks up, and what belongs to no unit stays.
    alive = np.zeros(max(units.max(initial=0), chosen.max(initial=0)) + 2, dtype=np.bool_)
    alive[chosen] = True
    alive[-1] = True
    staying: NDArray[np.bool_] = alive[units]
    return staying


def _touches(tensor: TensorSpec, kept: Kept) -> bool:
    return any(axis.group in kept for axis in tensor.axes)


def _lost(tensor: TensorSpec, kept: Kept) -> Cost:
    """What a tensor costs less."""
    if not _touches(tensor, kept):
        return _NOTHING
    gone = prod(tensor.shape) - prod(kept_shape(tensor, kept))
    # A buffer is no parameter, but may be a factor of a product.
    params = gone if tensor.is_parameter else 0
    return Cost(macs=gone * tensor.positions, params=params, bytes=params * tensor.itemsize)


def _lost_product(product: ProductSpec, channels: ChannelMap, kept: Kept) -> Cost:
    """What a product of two activations costs less."""
    slimmed = [group for group in product.groups if group in kept]
    staying = prod(len(kept[group]) for group in slimmed)
    units = prod(channels.groups[group].units for group in slimmed)
    return Cost(macs=product.macs - product.macs * staying // units, params=0, bytes=0)


def _bias_cost(spec: LayerSpec) -> Cost:
    """What the bias of a layer costs."""
    return Cost(macs=0, params=spec.n_outputs, bytes=spec.n_outputs * spec.itemsize)


def _outermost(channels: ChannelMap, dropped: Collection[str]) -> tuple[BlockSpec, ...]:
    """Dropped blocks that stand in no other one: these count what is inside them."""
    return tuple(
        channels.blocks[name]
        for name in dict.fromkeys(dropped)
        if not any(name.startswith(f"{other}.") for other in dropped)
    )


def _groups_left(spec: LayerSpec, staying: Mapping[int, NDArray[np.int64]]) -> int:
    """Groups of a convolution: the outputs of one stand together, so those whose outputs stay."""
    per_group = spec.weight_shape[0] // spec.groups
    return len(np.unique(staying[0] // per_group)) if 0 in staying else spec.groups


def _slimmed_call(spec: LayerSpec, call: Call, inputs: int, outputs: int) -> Call:
    """One call with other numbers of channels."""
    # Counted from the right: a sample may come without a batch dimension.
    place = len(spec.kernel) + 1

    def with_channels(shape: tuple[int, ...], count: int) -> tuple[int, ...]:
        at = len(shape) - place
        return (*shape[:at], count, *shape[at + 1 :]) if at >= 0 else shape

    return Call(
        input_shape=with_channels(call.input_shape, inputs),
        output_shape=with_channels(call.output_shape, outputs),
    )


def _slimmed_other(spec: LayerSpec, channels: ChannelMap, kept: Kept) -> LayerSpec:
    """A layer that no method knows: its own tensors say what it loses."""
    own = [
        tensor
        for tensor in channels.tensors.values()
        if tensor.name.rpartition(".")[0] == spec.name and _touches(tensor, kept)
    ]
    lost = sum((_lost(tensor, kept) for tensor in own), _NOTHING)
    weight = next((tensor for tensor in own if tensor.name == f"{spec.name}.weight"), None)
    return (
        replace(
            spec,
            weight_shape=spec.weight_shape if weight is None else kept_shape(weight, kept),
            macs=spec.macs - lost.macs,
            params=spec.params - lost.params,
        )
        if own
        else spec
    )
