# SPDX-License-Identifier: Apache-2.0
"""Fits that make up for what a shortcut lost, and that know what a ReLU throws away."""

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank import demo


@pytest.mark.slow
def test_both_lower_the_divergence_of_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches = demo.build(), demo.calibration_batches()[:4]
    study = sr.study(model, batches, progress=False)
    plan = study.plan(macs=0.3)
    knowing = study.apply(plan)
    seams.without_epilogues(monkeypatch)
    plain = study.apply(plan)
    assert knowing.divergence is not None
    assert plain.divergence is not None
    assert knowing.divergence < 0.95 * plain.divergence


class Relued(nn.Module):
    """Most outputs of the first layer are thrown away."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.last = nn.Linear(12, 12), nn.Linear(12, 6)
        with torch.no_grad():
            for layer in (self.first, self.last):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator))
            self.first.bias.fill_(-2.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).relu())
        return out


def test_a_relu_is_reckoned_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes out of the ReLU is closer to the original's, on inputs that no fit has seen."""
    generator = torch.Generator().manual_seed(1)
    model, data = Relued().eval(), list(torch.randn(600, 12, generator=generator).split(60))
    study = sr.study(model, data, progress=False)
    plan = sr.Plan.manual(study, {"first": ("weight_svd", {"rank": 4})})
    fresh = torch.randn(4000, 12, generator=generator)

    @torch.no_grad()
    def error(result: sr.Result) -> float:
        first = result.model.get_submodule("first")
        return float((first(fresh).relu() - model.first(fresh).relu()).square().mean())

    knowing = error(study.apply(plan))
    seams.without_epilogues(monkeypatch)
    assert knowing < 0.97 * error(study.apply(plan))


def test_on_layer_is_not_worked_against(cnn_study: sr.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user's function changes is kept, so nothing is made up for."""
    plan = cnn_study.plan(macs=0.7)
    seen = seams.watch_epilogues(monkeypatch)
    cnn_study.apply(plan, on_layer=lambda _model, _name: None)
    assert not seen
    cnn_study.apply(plan)
    assert seen
