# SPDX-License-Identifier: Apache-2.0
"""A recurrent layer behind a narrow matrix: its second factor."""

import copy

import torch
from torch import Tensor, nn


def behind_matrix(layer: nn.Module, rank: int) -> nn.RNNBase:
    """A copy of a recurrent layer that reads fewer inputs.

    Args:
        layer: to be copied: all but its input matrices stays.
        rank: inputs of the copy.

    Returns:
        The copy; its input matrices, one for each direction, are zero.
    """
    if not isinstance(layer, nn.RNNBase):
        raise TypeError(f"{type(layer).__name__} is no recurrent layer")
    new = copy.deepcopy(layer)
    new.input_size = rank
    for key, weight in _inputs(new, "weight_ih").items():
        setattr(new, key, nn.Parameter(weight.new_zeros(len(weight), rank), weight.requires_grad))
    return new


def set_inputs(layer: nn.RNNBase, weight: Tensor, bias: Tensor | None) -> None:
    """Gives a recurrent layer other input matrices (in place).

    Args:
        layer: of any dtype, which it keeps.
        weight: (O, R), those of both directions, one below the other.
        bias: (O,), what is added to their products; None leaves what it has.
    """
    for role, values in (("weight_ih", weight), ("bias_ih", bias)):
        old = _inputs(layer, role)
        if values is None or not old:
            continue
        for (key, known), part in zip(old.items(), values.chunk(len(old)), strict=True):
            data = part.reshape(known.shape).to(device=known.device, dtype=known.dtype)
            setattr(layer, key, nn.Parameter(data.clone(), known.requires_grad))


def _inputs(layer: nn.RNNBase, role: str) -> dict[str, Tensor]:
    """Parameters of the first layer of a recurrent one, by their names."""
    found = {key: layer._parameters.get(key) for key in (f"{role}_l0", f"{role}_l0_reverse")}
    return {key: parameter for key, parameter in found.items() if isinstance(parameter, torch.Tensor)}
