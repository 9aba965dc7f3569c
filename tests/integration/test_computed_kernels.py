# SPDX-License-Identifier: Apache-2.0
"""Kernels that are computed in every forward: folded in private copies, said so, and replayed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import slimrank as sr


class _StdConv2d(nn.Conv2d):
    """Weight standardisation, as in BiT."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = functional.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6)
        weight = weight.reshape_as(self.weight)
        return functional.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class _Padded(_StdConv2d):
    """Pads in its forward, as code from other frameworks does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(functional.pad(x, (1, 1, 1, 1)))


class _ByInput(nn.Conv2d):
    """A kernel that depends on the input is no plain layer."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * x.mean(), self.bias, padding=self.padding)


class _Activated(nn.Conv2d):
    """Nor is a layer that does more."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight * 2, self.bias, padding=self.padding).relu()


def _net(second: Callable[[], nn.Module], first: Callable[[], nn.Module] | None = None) -> nn.Sequential:
    return nn.Sequential(
        first() if first else nn.Conv2d(3, 12, 3, padding=1),
        nn.ReLU(),
        second(),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


def _conv() -> nn.Conv2d:
    return nn.Conv2d(12, 12, 3, padding=1)


_KINDS: dict[str, Callable[[], nn.Module]] = {
    "standardised": lambda: _StdConv2d(12, 12, 3, padding=1),
    "padded": lambda: _Padded(12, 12, 3),
    "without bias": lambda: _StdConv2d(12, 12, 3, padding=1, bias=False),
    "weight norm": lambda: weight_norm(_conv()),
    "parametrised weight norm": lambda: parametrizations.weight_norm(_conv()),
    "spectral norm": lambda: spectral_norm(_conv()),
    "parametrised spectral norm": lambda: parametrizations.spectral_norm(_conv()),
    "both": lambda: parametrizations.weight_norm(_StdConv2d(12, 12, 3, padding=1)),
    "pruned": lambda: prune.l1_unstructured(_conv(), "weight", 0.4),
}


def _study(model: nn.Module, rng: torch.Generator, **options: object) -> sr.Study:
    batches = [torch.randn(24, 3, 6, 6, generator=rng)]
    return sr.study(model, batches, effort="fast", progress=False, **options)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("kind", _KINDS)
def test_computed_kernels_are_folded_replayed_and_loaded(
    kind: str, rng: torch.Generator, tmp_path: Path
) -> None:
    model = _net(_KINDS[kind])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    # Train mode: the kernel of eval mode counts.
    study = _study(model, rng)
    (spec,) = (layer for layer in study.layers if layer.name == "2")
    assert spec.class_name == "Conv2d"
    assert {"weight_svd", "spatial_svd", "channel_pruning"} <= set(spec.methods)
    assert any("'2'" in note.text and "compute their kernels" in note.text for note in study.notes)
    plan = sr.Plan.manual(study, {"2": ("spatial_svd", {"rank": 4}), "0": ("channel_pruning", {"keep": 7})})
    result = study.apply(plan)
    assert result.after.macs == plan.after.macs
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training

    x = torch.randn(2, 3, 6, 6, generator=rng)
    result.save(tmp_path / "saved")
    loaded = sr.load(tmp_path / "saved", model=_net(_KINDS[kind]))
    torch.testing.assert_close(loaded(x), result.model.eval()(x))
    replayed = sr.apply(model, plan, progress=False)
    assert [tuple(p.shape) for p in replayed.model.parameters()] == [
        tuple(p.shape) for p in result.model.parameters()
    ]
    assert any("compute their kernels" in note.text for note in replayed.notes)


def test_a_whole_plan_gives_what_the_original_gives(rng: torch.Generator) -> None:
    model = _net(_KINDS["standardised"], lambda: _StdConv2d(3, 12, 3, stride=2, padding=1)).eval()
    study = _study(model, rng)
    result = study.apply(sr.Plan.manual(study, {}))
    x = torch.randn(4, 3, 6, 6, generator=rng)
    torch.testing.assert_close(result.model(x), model(x))
    assert type(result.model[0]) is nn.Conv2d
    assert type(result.model[2]) is nn.Conv2d
    assert all(parameter.requires_grad for parameter in result.model.parameters())


@pytest.mark.parametrize("kind", [_ByInput, _Activated])
def test_what_is_no_plain_layer_stays(kind: type[nn.Conv2d], rng: torch.Generator) -> None:
    study = _study(_net(lambda: kind(12, 12, 3, padding=1)).eval(), rng)
    (spec,) = (layer for layer in study.layers if layer.name == "2")
    assert spec.class_name == kind.__name__
    assert not any("compute their kernels" in note.text for note in study.notes)


def test_a_kernel_that_the_model_reads_elsewhere_stays(rng: torch.Generator) -> None:
    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net(_KINDS["parametrised weight norm"])

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.net[2].parametrizations.weight.original0.mean()

    study = _study(Reader().eval(), rng)
    (note,) = (note for note in study.notes if note.where == "net.2")
    assert "a plain layer cannot take its place: " in note.text
    assert "parametrizations" in note.text


def test_a_kernel_that_two_layers_share_stays(rng: torch.Generator) -> None:
    model = _net(_KINDS["without bias"], lambda: _StdConv2d(3, 12, 3, bias=False)).eval()
    model.insert(3, _StdConv2d(12, 12, 3, padding=1, bias=False))
    model[3].weight = model[2].weight
    study = _study(model, rng)
    classes = {layer.name: layer.class_name for layer in study.layers}
    assert classes["0"] == "Conv2d"
    assert classes["2"] == classes["3"] == "_StdConv2d"


def test_a_skipped_layer_is_not_folded(rng: torch.Generator) -> None:
    study = _study(_net(_KINDS["standardised"]).eval(), rng, skip=("2",))
    (spec,) = (layer for layer in study.layers if layer.name == "2")
    assert spec.class_name == "_StdConv2d"


def test_a_study_with_folded_kernels_is_opened_again(rng: torch.Generator, tmp_path: Path) -> None:
    model = _net(_KINDS["parametrised spectral norm"]).eval()
    study = _study(model, rng, run_dir=tmp_path)
    again = sr.Study.load(tmp_path, model=model, progress=False)
    plan = again.plan(macs=0.6)
    expected, found = study.apply(plan), again.apply(plan)
    assert found.divergence == pytest.approx(expected.divergence)
    assert found.after == expected.after
