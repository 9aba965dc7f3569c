# SPDX-License-Identifier: Apache-2.0
"""Every method on a U-Net, a detector, a super-resolution net, an audio net and some small ones, end to end."""

import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
import torch
import zoo_nets
from torch import Tensor, nn

import slimrank as sr
from slimrank.graph import named_tensors
from slimrank.records import METRICS

_RATIO = 0.6
_OTHERS: Mapping[str, Callable[[ModuleType], tuple[nn.Module, list[Tensor]]]] = {
    "cnn": lambda nets: (nets.cnn(), nets.noise(1, 8, 8, n=2, size=4)),
    "encoder": lambda nets: (nets.settle(nets.Encoder().eval()), nets.noise(5, 24, n=2, size=4)),
    "tied": lambda nets: (nets.settle(nets.TiedWeights().eval()), nets.tokens(n=2, size=4)),
    "several_outputs": lambda nets: (nets.settle(nets.DictOutput().eval()), nets.noise(24, n=2)),
}
_NAMES = (*zoo_nets.NETS, *_OTHERS)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One network, studied, planned and built."""

    model: nn.Module
    batch: Tensor
    study: sr.Study
    plan: sr.Plan
    result: sr.Result


def _opened(name: str, nets: ModuleType) -> tuple[nn.Module, list[Tensor]]:
    if name in _OTHERS:
        return _OTHERS[name](nets)
    net = zoo_nets.NETS[name]
    return net.build(), net.batches(n=2, size=4)


@cache
def _run(name: str, nets: ModuleType) -> Run:
    model, batches = _opened(name, nets)
    study = sr.study(model, batches, draws=1, progress=False)
    plan = study.plan(macs=_RATIO)
    return Run(model=model, batch=batches[0], study=study, plan=plan, result=study.apply(plan))


@pytest.fixture(params=_NAMES)
def run(request: pytest.FixtureRequest, nets: ModuleType) -> Run:
    """Each network is run once, whatever the order of the tests."""
    return _run(request.param, nets)


def _outputs(model: nn.Module, batch: Tensor) -> list[tuple[str, Tensor]]:
    with torch.no_grad():
        return list(named_tensors(model.eval()(batch)))


def test_costs_are_as_planned_and_within_the_budget(run: Run) -> None:
    for metric in METRICS:
        assert run.result.after.metric(metric) == run.plan.after.metric(metric)
    assert run.result.keep_ratio("macs") <= _RATIO


def test_channels_go(run: Run) -> None:
    assert run.plan.groups
    assert any(group.reason is None for group in run.study.structure.channels.groups.values())


def test_outputs_keep_their_shapes(run: Run) -> None:
    before, after = _outputs(run.model, run.batch), _outputs(run.result.model, run.batch)
    assert [(name, t.shape, t.dtype) for name, t in before] == [(name, t.shape, t.dtype) for name, t in after]
    assert all(tensor.isfinite().all() for _, tensor in after)


def test_every_layer_has_a_method_or_a_reason(run: Run) -> None:
    assert all(spec.methods or spec.reason for spec in run.study.layers)


def test_the_model_is_an_ordinary_one_and_trains(run: Run) -> None:
    model = run.result.model
    for _, tensor in named_tensors(model(run.batch)):
        tensor.square().mean().backward(retain_graph=True)
    moved = [p for p in model.parameters() if p.grad is not None]
    assert moved
    model.zero_grad()


@pytest.mark.parametrize("name", zoo_nets.NETS)
def test_loads_exactly_in_a_new_process(
    name: str, tmp_path: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    net = zoo_nets.NETS[name]
    (batch,) = net.batches(n=1, size=4)
    result = sr.compress(net.build(), [batch], macs=_RATIO, progress=False, methods=sr.METHODS, draws=1)
    result.save(tmp_path / "saved")
    expected = _outputs(result.model, batch)
    python(
        f"""
import slimrank as sr, zoo_nets
from slimrank.graph import named_tensors
net = zoo_nets.NETS[{name!r}]
(batch,) = net.batches(n=1, size=4)
with torch.no_grad():
    torch.save(list(named_tensors(sr.load("saved", model=net.build())(batch))), "outputs.pt")
"""
    )
    found = torch.load(tmp_path / "outputs.pt")
    for (name_before, before), (name_after, after) in zip(expected, found, strict=True):
        assert name_before == name_after
        assert torch.equal(before, after)
