# SPDX-License-Identifier: Apache-2.0
"""What is not run twice."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seams import Comparison, forbid_masked_run
from slimrank.forward import as_batch


def test_the_masked_model_does_not_run_where_the_slimmed_one_raises(
    map_of: Callable, group_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wired(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).view(2, 6))

    model = Wired(nn.Linear(3, 6), nn.Linear(6, 2))
    axes = {"0.weight": [("0", 0, "output", range(6))], "0.bias": [("0", 0, "output", range(6))]}
    channels = map_of(model, [group_of("0", 6)], axes | {"1.weight": [("0", 1, "input", range(6))]})
    forbid_masked_run(monkeypatch)
    problem = Comparison(model, as_batch(torch.zeros(2, 3)), ()).problem(channels, {"0": (0, 1)})
    assert problem is not None
    assert problem.kind == "raises"
    assert problem.line.startswith("test_compare.py:")
