# SPDX-License-Identifier: Apache-2.0
"""Convolutions in groups that lose some inputs of every group: fitted anew, block by block."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.graph import as_batch, count_cost, slim

PRUNING = ("channel_pruning",)


class Fixed(nn.Module):
    """What the groups make has to stay, since a norm runs over it."""

    def __init__(self, *, has_bias: bool = True) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 16, 3, padding=1, groups=4, bias=has_bias)
        self.norm = nn.GroupNorm(1, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(self.a(x).relu())))


class Bottleneck(nn.Module):
    """As in ResNeXt: whole groups may go, and places inside of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.b = nn.Conv2d(24, 24, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(self.a(x).relu())).relu())


NETS = {"fixed": Fixed, "fixed, no bias": lambda: Fixed(has_bias=False), "bottleneck": Bottleneck}


def images(seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn((16, 3, 10, 10), generator=rng).cumsum(-1) * 0.3 for _ in range(6)]


@cache
def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = NETS[name]().train()
    for batch in images(7):
        model(batch)
    return model.eval()


@cache
def studied(name: str) -> sr.Study:
    return sr.study(net(name), images(0), methods=PRUNING, draws=2, progress=False)


def error(model: nn.Module, name: str) -> float:
    with torch.no_grad():
        return sum(float((model(x) - net(name)(x)).square().mean()) for x in images(1))


@pytest.mark.parametrize("name", NETS)
def test_inputs_of_every_group_go_and_the_blocks_are_fitted(name: str, tmp_path: Path) -> None:
    study = studied(name)
    (inner,) = [one.name for one in study.structure.channels.groups.values() if one.consumers == ("b",)]
    plan = sr.Plan.manual(study, {inner: ("channel_pruning", 0.5)})
    result = study.apply(plan)
    assert result.model.b.weight.shape[1] == net(name).b.weight.shape[1] // 2
    assert result.after == plan.after
    assert count_cost(result.model, as_batch(images(1)[0][:1])) == plan.after

    cut = copy.deepcopy(net(name))
    slim(cut, study.structure.channels, plan.groups)
    assert error(result.model, name) < 0.5 * error(cut, name)
    assert result.divergence == pytest.approx(plan.damage or 0.0, rel=0.4)

    result.save(tmp_path / "result")
    loaded = sr.load(tmp_path / "result", model=copy.deepcopy(net(name)))
    assert error(loaded, name) == error(result.model, name)
    assert sr.apply(net(name), plan, progress=False).after == plan.after


def test_whole_groups_and_places_inside_go_together() -> None:
    study = studied("bottleneck")
    groups = {one.name: one for one in study.structure.channels.groups.values() if one.reason is None}
    (inner,) = [name for name, one in groups.items() if one.consumers == ("b",)]
    (outer,) = [name for name, one in groups.items() if name != inner and one.units == 4]
    plan = sr.Plan.manual(study, {inner: ("channel_pruning", 0.5), outer: ("channel_pruning", 0.5)})
    result = study.apply(plan)
    assert result.model.b.groups == 2
    assert result.model.b.weight.shape == (12, 3, 3, 3)
    assert result.after == plan.after
    cut = copy.deepcopy(net("bottleneck"))
    slim(cut, study.structure.channels, plan.groups)
    assert error(result.model, "bottleneck") < 0.8 * error(cut, "bottleneck")
