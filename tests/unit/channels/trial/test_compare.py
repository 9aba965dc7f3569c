# SPDX-License-Identifier: Apache-2.0
"""Light copies, and what is not run twice."""

from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from seams import SlimBench, forbid_masked_run, light_copy
from slimrank.forward import as_batch


def test_light_copies_share_parameters_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model.seen = model[0].seen = OrderedDict()
    model.kept = {"one": [1]}
    copy = light_copy(model)
    assert all(a is b for a, b in zip(model.parameters(), copy.parameters(), strict=True))
    assert not any(a is b for a, b in zip(model.buffers(), copy.buffers(), strict=True))
    copy[0].register_forward_hook(lambda *_: None)
    copy[1].register_buffer("scratch", torch.zeros(1), persistent=False)
    copy.seen["here"] = copy.kept["one"].append(2)
    assert copy.seen is copy[0].seen
    assert (model.seen, model.kept, model[0]._forward_hooks) == ({}, {"one": [1]}, {})
    assert not hasattr(model[1], "scratch")
    assert not model[1]._non_persistent_buffers_set


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
    problem = SlimBench(model, as_batch(torch.zeros(2, 3)), ()).problem(channels, {"0": (0, 1)})
    assert problem is not None
    assert problem.kind == "raises"
    assert problem.line.startswith("test_compare.py:")
