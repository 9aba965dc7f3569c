# SPDX-License-Identifier: Apache-2.0
"""Computed weights become plain, on one module, and can be put back."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from slimrank.surgery import copy_model, has_computed_weights, put_back, quiet_copy, store_computed_weights


class Doubled(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


def masked(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", amount=0.3)
    return prune.random_unstructured(layer, "bias", amount=0.3)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.utils.weight_norm(layer)


COMPUTED = [parametrizations.weight_norm, spectral_norm, old_weight_norm, masked]


@pytest.mark.parametrize("computed", COMPUTED)
def test_stored_and_put_back(computed: Callable[[nn.Module], nn.Module]) -> None:
    model = quiet_copy(nn.Sequential(computed(nn.Linear(4, 5))))
    layer, x = model[0], torch.ones(2, 4)
    expected, keys = model(x), model.state_dict().keys()
    assert has_computed_weights(layer)
    with put_back(model):
        store_computed_weights(layer)
        assert not has_computed_weights(layer)
        assert layer.state_dict().keys() == {"weight", "bias"}
        assert all(type(p) is nn.Parameter and not p.requires_grad for p in layer.parameters())
        torch.testing.assert_close(model(x), expected)
    assert has_computed_weights(layer)
    assert model.state_dict().keys() == keys
    torch.testing.assert_close(model(x), expected)


def test_a_parametrised_buffer_stays_a_buffer() -> None:
    norm = nn.BatchNorm1d(3).eval()
    parametrize.register_parametrization(norm, "running_mean", Doubled())
    norm.parametrizations.running_mean.original.fill_(1)
    store_computed_weights(norm)
    assert type(norm) is nn.BatchNorm1d
    assert norm._buffers["running_mean"].tolist() == [2.0] * 3


@pytest.mark.parametrize("computed", COMPUTED)
def test_a_module_that_was_copied_before_goes_on_computing(
    computed: Callable[[nn.Module], nn.Module],
) -> None:
    layer = computed(nn.Linear(4, 5)).eval()
    expected = layer(torch.ones(2, 4))
    store_computed_weights(copy_model(layer))
    assert has_computed_weights(layer)
    assert torch.equal(layer(torch.ones(2, 4)), expected)
