# SPDX-License-Identifier: Apache-2.0
"""Models of unusual ways: outputs of odd shapes, layers that rarely run, state, a train() of their own."""

from pathlib import Path

import pytest
import torch
from nets import noise, two_layers
from torch import Tensor, nn

import seams
import slimrank as sr


class Forgetful(nn.Module):
    """A train() that returns nothing, as the frozen batch-norm idiom has it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = two_layers()

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_train_method_that_returns_nothing(tmp_path: Path) -> None:
    result = sr.compress(Forgetful(), noise(12, seed=1), macs=0.7, compete=False, progress=False)
    result.save(tmp_path / "small")
    assert isinstance(sr.load(tmp_path / "small", model=Forgetful()), Forgetful)


class Odd(nn.Module):
    """Besides its logits: layers first, one row for all samples, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.body = two_layers()
        self.shared = nn.Parameter(torch.randn(1, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = self.body(x)
        return y, torch.stack([y, y * 2, y * 3]), self.shared * 1, y.square().mean()


def test_outputs_of_other_first_dimensions() -> None:
    study = sr.study(Odd(), noise(12, seed=1), progress=False)
    result = study.apply(study.plan(macs=0.7))
    assert result.divergence is not None
    assert 0 < result.divergence < float("inf")


def test_samples_are_told_apart_by_the_outputs_that_matter() -> None:
    study = sr.study(Odd(), noise(12, seed=1), outputs=0, progress=False)
    assert not any("cannot be cut" in note.text for note in study.notes)


class OnlyFirst(nn.Module):
    """A layer that no sample reaches but those of the first batch's first."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rare = two_layers(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.rare(y) if len(x) == 1 else y


def test_a_layer_that_no_calibration_sample_reaches() -> None:
    study = sr.study(OnlyFirst(), noise(12, seed=1), fisher=False, progress=False)
    reasons = {spec.name: spec.reason for spec in study.layers}
    assert reasons["rare"] is not None
    result = study.apply(study.plan(macs=0.8))
    assert isinstance(result.model.rare, nn.Linear)


class Stateful(nn.Module):
    """A skip connection that travels on the module, as in many U-Nets."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 16)

    def forward(self, x: Tensor) -> Tensor:
        self.skip = self.a(x)
        y = self.b(self.skip.relu())
        return self.c(y + self.skip)


class Stateless(Stateful):
    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x)
        y = self.b(skip.relu())
        return self.c(y + skip)


def test_state_on_the_model_does_not_mix_batches() -> None:
    # Above 128 samples a forward: several forwards that wait for each other.
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(200, 12, generator=generator), torch.randn(120, 12, generator=generator)]
    results = []
    for kind in (Stateful, Stateless):
        study = sr.study(kind(), batches, progress=False)
        results.append(study.apply(study.plan(macs=0.6)))
    assert results[0].divergence == pytest.approx(results[1].divergence, rel=1e-4)
    assert any("keeps state" in note.text for note in results[0].notes)
    assert not any("keeps state" in note.text for note in results[1].notes)


class Later(nn.Module):
    """An in-place activation whose input is used again: parts of it cannot be skipped."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        g = self.act(h)
        return self.c(self.b(g) + h)


class Plain(Later):
    def forward(self, x: Tensor) -> Tensor:
        g = self.a(x).relu()
        return self.c(self.b(g) + g)


def test_in_place_work_on_what_is_used_again() -> None:
    damages = [
        sr.study(kind(), noise(12, seed=1), progress=False).plan(macs=0.6).damage for kind in (Later, Plain)
    ]
    assert damages[0] == pytest.approx(damages[1], rel=1e-4)


class Swallows(nn.Module):
    """User code that catches everything."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = two_layers(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.body(x)
        except BaseException:
            x = x.new_zeros(len(x), 16)
        return self.head(x)


def test_code_that_catches_everything_does_not_hang() -> None:
    study = sr.study(Swallows(), noise(12, seed=1), progress=False)

    def fails(model: nn.Module, name: str) -> None:
        raise ValueError(name)

    with pytest.raises(ValueError, match="body"):
        study.apply(study.plan(macs=0.6), on_layer=fails)


def test_small_batches_are_run_together() -> None:
    singles = [row[None] for batch in noise(12, seed=1) for row in batch]
    one = sr.study(two_layers(), singles, progress=False)
    several = sr.study(two_layers(), noise(12, seed=1), progress=False)
    plan = one.plan(macs=0.7)
    assert one.apply(plan).divergence == pytest.approx(several.apply(plan).divergence, rel=1e-3)


def test_a_forward_of_the_instance_is_left_alone() -> None:
    model = two_layers()
    original = model[0].forward
    model[0].forward = lambda x: original(x) * 2  # type: ignore[method-assign]
    study = sr.study(model, noise(12, seed=1), progress=False)
    assert study.structure.layers["0"].reason == "Linear has a forward of its own"


def test_an_output_that_is_not_finite_on_fit_samples() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = two_layers()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) / (x[:, :1] != 7.0)

    batches = noise(12, seed=1)
    study = sr.study(two_layers(), batches, progress=False)
    held_out = seams.held_out_of(study)
    index = next(number for number in range(8) if number not in held_out)
    batches[0][index, 0] = 7.0
    with pytest.raises(sr.NonFiniteError, match="holds nan or inf on calibration samples"):
        sr.study(Sometimes(), batches, likelihood="categorical", progress=False)
