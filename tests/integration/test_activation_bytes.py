# SPDX-License-Identifier: Apache-2.0
"""Peaks of activations of plans and results, through the front door."""

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

import seams
import slimrank as sr
from invented_times import Machine, table_on
from slimrank.live import Live
from slimrank.plan import Plan
from slimrank.report import render_plan

# Bytes of one channel of the maps, 8 by 8 numbers.
MAP = 4 * 64


@pytest.fixture(scope="module")
def study(cnn_study: sr.Study) -> sr.Study:
    return cnn_study


def test_a_plan_is_counted_as_the_result_of_it_is(study: sr.Study) -> None:
    settings = [
        {},
        {"stem": ("channel_pruning", {"keep": 8})},
        {"conv": ("spatial_svd", {"rank": 4, "form": "v_h"}), "last": ("channel_pruning", {"keep": 12})},
        {"conv": ("weight_svd", {"rank": 8}), "fc": ("weight_svd", {"rank": 4})},
    ]
    peaks = []
    for setting in settings:
        plan = Plan.manual(study, setting)  # type: ignore[arg-type]
        planned, result = sr.activation_bytes(study, plan), study.apply(plan)
        assert planned == result.activation_bytes
        peaks.append(planned)
    assert peaks[0].before == peaks[0].after
    assert peaks[0].keep_ratio == 1.0
    assert len({peak.before for peak in peaks}) == 1
    assert all(peak.after % MAP == 0 for peak in peaks[:2])
    assert peaks[1].after < peaks[0].after
    assert sr.activation_bytes(study, Plan(steps=(), before=study.before, has_bias=True)) == peaks[0]


def test_the_peak_stands_beside_the_costs(study: sr.Study, tmp_path: Path) -> None:
    result = study.apply(Plan.manual(study, {"stem": ("channel_pruning", {"keep": 8})}))
    peak = result.activation_bytes
    assert peak is not None
    row = next(line for line in result.summary().splitlines() if line.startswith("peak of activations"))
    assert f"{peak.before / 1000:#.4g} kB" in row
    assert f"{peak.after / 1000:#.4g} kB" in row
    result.save(tmp_path / "saved")
    kept = json.loads((tmp_path / "saved" / "manifest.json").read_text())["activation_bytes"]
    assert kept == {"before": peak.before, "after": peak.after}
    assert "peak of activations, one sample" in (tmp_path / "saved" / "report.html").read_text()


def test_of_several_steps_the_original_is_needed(study: sr.Study, nets: ModuleType) -> None:
    first = study.apply(Plan.manual(study, {"stem": ("channel_pruning", {"keep": 8})}))
    again = sr.study(first, nets.noise(1, 8, 8, n=4), progress=False)
    second = again.apply(Plan.manual(again, {"fc": ("weight_svd", {"rank": 2})}))
    assert second.activation_bytes is None
    assert "peak of activations" not in second.summary()
    assert first.activation_bytes is not None
    # A study of the first result starts from there.
    assert sr.activation_bytes(again, second.plan).before == first.activation_bytes.after


@pytest.mark.parametrize(
    "asked",
    [
        {"activation_bytes": 0.8},
        {"activation_bytes": "60%", "macs": 0.7},
        {"activation_bytes": 0.7, "select": "greedy"},
        {"activation_bytes": 0.7, "select": "uniform", "methods": ("channel_pruning",)},
        {"activation_bytes": 0.9, "fixed": {"conv": ("channel_pruning", {"keep": 12})}},
    ],
    ids=str,
)
def test_a_plan_keeps_its_peak_and_so_does_the_result(
    study: sr.Study, asked: dict[str, object], tmp_path: Path
) -> None:
    plan = study.plan(**asked)  # type: ignore[arg-type]
    peak = plan.activations
    assert peak is not None
    ratio = {"60%": 0.6}.get(str(asked["activation_bytes"]), asked["activation_bytes"])
    assert peak.asked == ratio
    assert peak.after <= ratio * peak.before  # type: ignore[operator]
    result = study.apply(plan)
    assert result.activation_bytes == sr.activation_bytes(study, plan)
    assert (result.activation_bytes.before, result.activation_bytes.after) == (peak.before, peak.after)
    assert not any("activations" in note.text for note in result.notes)
    assert f"asked {peak.text}" in render_plan(plan, study.unit)
    if "macs" in asked:
        assert plan.keep_ratio("macs") <= 0.7
        assert peak.words == "60%"
    plan.save(tmp_path / "plan.json")
    assert sr.Plan.load(tmp_path / "plan.json").activations == peak
    assert study.edit(plan, {"fc": None}).activations is None


def test_a_peak_in_bytes_is_kept_and_shown(study: sr.Study) -> None:
    before = sr.activation_bytes(study, study.plan(macs=1.0)).before
    plan = study.plan(activation_bytes=before - MAP)
    assert plan.activations is not None
    assert plan.activations.after <= before - MAP
    assert plan.activations.words == f"{before - MAP:_}"
    assert f"activation_bytes {plan.activations.keep_ratio:.4f}" in repr(plan)
    assert plan.gap is None
    free = study.plan(activation_bytes=1.0)
    assert free.activations is not None
    assert free.activations.after == before
    assert not free.groups
    assert "activation_bytes" in plan.diff(study.plan(activation_bytes=0.5))


@pytest.mark.slow
def test_a_peak_and_a_latency_hold_together(study: sr.Study) -> None:
    table = table_on(study.structure, Machine())
    plan = study.plan(activation_bytes=0.75, latency=0.7, latencies=table)
    assert plan.activations is not None
    assert plan.latency is not None
    assert plan.activations.keep_ratio <= 0.75
    assert plan.latency.predicted <= 0.7 * (1 + 1e-9)


def test_compress_takes_a_peak(nets: ModuleType) -> None:
    batches = nets.noise(1, 8, 8, n=4)
    result = sr.compress(nets.cnn(), batches, activation_bytes=0.7, effort="fast", progress=False)
    assert result.activation_bytes is not None
    assert result.activation_bytes.keep_ratio <= 0.7
    with pytest.raises(sr.BudgetError, match=r"activation_bytes='70' is no keep ratio"):
        sr.compress(nets.cnn(), batches, activation_bytes="70", progress=False)
    with pytest.raises(sr.OptionError, match="leave it out beside activation_bytes="):
        sr.compress(nets.cnn(), batches, activation_bytes=0.5, relative_to="original", progress=False)


def test_a_built_model_above_its_peak_is_told(study: sr.Study) -> None:
    plan = study.plan(activation_bytes=0.8)
    assert plan.activations is not None
    tighter = replace(plan, activations=replace(plan.activations, asked=0.3))
    notes = [note for note in study.apply(tighter).notes if note.is_warning]
    assert any("above the" in note.text and "plan a smaller budget" in note.text for note in notes)


def test_budgets_of_a_peak_that_cannot_be_are_refused_by_name(study: sr.Study, tmp_path: Path) -> None:
    for wrong in (0, 1.5, -1, "many", "2 parsecs", True):
        with pytest.raises(sr.BudgetError, match="activation_bytes"):
            study.plan(activation_bytes=wrong)  # type: ignore[arg-type]
    with pytest.raises(sr.BudgetError, match=r"activation_bytes=9_000_000_000 is above what the model needs"):
        study.plan(activation_bytes=9_000_000_000)
    with pytest.raises(sr.BudgetError) as told:
        study.plan(activation_bytes=0.01)
    text = str(told.value)
    assert "activation_bytes=0.01 cannot be met; the smallest reachable is about activation_bytes=" in text
    assert "What holds it up is" in text
    assert "bytes are alive there" in text
    with pytest.raises(sr.BudgetError, match=r"cannot be met; the smallest reachable is about .* of 'stem'"):
        study.plan(activation_bytes=0.2, methods=("weight_svd",))
    # What another budget cannot meet is told as before.
    with pytest.raises(sr.BudgetError, match=r"macs=0\.0001 cannot be met"):
        study.plan(activation_bytes=0.9, macs=0.0001)
    with pytest.raises(sr.OptionError, match="leave it out beside activation_bytes="):
        study.plan(activation_bytes=0.9, relative_to="original")
    study.save(tmp_path / "study")
    with pytest.raises(sr.StudyError, match="loaded without a model"):
        sr.Study.load(tmp_path / "study").plan(activation_bytes=0.9)


def test_the_command_line_takes_a_peak(study: sr.Study, tmp_path: Path, nets: ModuleType) -> None:
    study.save(tmp_path / "study")
    out = str(tmp_path / "plan.json")
    runner, place = CliRunner(), str(tmp_path / "study")
    refused = runner.invoke(seams.cli, ["plan", place, "--activation-bytes", "0.8"])
    assert refused.exit_code
    assert "--model module:build" in refused.output
    done = runner.invoke(
        seams.cli,
        ["plan", place, "--activation-bytes", "80%", "--model", f"{nets.__file__}:cnn", "--out", out],
    )
    assert not done.exit_code, done.output
    assert "asked activation_bytes=80%" in done.output
    kept = sr.Plan.load(out).activations
    assert kept is not None
    assert kept.keep_ratio <= 0.8


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(seams.cli, [str(argument) for argument in arguments])


@pytest.mark.slow
def test_the_command_line_takes_a_peak_of_a_second_compression(
    study: sr.Study, tmp_path: Path, nets: ModuleType
) -> None:
    first = study.apply(Plan.manual(study, {"stem": ("channel_pruning", {"keep": 8})}))
    first.save(tmp_path / "first")
    again = sr.study(first, nets.noise(1, 8, 8, n=4), progress=False)
    again.save(tmp_path / "again")
    out = tmp_path / "plan.json"
    asked = ("plan", tmp_path / "again", "--activation-bytes", 0.8, "--model", f"{nets.__file__}:cnn")
    refused = _run(*asked)
    assert refused.exit_code == 2
    assert "name the directory it was saved in with --after" in " ".join(refused.stderr.split())
    done = _run(*asked, "--after", tmp_path / "first", "--out", out)
    assert not done.exit_code, done.output
    assert sr.Plan.load(out).activations == again.plan(activation_bytes=0.8).activations


_NET = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12)).eval()
def data():
    return [torch.randn(32, 16, generator=torch.Generator().manual_seed(1))]
def loss(outputs, original):
    return (outputs - original).square().sum(1)
def first(outputs):
    return outputs[:, :6]
"""


def test_commands_with_a_model_take_what_a_study_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, run, plan = tmp_path / "net.py", tmp_path / "run", tmp_path / "plan.json"
    net.write_text(_NET)
    of_study = ("--loss", f"{net}:loss", "--outputs", f"{net}:first")
    made = _run("study", f"{net}:build", f"{net}:data", "--out", run, "--quiet", *of_study)
    assert not made.exit_code, made.output
    asked = ("plan", run, "--activation-bytes", 0.9, "--model", f"{net}:build")
    refused = _run(*asked)
    assert refused.exit_code == 2
    done = _run(*asked, *of_study, "--out", plan)
    assert not done.exit_code, done.output
    assert sr.Plan.load(plan).activations is not None
    edit = ("edit", plan, "--study", run)
    with monkeypatch.context() as patched:
        patched.setattr(Live, "wait", lambda _: None)
        assert _run(*edit, "--model", f"{net}:build").exit_code == 2
        done = _run(*edit, "--model", f"{net}:build", *of_study)
    assert not done.exit_code, done.output
    refused = _run(*edit, *of_study, "--after", tmp_path)
    assert refused.exit_code == 2
    told = " ".join(refused.stderr.split())
    assert "--outputs, --loss, --after: it goes with --model REF; add it" in told


def test_a_model_that_no_plan_needs_is_refused(study: sr.Study, tmp_path: Path, nets: ModuleType) -> None:
    study.save(tmp_path / "study")
    for given in (("--model", f"{nets.__file__}:cnn"), ("--loss", "net:loss"), ("--after", tmp_path)):
        refused = _run("plan", tmp_path / "study", "--macs", 0.8, *given)
        assert refused.exit_code == 2
        told = " ".join(refused.stderr.split())
        assert f"{given[0]}: only --activation-bytes needs the model; give that, too, or leave it" in told


def test_bad_input_is_named(study: sr.Study, nets: ModuleType, tmp_path: Path) -> None:
    plan = Plan.manual(study, {})
    with pytest.raises(sr.OptionError, match="study is a str; give a Study"):
        sr.activation_bytes("study", plan)  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="plan is a dict; give a Plan"):
        sr.activation_bytes(study, {})  # type: ignore[arg-type]
    other = sr.study(nets.mlp(), nets.noise(24), data_free=True, progress=False)
    with pytest.raises(sr.PlanError, match="missing in the model"):
        sr.activation_bytes(other, plan)
    study.save(tmp_path / "study")
    with pytest.raises(sr.StudyError, match="loaded without a model"):
        sr.activation_bytes(sr.Study.load(tmp_path / "study"), plan)
