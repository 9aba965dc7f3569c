# SPDX-License-Identifier: Apache-2.0
"""A norm computed into weights: the parameters are exchanged, and what cannot be folded is refused."""

import pytest
import torch
from torch import nn

from slimrank.surgery import fold_norm


def test_parameters_are_exchanged_and_the_norm_stays() -> None:
    layer, norm = nn.Linear(3, 4).requires_grad_(False), nn.BatchNorm1d(4).eval()
    norm.running_mean.fill_(2)
    norm.running_var.fill_(3 - norm.eps)
    weight, bias = layer.weight, layer.bias
    before = weight.tolist(), bias.tolist()
    fold_norm(layer, norm)
    assert (weight.tolist(), bias.tolist()) == before
    torch.testing.assert_close(layer.weight, weight / 3**0.5)
    torch.testing.assert_close(layer.bias, (bias - 2) / 3**0.5)
    assert not layer.weight.requires_grad
    assert norm.running_mean.tolist() == [2.0] * 4


def test_what_cannot_be_folded_is_refused() -> None:
    with pytest.raises(TypeError, match="BatchNorm1d keeps no running statistics"):
        fold_norm(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False))
    with pytest.raises(TypeError, match="LayerNorm keeps no running statistics"):
        fold_norm(nn.Linear(3, 4), nn.LayerNorm(4))
    layer = nn.Linear(3, 4)
    layer.weight = None
    with pytest.raises(TypeError, match="Linear has no weight tensor"):
        fold_norm(layer, nn.BatchNorm1d(4))
