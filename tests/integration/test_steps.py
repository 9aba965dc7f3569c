# SPDX-License-Identifier: Apache-2.0
"""One compression after another: plans with two steps, budgets of the original, artefacts that rebuild."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


@pytest.fixture
def batches(nets: ModuleType) -> list[Tensor]:
    found: list[Tensor] = nets.noise(1, 8, 8, n=4)
    return found


@pytest.fixture
def halfway(nets: ModuleType, batches: list[Tensor]) -> sr.Result:
    study = sr.study(nets.cnn(), batches, progress=False)
    return study.apply(study.plan(macs=0.75, methods=("spatial_svd",)))


@pytest.fixture
def second(halfway: sr.Result, batches: list[Tensor]) -> sr.Study:
    return sr.study(halfway, batches, methods=("weight_svd",), progress=False)


def outputs(model: nn.Module, batches: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in batches])


def test_a_second_step_counts_against_its_own_model_or_against_the_original(
    halfway: sr.Result, second: sr.Study
) -> None:
    original, start = halfway.before.macs, halfway.after.macs
    own = second.plan(macs=0.66)
    assert own.after.macs <= 0.66 * start
    assert own.keep_ratio("macs") == own.after.macs / original
    assert own.start.macs == start
    whole = second.plan(macs=0.5, relative_to="original")
    assert 0.45 * original < whole.after.macs <= 0.5 * original
    assert whole.budgets == {"macs": 0.5}
    assert own.budgets["macs"] == pytest.approx(0.66 * start / original)
    assert whole.steps[0].settings == halfway.plan.settings
    assert repr(whole).startswith("Plan(step 2, optimal: ")


def test_a_budget_of_the_original_that_is_met_already_changes_nothing(second: sr.Study) -> None:
    assert second.plan(macs=0.9, relative_to="original").settings == {}


def test_the_floor_is_told_in_shares_of_the_original(second: sr.Study) -> None:
    with pytest.raises(sr.BudgetError, match=r"smallest reachable is macs=0\.\d+") as caught:
        second.plan(macs=1e-4, relative_to="original")
    told = float(str(caught.value).split("macs=")[2][:6])
    assert second.plan(macs=told, relative_to="original").keep_ratio("macs") <= told


@pytest.mark.slow
def test_what_two_steps_made_is_counted_saved_and_rebuilt_from_the_original(
    halfway: sr.Result,
    second: sr.Study,
    batches: list[Tensor],
    nets: ModuleType,
    tmp_path: Path,
    python: Callable[..., object],
) -> None:
    result = second.apply(second.plan(macs=0.5, relative_to="original"))
    assert result.keep_ratio("macs") == result.after.macs / halfway.before.macs <= 0.5
    assert result.after == result.plan.after
    assert any("this is step 2" in note.text for note in result.notes)
    result.save(tmp_path / "out")
    loaded = sr.load(tmp_path / "out", model=nets.cnn())
    assert torch.equal(outputs(loaded, batches), outputs(result.model.eval(), batches))
    torch.save([batches, outputs(result.model, batches)], tmp_path / "expected.pt")
    python(
        "import nets, slimrank as sr\n"
        f"batches, expected = torch.load({str(tmp_path / 'expected.pt')!r})\n"
        f"model = sr.load({str(tmp_path / 'out')!r}, model=nets.cnn())\n"
        "with torch.no_grad():\n"
        "    assert torch.equal(torch.cat([model(b) for b in batches]), expected)\n"
    )


@pytest.mark.slow
def test_a_layer_may_be_split_again(batches: list[Tensor], nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(nets.cnn(), batches, progress=False)
    first = study.apply(sr.Plan.manual(study, {"last": ("spatial_svd", {"rank": 30})}))
    again = sr.study(first, batches, progress=False)
    plan = sr.Plan.manual(again, {"last.0": ("weight_svd", {"rank": 8}), "last.1": ("weight_svd", 0.5)})
    result = again.apply(plan)
    assert result.after == plan.after
    result.save(tmp_path / "out")
    loaded = sr.load(tmp_path / "out", model=nets.cnn())
    assert torch.equal(outputs(loaded, batches), outputs(result.model, batches))


def test_a_plan_with_two_steps_is_saved_compared_and_replayed(
    second: sr.Study, batches: list[Tensor], nets: ModuleType, tmp_path: Path
) -> None:
    plan = second.plan(macs=0.5, relative_to="original")
    plan.save(tmp_path / "plan.json")
    loaded = sr.Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    assert plan.diff(loaded).startswith("no difference")
    first = next(iter(plan.steps[0].settings))
    assert first in plan.diff(second.previous)  # type: ignore[arg-type]
    replayed = sr.apply(nets.cnn(), loaded, batches, progress=False)
    assert replayed.after == second.apply(plan).after
    assert replayed.divergence is not None
    assert replayed.divergence > 0
    alone = sr.apply(nets.cnn(), loaded, progress=False)
    assert alone.after.macs == replayed.after.macs
    assert alone.divergence is None


def test_a_trained_model_goes_into_the_second_step(halfway: sr.Result, batches: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter in halfway.model.parameters():
            parameter.mul_(1.01)
    second = sr.study(halfway.model, batches, previous=halfway.plan, progress=False)
    untouched = second.apply(sr.Plan.manual(second, {}))
    assert torch.equal(outputs(untouched.model, batches), outputs(halfway.model, batches))
    assert len(untouched.plan.steps) == 2


def test_a_study_of_a_second_step_is_saved_and_loaded(
    halfway: sr.Result, second: sr.Study, tmp_path: Path
) -> None:
    second.save(tmp_path / "study")
    loaded = sr.Study.load(tmp_path / "study", model=halfway.model)
    assert loaded.previous == second.previous
    plan = second.plan(macs=0.5, relative_to="original")
    assert loaded.plan(macs=0.5, relative_to="original") == plan
    assert loaded.apply(plan).after == plan.after


def test_compress_takes_a_result(halfway: sr.Result, batches: list[Tensor]) -> None:
    result = sr.compress(
        halfway, batches, macs=0.5, relative_to="original", methods=("weight_svd",), progress=False
    )
    assert result.keep_ratio("macs") <= 0.5
    assert len(result.plan.steps) == 2


def test_the_report_of_a_second_step_names_the_original_costs(second: sr.Study, tmp_path: Path) -> None:
    result = second.apply(second.plan(macs=0.5, relative_to="original", multiple_of=1))
    text = result.summary()
    assert text.startswith("Cnn, compressed\n")
    assert "counted before after keep ratio" in " ".join(text.split())
    # Of the original, not of the model that the step started from.
    assert re.search(r"^MACs +148 k +7\d\.\d k +0\.(49|50)\d$", text, re.MULTILINE)
    assert "this is step 2" in " ".join(text.split())
    result.report(tmp_path / "report.html")
    assert "this is step 2" in (tmp_path / "report.html").read_text()


def test_a_tuned_model_goes_back_into_its_result(
    halfway: sr.Result, nets: ModuleType, tmp_path: Path
) -> None:
    tuned = copy.deepcopy(halfway.model)
    with torch.no_grad():
        tuned.fc.bias.add_(1.0)
    result = halfway.with_model(tuned)
    assert result.divergence is None
    assert any("trained after the fit" in note.text for note in result.notes)
    result.save(tmp_path / "out")
    assert torch.equal(sr.load(tmp_path / "out", model=nets.cnn()).fc.bias, tuned.fc.bias)
    with pytest.raises(sr.ModelError, match=r"is not this result's.*tensors differ"):
        halfway.with_model(nets.cnn())
    with pytest.raises(sr.OptionError, match="model is a str; give a torch"):
        halfway.with_model("model")  # type: ignore[arg-type]


@pytest.mark.slow
def test_earlier_plans_that_do_not_fit_are_refused(
    halfway: sr.Result, second: sr.Study, batches: list[Tensor], nets: ModuleType
) -> None:
    with pytest.raises(sr.PlanError, match="previous: it did not make this model: '"):
        sr.study(nets.cnn(), batches, previous=halfway.plan, progress=False)
    with pytest.raises(sr.OptionError, match="beside a result, which brings its own plan"):
        sr.study(halfway, batches, previous=halfway.plan, progress=False)
    with pytest.raises(sr.PlanError, match=r"with data and this study is not, or .*; make both alike"):
        sr.study(halfway, batches, data_free=True, progress=False)
    empty = sr.Plan(steps=(), before=halfway.before, has_bias=True)
    with pytest.raises(sr.PlanError, match="previous: it has no step"):
        sr.study(halfway.model, batches, previous=empty, progress=False)
    first = sr.study(nets.cnn(), batches, progress=False)
    with pytest.raises(sr.PlanError, match="belongs to another model"):
        first.apply(second.plan(macs=0.5))
    lone = sr.study(halfway.model, batches, progress=False)
    with pytest.raises(sr.PlanError, match=r"1 steps come before its last one, .* not the 0"):
        lone.apply(second.plan(macs=0.9))
    with pytest.raises(sr.OptionError, match="relative_to='first'; give 'model' or 'original'"):
        second.plan(macs=0.5, relative_to="first")  # type: ignore[arg-type]
