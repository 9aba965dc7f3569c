# SPDX-License-Identifier: Apache-2.0
"""Every method on a U-Net, a detector, a super-resolution net, an audio net and small ones, end to end."""

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
from slimrank.forward import named_tensors
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


@pytest.mark.slow
def test_all_load_exactly_in_a_new_process(
    nets: ModuleType, tmp_path: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for name in zoo_nets.NETS:
        _run(name, nets).result.save(tmp_path / name)
    python(
        """
import slimrank as sr, zoo_nets
from slimrank.forward import named_tensors
for name, net in zoo_nets.NETS.items():
    batch = net.batches(n=2, size=4)[0]
    with torch.no_grad():
        model = sr.load(name, model=net.build())
        outputs = list(named_tensors(model(batch)))
    torch.save((model.state_dict(), outputs), f"{name}.pt")
"""
    )
    for name in zoo_nets.NETS:
        run = _run(name, nets)
        state, found = torch.load(tmp_path / f"{name}.pt")
        kept = run.result.model.state_dict()
        assert list(state) == list(kept)
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        for (output, before), (other, after) in zip(
            _outputs(run.result.model, run.batch), found, strict=True
        ):
            assert output == other
            # Kernels differ in the last bit with where tensors lie.
            torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-5)
