# SPDX-License-Identifier: Apache-2.0
"""Layers as matrices: what one row of inputs becomes, and how a matrix becomes a layer again."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimrank.cost import MAX_EXACT_NUMBERS
from slimrank.records import Call
from slimrank.surgery._replace import replace_tensors


def dense_weight(layer: nn.Module) -> Tensor:
    """Weight of a layer as a matrix.

    Args:
        layer: with a ``weight``.

    Returns:
        (O, D) float64, of more than 2^25 numbers float32; not to be changed, it may be the layer's own.
        Outputs by columns, C_in times kernel; of a convolution in groups, a block of it per group. A
        transposed convolution is what every position of its input gives to the positions that it reaches:
        (C_out x kernel, C_in). Of a recurrent layer, the input matrices of both directions, one below the
        other.
    """
    weight = torch.cat([part.detach() for part in input_matrices(layer)]) if _is_recurrent(layer) else None
    weight = _weight_of(layer).detach() if weight is None else weight
    weight = weight.to(torch.float32 if weight.numel() > MAX_EXACT_NUMBERS else torch.float64).flatten(1)
    if isinstance(layer, _ConvTransposeNd):
        return weight.T.contiguous()
    groups = groups_of(layer)
    return weight if groups == 1 else torch.block_diag(*weight.chunk(groups))


def groups_of(layer: nn.Module) -> int:
    """Blocks on the diagonal of a layer's matrix."""
    return layer.groups if isinstance(layer, _ConvNd) and not isinstance(layer, _ConvTransposeNd) else 1


def has_weight(layer: nn.Module, shape: Sequence[int]) -> bool:
    """Whether a layer has a weight of this shape; a recurrent one input matrices that have it together."""
    if _is_recurrent(layer):
        return tuple(dense_weight(layer).shape) == tuple(shape)
    weight = getattr(layer, "weight", None)
    return isinstance(weight, Tensor) and tuple(weight.shape) == tuple(shape)


def bias_of(layer: nn.Module) -> Tensor | None:
    """Bias of a layer, detached; of a recurrent one, what is added to its input matrices; None for none."""
    if _is_recurrent(layer):
        biases = _by_direction(layer, "bias_ih")
        return torch.cat([bias.detach() for bias in biases]) if biases else None
    return layer.bias.detach() if isinstance(layer.bias, Tensor) else None


def input_matrices(layer: nn.Module) -> list[Tensor]:
    """What a recurrent layer makes of its inputs: a matrix for each direction."""
    return _by_direction(layer, "weight_ih")


def _is_recurrent(layer: nn.Module) -> bool:
    return isinstance(layer, nn.RNNBase)


def _by_direction(layer: nn.Module, role: str) -> list[Tensor]:
    """Parameters of the first layer of a recurrent one, by direction; none where it lacks them."""
    found = (layer._parameters.get(f"{role}_l0{end}") for end in ("", "_reverse"))
    return [parameter for parameter in found if parameter is not None]


def _set_inputs(layer: nn.Module, role: str, values: Tensor) -> None:
    """Gives the first layer of a recurrent one other parameters, by direction one below the other."""
    old = _by_direction(layer, role)
    for part, known in zip(values.chunk(len(old)), old, strict=True):
        new = nn.Parameter(part.to(known.dtype).clone(), requires_grad=known.requires_grad)
        replace_tensors(layer, {id(known): new})


def set_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a layer another weight and bias, new parameters in its own dtype and shape (in place).

    Args:
        layer: with a ``weight``.
        weight: (O, D), as ``dense_weight`` gives it.
        bias: (C_out,); made where the layer has none; None leaves what it has.
    """
    if _is_recurrent(layer):
        _set_inputs(layer, "weight_ih", weight)
        if bias is not None:
            _set_inputs(layer, "bias_ih", bias)
        return
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
