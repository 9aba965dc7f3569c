# SPDX-License-Identifier: Apache-2.0
"""Batch norms computed into the layer before them."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd


def fold_norm(layer: nn.Module, norm: nn.Module) -> None:
    """Gives a layer the weights with which it computes what the norm makes of its output (in place).

    The parameters are exchanged, not written to; the norm stays where it is.

    Args:
        layer: Linear, convolution or transposed convolution, of any groups; its output channels are those of
            the norm.
        norm: batch norm with running statistics, with or without an affine part.
    """
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"{type(norm).__name__} keeps no running statistics")
    weight, bias = layer.weight, layer.bias
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight tensor")
    # y = (x - mean) * scale + shift, each (C_out,)
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if isinstance(norm.weight, Tensor):
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if isinstance(bias, Tensor):
        shift = shift + bias.detach().double() * scale
    if isinstance(norm.bias, Tensor):
        shift = shift + norm.bias.detach().double()
    layer.weight = _like(weight, _scaled(layer, weight.detach().double(), scale))
    layer.bias = _like(bias if isinstance(bias, Tensor) else weight, shift)


def _scaled(layer: nn.Module, weight: Tensor, scale: Tensor) -> Tensor:
    """A weight, float64, with each output channel scaled."""
    if not isinstance(layer, _ConvTransposeNd):
        return weight * scale.view(-1, *(1,) * (weight.ndim - 1))
    # (C_in, C_out / groups, *kernel), the inputs of a group side by side
    by_group = weight.reshape(layer.groups, -1, *weight.shape[1:])
    return (by_group * scale.view(layer.groups, 1, -1, *(1,) * (weight.ndim - 2))).reshape(weight.shape)


def _like(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)
