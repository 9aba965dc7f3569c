# SPDX-License-Identifier: Apache-2.0
"""Layers as matrices: what one row of inputs becomes, and how a matrix becomes a layer again."""

import math
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd


def dense_weight(layer: nn.Module) -> Tensor:
    """Weight of a layer as a matrix.

    Args:
        layer: with a ``weight``.

    Returns:
        (O, D) float64: outputs by columns, C_in times kernel. A transposed convolution is what every place of
        its input gives to all places that it reaches: (C_out x kernel, C_in).
    """
    weight = _weight_of(layer).detach().double().flatten(1)
    return weight.T.contiguous() if isinstance(layer, _ConvTransposeNd) else weight


def dense_bias(layer: nn.Module) -> Tensor | None:
    """Bias of a layer, by the rows of its matrix.

    Args:
        layer: with a ``weight``.

    Returns:
        (O,) float64; of a transposed convolution, (C_out x kernel,), equal parts that sum up to the bias.
        None where the layer has none.
    """
    if not isinstance(layer.bias, Tensor):
        return None
    bias = layer.bias.detach().double()
    if not isinstance(layer, _ConvTransposeNd):
        return bias
    return (bias / _contributions(layer)).repeat_interleave(prod(layer.kernel_size))


def folded_bias(layer: nn.Module, bias: Tensor) -> Tensor:
    """The bias of a layer that comes nearest to one by the rows of its matrix: ``dense_bias`` undone.

    Args:
        layer: with a ``weight``.
        bias: (O,), or (C_out x kernel,) for a transposed convolution, whose outputs get the mean of what
            reaches them.

    Returns:
        (O,), or (C_out,).
    """
    if not isinstance(layer, _ConvTransposeNd):
        return bias
    mean: Tensor = bias.unflatten(0, (-1, prod(layer.kernel_size))).mean(1)
    return mean * _contributions(layer)


def set_weights(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a layer another weight and bias, new parameters in its own dtype and layout (in place).

    Args:
        layer: with a ``weight``.
        weight: (O, D), as ``dense_weight`` gives it.
        bias: (O,), as ``dense_bias`` gives it; made where the layer has none; None leaves what it has.
    """
    own = _weight_of(layer)
    if isinstance(layer, _ConvTransposeNd):
        weight = weight.T
    layer.weight = nn.Parameter(weight.reshape(own.shape).to(own.dtype), requires_grad=own.requires_grad)
    if bias is not None:
        known = layer.bias if isinstance(layer.bias, Tensor) else own
        layer.bias = nn.Parameter(folded_bias(layer, bias).to(known.dtype), requires_grad=known.requires_grad)


def dense_root(layer: nn.Module, root: Tensor) -> Tensor:
    """The root of a layer's output metric, by the rows of its matrix.

    Args:
        layer: with a ``weight``.
        root: (C_out, C_out) float64, of the second moments of gradients, summed over the places of a sample.

    Returns:
        The root itself; (C_out x kernel, C_out x kernel) for a transposed convolution: through one tap it
        reaches one in ``stride`` places, and what taps have to do with each other is left out.
    """
    if not isinstance(layer, _ConvTransposeNd):
        return root
    eye = torch.eye(prod(layer.kernel_size), dtype=root.dtype, device=root.device)
    spread: Tensor = torch.kron(root, eye) / math.sqrt(prod(layer.stride))
    return spread


def _contributions(layer: _ConvTransposeNd) -> float:
    """How many rows of the matrix reach one output, on average."""
    return prod(layer.kernel_size) / prod(layer.stride)


def _weight_of(layer: nn.Module) -> Tensor:
    weight = layer.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight tensor")
    return weight
