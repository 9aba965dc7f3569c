# SPDX-License-Identifier: Apache-2.0
"""What applying refuses, where a model is not what the plan says."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from seams import Fit, checked_layer, fill_pair
from slimrank import OptionError
from slimrank.methods import Pair


def test_a_pair_goes_into_the_container_that_was_put_there() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(2, 2)})
    spec = SimpleNamespace(name="fc")
    work = SimpleNamespace(spec=spec, slimmed=spec, norm=None)
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
