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


def test_a_study_that_is_saved_again_keeps_its_files(tmp_path: Path) -> None:
    study = sr.study(net(), data(), run_dir=tmp_path, progress=False)
    stays = tmp_path / "curves-9999.safetensors"
    stays.write_text("of this study, as far as the directory tells")
    study.save(tmp_path)
    assert stays.exists()


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
    assert study.methods == ("weight_svd", "spatial_svd")
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
    damages = [sr.study(kind(), data(), progress=False).plan(macs=0.6).damage for kind in (Later, Plain)]
    assert damages[0] == pytest.approx(damages[1], rel=1e-4)


class Swallows(nn.Module):
    """User code that catches everything."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = net(), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = self.body(x)
        except BaseException:
            x = x.new_zeros(len(x), 16)
        return self.head(x)


def test_code_that_catches_everything_does_not_hang() -> None:
    study = sr.study(Swallows(), data(), progress=False)

    def fails(model: nn.Module, name: str) -> None:
        raise ValueError(name)

    with pytest.raises(ValueError, match="body"):
        study.apply(study.plan(macs=0.6), on_layer=fails)


def test_another_activation_is_another_study(tmp_path: Path) -> None:
    sr.study(net(), data(), run_dir=tmp_path, progress=False)
    other = net()
    other[1] = nn.GELU()
    with pytest.raises(sr.StudyError, match="holds a study of other modules"):
        sr.study(other, data(), run_dir=tmp_path, progress=False)


def test_small_batches_are_run_together() -> None:
    singles = [row[None] for batch in data() for row in batch]
    one = sr.study(net(), singles, progress=False)
    several = sr.study(net(), data(), progress=False)
    plan = one.plan(macs=0.7)
    assert one.apply(plan).divergence == pytest.approx(several.apply(plan).divergence, rel=1e-3)


def test_a_forward_of_the_instance_is_left_alone() -> None:
    model = net()
    original = model[0].forward
    model[0].forward = lambda x: original(x) * 2  # type: ignore[method-assign]
    study = sr.study(model, data(), progress=False)
    assert study.structure.layers["0"].reason == "Linear has a forward of its own"


def test_an_output_that_is_not_finite_on_fit_samples() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x) / (x[:, :1] != 7.0)

    batches = data()
    study = sr.study(net(), batches, progress=False)
    held_out = set(study._session.feed.held_out)  # type: ignore[union-attr]
    index = next(number for number in range(8) if number not in held_out)
    batches[0][index, 0] = 7.0
    with pytest.raises(sr.NonFiniteError, match="holds nan or inf on calibration samples"):
        sr.study(Sometimes(), batches, likelihood="categorical", progress=False)


def test_only_saved_models_are_replaced(tmp_path: Path) -> None:
    study = sr.study(net(), data(), progress=False)
    result = study.apply(study.plan(macs=0.7))
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(sr.NotEmptyError, match=r"note.txt is a file; give a directory"):
        result.save(tmp_path / "note.txt", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "plan.json").write_text("mine")
    with pytest.raises(sr.NotEmptyError, match="holds files but no saved model to replace"):
        result.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "note.txt").read_text() == (tmp_path / "mine" / "plan.json").read_text() == "mine"


def test_the_mode_of_the_result_is_told() -> None:
    results = [sr.compress(net().train(mode), data(), macs=0.7, progress=False) for mode in (True, False)]
    assert [result.model.training for result in results] == [True, False]
    told = [any(".eval() before you use" in note.text for note in result.notes) for result in results]
    assert told == [True, False]


def test_a_result_that_lost_its_outputs_says_so() -> None:
    study = sr.study(net(), data(), likelihood="gaussian", progress=False)
    bad = study.apply(sr.Plan.manual(study, {name: ("weight_svd", {"rank": 1}) for name in ("0", "2")}))
    assert any("have little left of the original's" in note.text for note in bad.notes)


def test_inputs_that_fail_or_are_no_function() -> None:
    with pytest.raises(sr.BatchesTypeError, match=r"inputs=0 is no function; .*inputs=lambda b: b\[0\]"):
        sr.study(net(), data(), inputs=0, progress=False)  # type: ignore[arg-type]
    with pytest.raises(sr.BatchesError, match=r"inputs= failed on a batch, a Tensor: TypeError"):
        sr.study(net(), data(), inputs=lambda b: b["x"], progress=False)  # type: ignore[index]


def test_an_edited_plan_is_checked(tmp_path: Path) -> None:
    study = sr.study(net(), data(), progress=False)
    plan = sr.Plan.manual(study, {"0": ("weight_svd", {"rank": 4})}, multiple_of=4)
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace('"rank": 4', '"rank": 12'))
    with pytest.raises(sr.RankError, match="rank 12 costs at least what the layer does; lower it"):
        sr.Plan.load(tmp_path / "plan.json")
    (tmp_path / "plan.json").write_text(text.replace('"rank": 4', '"rank": 5'))
    assert sr.Plan.load(tmp_path / "plan.json").multiple_of == 1
