# SPDX-License-Identifier: Apache-2.0
"""Layers as matrices: what one row of inputs becomes, and how a matrix becomes a layer again."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimrank.cost import MAX_EXACT_NUMBERS
from slimrank.records import Call


def dense_weight(layer: nn.Module) -> Tensor:
    """Weight of a layer as a matrix.

    Args:
        layer: with a ``weight``.

    Returns:
        (O, D) float64, of more than 2^25 numbers float32; not to be changed, it may be the layer's own.
        Outputs by columns, C_in times kernel; of a convolution in groups, a block of it per group. A
        transposed convolution is what every position of its input gives to the positions that it reaches:
        (C_out x kernel, C_in).
    """
    weight = _weight_of(layer).detach()
    weight = weight.to(torch.float32 if weight.numel() > MAX_EXACT_NUMBERS else torch.float64).flatten(1)
    if isinstance(layer, _ConvTransposeNd):
        return weight.T.contiguous()
    groups = groups_of(layer)
    return weight if groups == 1 else torch.block_diag(*weight.chunk(groups))


def groups_of(layer: nn.Module) -> int:
    """Blocks on the diagonal of a layer's matrix."""
    return layer.groups if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd) else 1


def set_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a layer another weight and bias, new parameters in its own dtype and shape (in place).

    Args:
        layer: with a ``weight``.
        weight: (O, D), as ``dense_weight`` gives it.
        bias: (C_out,); made where the layer has none; None leaves what it has.
    """
    old = _weight_of(layer)
    groups = groups_of(layer)
    if isinstance(layer, _ConvTransposeNd):
        weight = weight.T.contiguous()
    elif groups > 1:
        # A grouped kernel stores, of each group's rows, only the block on the diagonal.
        rows = zip(weight.chunk(groups), range(groups), strict=True)
        weight = torch.cat([block.chunk(groups, dim=1)[group] for block, group in rows])
    layer.weight = nn.Parameter(weight.reshape(old.shape).to(old.dtype), requires_grad=old.requires_grad)
    if bias is not None:
        known = layer.bias if isinstance(layer.bias, Tensor) else old
        layer.bias = nn.Parameter(bias.to(known.dtype), requires_grad=known.requires_grad)


def tap_shares(layer: nn.Module, calls: Sequence[Call]) -> Tensor:
    """Of the positions that a transposed convolution makes, the share that each tap of its kernel reaches.

    Args:
        layer: a transposed convolution.
        calls: of the layer.

    Returns:
        (taps,) float64, about one in ``stride``; less where the map is small or padding cuts taps off.
    """
    if not isinstance(layer, _ConvTransposeNd):
        raise TypeError(f"{type(layer).__name__} is no transposed convolution")
    dims = len(layer.kernel_size)
    reached = torch.zeros(prod(layer.kernel_size), dtype=torch.float64)
    for call in calls:
        # Of each tap, at how many positions it lands inside the output; a product over the dimensions.
        counts = torch.ones(1, dtype=torch.float64)
        for dim in range(dims):
            size, made = call.input_shape[dim - dims], call.output_shape[dim - dims]
            start = torch.arange(size) * layer.stride[dim] - int(layer.padding[dim])
            # (taps, size): where each tap of this dimension puts each position of the input.
            position = start + torch.arange(layer.kernel_size[dim])[:, None] * layer.dilation[dim]
            n_inside = ((position >= 0) & (position < made)).sum(1).double()
            counts = (counts[:, None] * n_inside).flatten()
        reached += counts
    return reached / max(1, sum(prod(call.output_shape[-dims:]) for call in calls))


def bias_of_taps(layer: nn.Module, calls: Sequence[Call], missed: Tensor) -> Tensor:
    """The bias that makes up, on average over positions, for what the taps of a transposed convolution miss.

    Args:
        layer: a transposed convolution.
        calls: of the layer.
        missed: (C_out x taps,) float64, mean of what every row of its matrix misses.

    Returns:
        (C_out,) float64.
    """
    shares = tap_shares(layer, calls).to(missed)
    return missed.view(-1, len(shares)) @ shares


def _weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight tensor")
    return weight
