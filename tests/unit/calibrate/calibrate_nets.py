# SPDX-License-Identifier: Apache-2.0
"""A small net, its layers and its data, for tests of what is collected in one pass over the data."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn

from slimrank.calibrate import Feed, open_feed
from slimrank.capture import describe_layers
from slimrank.records import Call, LayerSpec


class Twice(nn.Module):
    """One layer in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(5, 5)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(x).tanh()).tanh())


def vectors(rng: torch.Generator) -> Tensor:
    """Nine samples for it."""
    return torch.randn((9, 5), dtype=torch.float64, generator=rng)


def feed_of(model: nn.Module, batches: Iterable[object], output_elements: int = 4) -> Feed:
    """Batches of a model, some of their samples held out."""
    return open_feed(
        batches, None, model, can_split=True, output_elements=output_elements, holdout=0.3, seed=0
    )


def specs_of(model: nn.Module, calls: int = 1) -> list[LayerSpec]:
    """Layers that a method knows, as if each were called so many times."""
    call = Call(input_shape=(1,), output_shape=(1,))
    specs = [replace(spec, calls=(call,) * calls) for spec in describe_layers(model)]
    return [spec for spec in specs if spec.kind != "other"]


def fill(model: nn.Module, rng: torch.Generator) -> nn.Module:
    """Random weights; double precision leaves only the sums in float32."""
    model.double().eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=rng) / 2)
    return model
