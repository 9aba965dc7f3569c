# SPDX-License-Identifier: Apache-2.0
"""What applying refuses, where a model is not what the plan says."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from seams import Fit, affine_of, checked_layer, fill_pair
from slimrank import OptionError
from slimrank.methods import Pair


def test_a_norm_has_statistics() -> None:
    norm = nn.BatchNorm1d(2, track_running_stats=False)
    with pytest.raises(TypeError, match="bn is a BatchNorm1d without running statistics"):
        affine_of({"bn": norm}, "bn")


@pytest.mark.parametrize("affine", [True, False])
def test_gain_and_offset_are_those_of_the_norm(affine: bool, rng: torch.Generator) -> None:
    norm = nn.BatchNorm1d(3, affine=affine).eval()
    norm.running_mean.copy_(torch.randn(3, generator=rng))
    norm.running_var.copy_(torch.rand(3, generator=rng) + 0.5)
    x = torch.randn(5, 3, generator=rng)
    gain, offset = affine_of({"bn": norm}, "bn")
    with torch.no_grad():
        torch.testing.assert_close(x * gain + offset, norm(x))
    gain, offset = affine_of({"bn": norm}, None)
    assert (float(gain), float(offset)) == (1.0, 0.0)


def test_a_pair_goes_into_the_container_that_was_put_there() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    work = SimpleNamespace(spec=SimpleNamespace(name="fc"), norm=None)
    pair = Pair(form="linear", first=torch.zeros(1, 2), second=torch.zeros(2, 1))
    fit = Fit(factors=pair, bias=None, kind="weights")
    with pytest.raises(TypeError, match="fc is a Linear, not the container that was put there"):
        fill_pair(model, work, model["fc"], fit)  # type: ignore[arg-type]


@pytest.mark.parametrize("layer", [nn.Linear(3, 2), nn.ReLU(), nn.BatchNorm1d(2, affine=False)])
def test_a_layer_still_to_come_keeps_its_shape(layer: nn.Module) -> None:
    work = SimpleNamespace(spec=SimpleNamespace(name="fc"), shape=(2, 2))
    if not hasattr(layer, "weight"):
        layer.weight = None
    with pytest.raises(OptionError, match=r"layer 'fc': on_layer put a \w+ there .* with a weight \[2, 2\]"):
        checked_layer(layer, work)  # type: ignore[arg-type]
