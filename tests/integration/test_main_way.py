# SPDX-License-Identifier: Apache-2.0
"""Study, plan, apply on a trained net: what comes out, and what stays as it was."""

import copy
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn import datasets
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import seams
import slimrank as sr
from slimrank.records import Method
from slimrank.report import agreement_text

Python = Callable[..., subprocess.CompletedProcess[str]]
FACTORS: tuple[Method, ...] = ("weight_svd", "spatial_svd")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    data = datasets.load_digits()
    images = torch.from_numpy(np.asarray(data.images, dtype=np.float32))[:, None] / 16
    return images, torch.from_numpy(data.target)


@pytest.fixture(scope="module")
def trained(digits: tuple[Tensor, Tensor]) -> nn.Module:
    """A small network that has learnt something, so that damage is damage."""
    images, labels = digits
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, stride=2),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(80):
        picked = torch.randperm(1400, generator=generator)[:128]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[picked]), labels[picked]).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def study(trained: nn.Module, digits: tuple[Tensor, Tensor]) -> sr.Study:
    return sr.study(trained, list(digits[0][:256].split(64)), progress=False)


@pytest.fixture(scope="module")
def result(study: sr.Study) -> sr.Result:
    return study.apply(study.plan(macs=0.4))


def accuracy(model: nn.Module, digits: tuple[Tensor, Tensor]) -> float:
    with torch.no_grad():
        return float((model(digits[0][1400:]).argmax(1) == digits[1][1400:]).double().mean())


def test_half_of_the_macs_keep_the_accuracy(
    study: sr.Study, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    # Of so small a network multiples leave some of the budget unspent.
    result = study.apply(study.plan(macs=0.5, multiple_of=1))
    assert 0.49 < result.keep_ratio("macs") <= 0.5
    assert accuracy(trained, digits) > 0.85
    assert accuracy(result.model, digits) > accuracy(trained, digits) - 0.04
    assert result.unit == result.damage_unit == "nats per sample"
    assert result.divergence is not None
    assert result.damage is not None
    assert 0 < result.divergence < 0.5


def test_data_and_gradients_are_worth_having(
    study: sr.Study, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    plain = sr.study(trained, list(digits[0][:256].split(64)), data_free=True, progress=False)
    with_data, without = (one.apply(one.plan(macs=0.35)) for one in (study, plain))
    assert with_data.divergence is not None
    assert without.divergence is not None
    assert with_data.divergence < without.divergence
    assert without.unit == "nats per sample"
    assert without.damage_unit == plain.unit == "share of weight energy"


def test_more_costs_less_damage(study: sr.Study) -> None:
    damages = [study.plan(macs=ratio).damage for ratio in (0.3, 0.5, 0.7, 0.9)]
    assert damages == sorted(damages, reverse=True)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.25, 0.4, 0.6, 0.8, 1.0])
def test_the_counted_ratio_is_just_below_the_target(study: sr.Study, ratio: float) -> None:
    # In multiples of 8 and 16 the few layers of this network leave more of the budget unspent.
    plan = study.plan(macs=ratio, multiple_of=1)
    result = study.apply(plan)
    assert ratio - 0.01 < result.keep_ratio("macs") <= ratio
    assert result.after == plan.after


def test_keeping_everything_changes_nothing(study: sr.Study, digits: tuple[Tensor, Tensor]) -> None:
    result = study.apply(sr.Plan.manual(study, {}))
    assert result.keep_ratio("macs") == 1.0
    assert result.divergence == 0.0
    assert result.before == result.after


def test_full_rank_gives_the_outputs_back(
    study: sr.Study, trained: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    # A (64, 128) weight, whose rank 43 would cost more than the layer: the 22 least directions are lost.
    result = study.apply(sr.Plan.manual(study, {"9": ("weight_svd", {"rank": 42})}))
    with torch.no_grad():
        before, after = trained(digits[0][:128]), result.model(digits[0][:128])
    assert (after - before).norm() < 0.02 * before.norm()


def test_repr_summary_and_reports(study: sr.Study, tmp_path: Path) -> None:
    plan = study.plan(macs=0.5)
    result = study.apply(plan)
    assert repr(study).startswith("Study(5 of 5 layers compressible, ")
    assert repr(plan).startswith("Plan(optimal: ")
    assert repr(result).startswith(f"Result(macs {result.keep_ratio('macs'):.4f}, params ")
    assert "; divergence " in repr(result)
    for text in (study.summary(), result.summary()):
        assert "weight_svd" in text
        assert text.isascii()
    study.report(tmp_path / "study.html")
    result.report(tmp_path / "result.html")
    for name in ("study.html", "result.html"):
        page = (tmp_path / name).read_text()
        assert page.lower().startswith("<!doctype html>")
        assert 'src="http' not in page


def test_seconds_of_every_phase(study: sr.Study) -> None:
    result = study.apply(study.plan(macs=0.5))
    assert {"capture", "gradients", "moments", "curves", "apply", "verify"} <= set(result.seconds)
    assert all(value >= 0 for value in result.seconds.values())


@pytest.mark.slow
def test_compress_lets_plans_compete(trained: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    batches = list(digits[0][:128].split(64))
    result = sr.compress(trained, batches, macs=0.4, methods=FACTORS, effort="thorough", progress=False)
    lines = [str(note) for note in result.notes if note.where == "compete"]
    assert {"optimal", "uniform", "optimal, weight_svd only", "optimal, spatial_svd only"} == {
        line.removeprefix("compete: ").partition(" plan:")[0] for line in lines
    }
    lines = [line for line in lines if "not built" not in line]
    chosen = [line for line in lines if "(returned)" in line]
    assert len(chosen) == 1
    values = [float(line.split("divergence ")[1].split()[0]) for line in lines]
    assert float(chosen[0].split("divergence ")[1].split()[0]) == min(values)
    assert result.agreement is not None
    assert f"{agreement_text(result.agreement)} (returned)" in chosen[0]
    assert result.keep_ratio("macs") <= 0.4
    alone = sr.compress(
        trained, batches, macs=0.4, compete=False, methods=FACTORS, effort="thorough", progress=False
    )
    assert result.divergence is not None
    assert alone.divergence is not None
    assert result.divergence <= alone.divergence


def test_loader_with_labels(trained: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    loader = DataLoader(TensorDataset(*(part[:96] for part in digits)), batch_size=40)
    study = sr.study(trained, loader, inputs=lambda b: b[0], progress=False)
    same = sr.study(trained, list(digits[0][:96].split(40)), progress=False)
    assert [curve.damage.tolist() for curve in study.curves] == [c.damage.tolist() for c in same.curves]
    with pytest.raises(sr.BatchesError, match=r"refuses the first batch .*inputs=lambda b: b\[0\]"):
        sr.study(trained, loader, progress=False)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits(trained: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    batches = list(digits[0][:96].split(32))

    def once(seed: int) -> tuple[list[list[float]], dict[str, Tensor]]:
        study = sr.study(trained, batches, seed=seed, progress=False)
        torch.rand(3)
        result = study.apply(study.plan(macs=0.5))
        return [curve.damage.tolist() for curve in study.curves], result.model.state_dict()

    curves, weights = once(1)
    again, same = once(1)
    other, _ = once(2)
    assert curves == again
    assert weights.keys() == same.keys()
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert curves != other


class TestTheResult:
    """An ordinary module: runs, trains, copies, exports, compiles."""

    def test_trains(self, result: sr.Result, digits: tuple[Tensor, Tensor]) -> None:
        model = copy.deepcopy(result.model).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses = []
        for _ in range(8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(digits[0][:128]), digits[1][:128])
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
            optimizer.step()
            losses.append(float(loss.detach()))
        assert losses[-1] < losses[0]

    def test_deep_copies(self, result: sr.Result, digits: tuple[Tensor, Tensor]) -> None:
        with torch.no_grad():
            assert torch.equal(copy.deepcopy(result.model)(digits[0][:4]), result.model(digits[0][:4]))

    def test_exports(self, result: sr.Result, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:4]
        program = torch.export.export(result.model, (images,))
        with torch.no_grad():
            torch.testing.assert_close(program.module()(images), result.model(images))

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore")
    def test_compiles(self, result: sr.Result, digits: tuple[Tensor, Tensor]) -> None:
        images = digits[0][:4]
        compiled = torch.compile(copy.deepcopy(result.model))
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), result.model(images), rtol=1e-4, atol=1e-4)

    def test_holds_ordinary_torch_modules_only(self, study: sr.Study) -> None:
        result = study.apply(sr.Plan.manual(study, {"2": ("spatial_svd", 0.5), "9": ("weight_svd", 0.5)}))
        assert {type(module).__module__.partition(".")[0] for module in result.model.modules()} == {"torch"}
        pairs = [m for m in result.model.children() if isinstance(m, nn.Sequential)]
        assert pairs
        for pair in pairs:
            assert type(pair) is nn.Sequential
            assert [type(part) for part in pair] in ([nn.Linear] * 2, [nn.Conv2d] * 2)
            assert pair[0].bias is None
            assert pair[1].bias is not None
            assert not any("forward" in vars(part) for part in (pair, *pair))

    def test_shares_nothing_with_the_model(self, result: sr.Result, trained: nn.Module) -> None:
        mine = {tensor.data_ptr() for tensor in result.model.state_dict().values()}
        assert not mine & {tensor.data_ptr() for tensor in trained.state_dict().values()}

    def test_state_dict_loads_from_a_pickle_read_with_weights_only(
        self, result: sr.Result, tmp_path: Path, digits: tuple[Tensor, Tensor]
    ) -> None:
        torch.save(result.model.state_dict(), tmp_path / "weights.pt")
        blank = copy.deepcopy(result.model)
        with torch.no_grad():
            for tensor in blank.state_dict().values():
                tensor.zero_()
            blank.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
            assert torch.equal(blank(digits[0][:4]), result.model(digits[0][:4]))


@pytest.mark.slow
def test_runs_without_slimrank(nets: ModuleType, python: Python, tmp_path: Path) -> None:
    model, batches = nets.cnn(), nets.noise(1, 8, 8)
    result = sr.compress(model, batches, macs=0.5, compete=False, progress=False)
    with torch.no_grad():
        torch.save((result.model, batches[0], result.model(batches[0])), tmp_path / "all.pt")
    python(
        """
import sys
sys.modules["slimrank"] = None  # any import of it fails from here on
model, x, expected = torch.load("all.pt", weights_only=False)
with torch.no_grad():
    torch.testing.assert_close(model(x), expected)
model.train()(x).square().mean().backward()
torch.export.export(model.eval(), (x,))
assert not any(name.startswith("slimrank.") for name in sys.modules)
"""
    )


def test_the_model_stays_as_it_was(nets: ModuleType, snapshot: Callable[[nn.Module], object]) -> None:
    model, batches = nets.cnn().train(), nets.noise(1, 8, 8)
    model.bn.eval()
    model.stem.requires_grad_(requires_grad=False)
    model.fc.register_forward_pre_hook(lambda _m, _i: None)
    model(batches[0]).sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = snapshot(model)
    study = sr.study(model, batches, progress=False)
    assert snapshot(model) == before
    study.plan(macs=0.5)
    assert snapshot(model) == before
    study.apply(study.plan(macs=0.5))
    assert snapshot(model) == before
    sr.apply(model, study.plan(macs=0.5), progress=False)
    assert snapshot(model) == before
    assert gradients.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.equal(gradients[n], p.grad) for n, p in model.named_parameters() if p.grad is not None)


def test_the_model_stays_as_it_was_after_an_error(
    nets: ModuleType, snapshot: Callable[[nn.Module], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = nets.cnn().train(), nets.noise(1, 8, 8)
    study = sr.study(model, batches, progress=False)
    plan = sr.Plan.manual(study, {"stem": ("weight_svd", 0.5), "last": ("spatial_svd", 0.4)})
    before = snapshot(model)
    with pytest.raises(sr.BatchesError):
        sr.study(model, nets.noise(3, 8, 8), progress=False)
    with pytest.raises(sr.NonFiniteError):
        sr.study(model, [batches[0], batches[0] * float("nan")], progress=False)

    def fail(_model: nn.Module, name: str) -> None:
        raise RuntimeError(f"stop at {name}")

    with pytest.raises(RuntimeError, match="stop at stem"):
        study.apply(plan, on_layer=fail)
    seams.fail_after_curves(monkeypatch, RuntimeError("stop at curves"))
    with pytest.raises(RuntimeError, match="stop at curves"):
        sr.study(model, batches, progress=False)
    assert snapshot(model) == before
    assert torch.is_grad_enabled()
    assert torch.backends.mha.get_fastpath_enabled()
    # The study itself is unharmed too.
    assert study.apply(plan).after == plan.after


def test_a_study_may_be_applied_again_and_again(cnn_study: sr.Study) -> None:
    plan = cnn_study.plan(macs=0.5)
    first, second = cnn_study.apply(plan), cnn_study.apply(plan)
    assert first.divergence == second.divergence
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    )
    assert first.model is not second.model


def test_independent_fits(nets: ModuleType) -> None:
    study = sr.study(nets.cnn(), nets.noise(1, 8, 8), methods=FACTORS, progress=False)
    result = study.apply(study.plan(macs=0.5), sequential=False)
    assert {layer.fit for layer in result.layers if layer.setting} == {"independent"}
    assert {layer.fit for layer in result.layers if not layer.setting} == {None}


def test_inside_no_grad_and_inference_mode(nets: ModuleType) -> None:
    usual = sr.compress(nets.mlp(), nets.noise(24), macs=0.6, compete=False, progress=False)
    with torch.no_grad():
        quiet = sr.compress(nets.mlp(), nets.noise(24), macs=0.6, compete=False, progress=False)
        assert not torch.is_grad_enabled()
    assert quiet.plan.settings == usual.plan.settings
    assert quiet.divergence == usual.divergence
    assert all(p.requires_grad for p in quiet.model.parameters())


def test_the_mode_of_the_result_is_told(nets: ModuleType) -> None:
    results = [
        sr.compress(nets.two_layers().train(mode), nets.noise(12, seed=1), macs=0.7, progress=False)
        for mode in (True, False)
    ]
    assert [result.model.training for result in results] == [True, False]
    told = [any(".eval() before you use" in note.text for note in result.notes) for result in results]
    assert told == [True, False]


def test_a_result_that_lost_its_outputs_says_so(nets: ModuleType) -> None:
    study = sr.study(nets.two_layers(), nets.noise(12, seed=1), likelihood="gaussian", progress=False)
    bad = study.apply(sr.Plan.manual(study, {name: ("weight_svd", {"rank": 1}) for name in ("0", "2")}))
    assert any("have little left of the original's" in note.text for note in bad.notes)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [0.6, 0.3])
def test_large_weights_and_moments_in_float32_change_next_to_nothing(
    trained: nn.Module, digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    images, _ = digits
    batches = list(images[:200].split(50))

    def study_and_apply() -> sr.Result:
        measured = sr.study(trained, batches, progress=False)
        return measured.apply(measured.plan(macs=budget))

    exact = study_and_apply()
    before = copy.deepcopy(trained.state_dict())
    seams.round_weights_above(monkeypatch, 0)
    seams.wide_moments_above(monkeypatch, 4)
    rough = study_and_apply()
    # The weights that are computed with may be the model's own.
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert rough.divergence == pytest.approx(exact.divergence, rel=0.02)
    assert rough.plan.damage == pytest.approx(exact.plan.damage, rel=0.02)
