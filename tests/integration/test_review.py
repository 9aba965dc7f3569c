# SPDX-License-Identifier: Apache-2.0
"""Cases that a review found: studies that meet in one directory, outputs of odd shapes, overridden modes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 12, generator=generator) for _ in range(3)]


def test_a_journal_belongs_to_its_weights(tmp_path: Path) -> None:
    for seed in (0, 1):
        study = sr.study(net(seed), data(), progress=False)
        study.save(tmp_path)
        plan = sr.Plan.manual(study, {"0": ("weight_svd", {"rank": 3})})
        loaded = sr.Study.load(tmp_path, model=net(seed), run_dir=tmp_path, progress=False)
        assert loaded.apply(plan).divergence == study.apply(plan).divergence


def test_a_saved_study_is_not_taken_for_another_run(tmp_path: Path) -> None:
    sr.study(net(0), data(), progress=False).save(tmp_path)
    with pytest.raises(sr.StudyError, match="holds a study of other weights"):
        sr.study(net(1), data(), run_dir=tmp_path, progress=False)


def test_loading_writes_nothing(tmp_path: Path) -> None:
    study = sr.study(net(), data(), progress=False)
    study.save(tmp_path)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    loaded = sr.Study.load(tmp_path, model=net(), progress=False)
    loaded.apply(loaded.plan(macs=0.7))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


class Forgetful(nn.Module):
    """A train() that returns nothing, as the frozen batch-norm idiom has it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def test_a_train_method_that_returns_nothing(tmp_path: Path) -> None:
    result = sr.compress(Forgetful(), data(), macs=0.7, compete=False, progress=False)
    result.save(tmp_path / "small")
    assert isinstance(sr.load(tmp_path / "small", model=Forgetful()), Forgetful)


def test_the_order_of_methods_does_not_matter(tmp_path: Path) -> None:
    study = sr.study(net(), data(), methods=("spatial_svd", "weight_svd", "weight_svd"), progress=False)
    study.save(tmp_path)
    assert study.methods == sr.METHODS
    sr.Study.load(tmp_path, model=net(), progress=False)


class Odd(nn.Module):
    """Besides its logits: layers first, one row for all samples, and a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()
        self.shared = nn.Parameter(torch.randn(1, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        y = self.body(x)
        return y, torch.stack([y, y * 2, y * 3]), self.shared * 1, y.square().mean()


def test_outputs_of_other_first_dimensions() -> None:
    study = sr.study(Odd(), data(), progress=False)
    result = study.apply(study.plan(macs=0.7))
    assert result.divergence is not None
    assert 0 < result.divergence < float("inf")


def test_samples_are_told_apart_by_the_outputs_that_matter() -> None:
    study = sr.study(Odd(), data(), outputs=0, progress=False)
    assert not any("cannot be cut" in note.text for note in study.notes)


class OnlyFirst(nn.Module):
    """A layer that no sample reaches but those of the first batch's first."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.rare = net(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return self.rare(y) if len(x) == 1 else y


def test_a_layer_that_no_calibration_sample_reaches() -> None:
    study = sr.study(OnlyFirst(), data(), fisher=False, progress=False)
    reasons = {spec.name: spec.reason for spec in study.layers}
    assert reasons["rare"] is not None
    result = study.apply(study.plan(macs=0.8))
    assert isinstance(result.model.rare, nn.Linear)
