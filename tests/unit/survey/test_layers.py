# SPDX-License-Identifier: Apache-2.0
"""Curves of layers, one after the other."""

import pytest
import torch
from torch import nn

import slimrank as sr
from seams import watch_live_targets


def test_the_matrices_of_a_layer_are_freed_before_the_next_one(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    alive = watch_live_targets(monkeypatch)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    batches = [(torch.randn(16, 6, generator=rng),) for _ in range(2)]
    sr.study(model, batches, methods=("weight_svd",), progress=False)
    assert alive == [0, 0, 0]
