# SPDX-License-Identifier: Apache-2.0
"""Pages of studies and results that were measured: what stands in their data, and what is refused."""

import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import stored_net
import torch
from click.testing import CliRunner, Result
from torch import nn

import seams
import slimrank as sr
from invented_times import Machine, table_on
from slimrank.report import page_data, render_page


def build() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 6)).eval()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reports") / "run"


@pytest.fixture(scope="module")
def study(run_dir: Path) -> sr.Study:
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 16, generator=generator) for _ in range(4)]
    return sr.study(build(), batches, run_dir=run_dir, progress=False)


def data_of(page: Path) -> dict[str, Any]:
    """What was written beside a page."""
    data: dict[str, Any] = json.loads(page.with_suffix(".json").read_text())
    return data


def test_measured_divergences_are_kept_with_the_curves(study: sr.Study, run_dir: Path) -> None:
    curves = [*study.curves, *study.group_curves]
    assert {curve.layer for curve in study.curves if curve.anchors} == {"0", "2", "4"}
    assert all(curve.anchors for curve in study.group_curves)
    again = sr.Study.load(run_dir)
    assert [dict(curve.anchors) for curve in (*again.curves, *again.group_curves)] == [
        dict(curve.anchors) for curve in curves
    ]
    for curve in study.group_curves:
        # Never below what was measured there.
        for kept, divergence in curve.anchors.items():
            assert curve.damage[np.searchsorted(curve.kept, kept)] >= divergence * (1 - 1e-9)


def test_a_report_draws_what_was_measured(study: sr.Study, tmp_path: Path) -> None:
    study.report(tmp_path / "study.html")
    data = data_of(tmp_path / "study.html")
    measured = [
        anchor for row in data["layers"] for curve in row["curves"] for anchor in curve["anchors"]
    ] + [anchor for group in data["groups"] for anchor in group["anchors"]]
    curves = [*study.curves, *study.group_curves]
    assert len(measured) == sum(len(curve.anchors) for curve in curves) > 4
    assert (tmp_path / "study.html").read_text().count('<circle class="m"') == len(measured)


def test_a_study_of_an_older_version_has_curves_without_dots(tmp_path: Path) -> None:
    study = sr.Study.load(stored_net.STORED / "run")
    assert not any(curve.anchors for curve in (*study.curves, *study.group_curves))
    study.report(tmp_path / "old.html")
    html = (tmp_path / "old.html").read_text()
    assert "<polyline" in html
    assert '<circle class="m"' not in html


_MACHINE = Machine()


def test_a_study_shows_the_measured_time_of_each_layer(study: sr.Study, tmp_path: Path) -> None:
    table = table_on(study.structure, _MACHINE)
    study.report(tmp_path / "study.html", latencies=table)
    data = data_of(tmp_path / "study.html")
    assert data["latency"] == {
        "backend": "torch",
        "precision": "float32",
        "threads": 1,
        "batch": 1,
        "before_ms": pytest.approx(table.times.before / 1e6, rel=1e-3),
        "after_ms": None,
    }
    # A call and a time for each MAC.
    expected = [(100 + spec.macs) / 1e6 for spec in study.layers]
    assert [row["before"]["ms"] for row in data["layers"]] == pytest.approx(expected, rel=1e-3)
    html = (tmp_path / "study.html").read_text()
    assert '<th class="n">ms</th>' in html
    assert "time of a batch" in html
    assert "torch, float32, batch 1, 1 thread" in html
    study.report(tmp_path / "plain.html")
    plain = data_of(tmp_path / "plain.html")
    assert "latency" not in plain
    assert "ms" not in plain["layers"][0]["before"]
    assert "time of a batch" not in (tmp_path / "plain.html").read_text()


def test_a_result_shows_times_before_and_after(study: sr.Study, tmp_path: Path) -> None:
    # Pairs are slow on this machine, so that fewer MACs are hardly less time.
    table = table_on(study.structure, Machine(pair_mac={"linear": 1.8}))
    result = study.apply(study.plan(macs=0.6, methods=("weight_svd",)))
    result.report(tmp_path / "result.html", latencies=table)
    data = data_of(tmp_path / "result.html")
    for row in data["layers"]:
        spec, setting = study.layers[row["name"]], row["setting"]  # type: ignore[call-overload]
        rows, columns = spec.weight_shape
        assert row["before"]["ms"] == pytest.approx((100 + spec.macs) / 1e6, rel=1e-3)
        after = row["before"]["ms"]
        if setting is not None:
            after = (200 + 1.8 * setting["rank"] * (rows + columns)) / 1e6
        assert row["after"]["ms"] == pytest.approx(after, rel=1e-3)
    changed = sum(row["before"]["ms"] - row["after"]["ms"] for row in data["layers"])
    whole = data["latency"]
    assert whole["before_ms"] - whole["after_ms"] == pytest.approx(changed, rel=0.05, abs=1e-6)
    assert any("of the time is left, but" in advice["text"] for advice in data["advice"])
    html = (tmp_path / "result.html").read_text()
    assert "by the times of its parts" in html
    # Drawn again from its data, it is the same page.
    assert render_page(page_data(html)) == html


def test_a_table_or_curve_of_another_study_is_refused(study: sr.Study, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(2)
    wide = nn.Sequential(nn.Linear(16, 48), nn.ReLU(), nn.Linear(48, 6)).eval()
    other = sr.study(wide, [torch.randn(16, 16, generator=generator)], progress=False)
    result = study.apply(study.plan(macs=0.6, methods=("weight_svd",)))
    foreign = table_on(other.structure, _MACHINE)
    curve = other.pareto(points=2, measure=False)
    for one in (study, result):
        with pytest.raises(sr.LatencyError, match="was measured with other layers; measure one for this"):
            one.report(tmp_path / "page.html", latencies=foreign)
        with pytest.raises(sr.OptionError, match=r"latencies is a dict; give a table, e\.g\. slimrank\.meas"):
            one.report(tmp_path / "page.html", latencies={})  # type: ignore[arg-type]
        with pytest.raises(sr.PlanError, match=r"pareto: its plans are for another model \(.*; give a curve"):
            one.report(tmp_path / "page.html", pareto=curve)
    scores = sr.measure_scores(other, lambda _: 1.0, candidates=2, progress=False)
    with pytest.raises(sr.ScoreError, match="score table: it was measured with other"):
        study.report(tmp_path / "page.html", scores=scores)
    assert not list(tmp_path.iterdir())


def test_a_result_tells_what_rounding_changed(study: sr.Study, tmp_path: Path) -> None:
    plan = study.plan(macs=0.6, methods=("weight_svd", "channel_pruning"), multiple_of=4)
    result = study.apply(plan)
    result.report(tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    # The same layers and groups, planned for the same budget without multiples.
    free = {row["name"]: row["unrounded"] for row in data["layers"]}
    widths = {group["name"]: group["unrounded"] for group in data["groups"]}
    assert {name for name, setting in free.items() if setting} <= set(plan.settings)
    assert {name for name, width in widths.items() if width} <= set(plan.groups)
    sizes = [setting["rank"] for setting in free.values() if setting] + [w for w in widths.values() if w]
    assert any(size % 4 for size in sizes)
    assert plan.damage is not None
    assert data["plan"]["unrounded"]["damage"] <= plan.damage
    assert data["plan"]["unrounded"]["of"] == len(plan.settings) + len(plan.groups)
    html = (tmp_path / "page.html").read_text()
    assert '<th class="n">unrounded</th>' in html
    assert "with any rank and width," in html
    # Where nothing was rounded, and where ranks were typed, there is nothing to tell.
    for other in (
        study.plan(macs=0.6, multiple_of=1),
        sr.Plan.manual(study, {"2": ("weight_svd", 0.5)}, multiple_of=4),
    ):
        study.apply(other).report(tmp_path / "page.html")
        assert data_of(tmp_path / "page.html")["plan"]["unrounded"] is None
        assert '<th class="n">unrounded</th>' not in (tmp_path / "page.html").read_text()


def test_what_rounding_changed_is_no_condition_of_a_result(study: sr.Study, nets: ModuleType) -> None:
    # Nothing to plan again: a plan that changes nothing, and one of methods that this study did not measure.
    assert study.apply(study.plan(macs=1.0)).after == study.before
    pairs = sr.study(nets.mlp(), nets.noise(24, n=4, size=16), methods=("weight_svd",), progress=False)
    pruned = sr.study(nets.mlp(), nets.noise(24, n=4, size=16), methods=("channel_pruning",), progress=False)
    plan = pruned.plan(macs=0.6, multiple_of=4)
    assert plan.groups
    assert pairs.apply(plan).after == plan.after


def _run(*args: str) -> Result:
    return CliRunner().invoke(seams.cli, ["report", *args], catch_exceptions=False)


@pytest.mark.slow
def test_the_command_takes_a_table_of_times(
    study: sr.Study, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, "run")
    sr.measure_latency(study, backend="torch", batch=256, path="times.json", progress=False)
    done = _run("run", "--out", "a.html", "--latencies", "times.json")
    assert done.exit_code == 0, done.stderr
    assert "times: times.json" in done.stdout
    first = data_of(tmp_path / "a.html")["latency"]
    assert first["backend"] == "torch"
    # A saved model is drawn with them as well.
    study.apply(study.plan(macs=0.6)).save("small")
    assert _run("small", "--out", "small.html", "--latencies", "times.json").exit_code == 0
    assert data_of(tmp_path / "small.html")["latency"]["after_ms"] > 0
    # What compress measured for a latency lies in the run's directory.
    shutil.copy("times.json", "run/latencies.json")
    done = _run("run", "--out", "b.html", "--json")
    assert json.loads(done.stdout)["latencies"] == "run/latencies.json"
    assert data_of(tmp_path / "b.html")["latency"] == first
    # One that was stopped is told, and no reason to show nothing; one that was asked for is.
    table = json.loads(Path("times.json").read_text())
    stopped = {key: None if key == "result" else value for key, value in table.items()}
    assert stopped != table
    Path("run/latencies.json").write_text(json.dumps(stopped))
    done = _run("run", "--out", "c.html")
    assert done.exit_code == 0, done.stderr
    assert "without times: latency table run/latencies.json: its measurement was stopped" in done.stdout
    assert "latency" not in data_of(tmp_path / "c.html")
    assert _run("run", "--out", "c.html", "--latencies", "run/latencies.json").exit_code == 2
    # A table of another network is refused with its name.
    table["conditions"]["fingerprint"]["structure"] = "0"
    Path("foreign.json").write_text(json.dumps(table))
    done = _run("run", "--out", "d.html", "--latencies", "foreign.json")
    assert done.exit_code == 2
    assert "foreign.json: the latency table was measured with other layers" in done.stderr
    assert not Path("d.html").exists()


def test_the_command_draws_a_curve_and_scores(
    study: sr.Study, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study.pareto(points=3, measure=False).save("pareto.json")
    sr.measure_scores(study, lambda _: 0.5, candidates=2, path="scores.json", progress=False)
    done = _run(str(run_dir), "--out", "a.html", "--pareto", "pareto.json", "--scores", "scores.json")
    assert done.exit_code == 0, done.stderr
    data = data_of(tmp_path / "a.html")
    assert len(data["pareto"]["points"]) >= 2
    assert data["scores"]["baseline"] == 0.5
    study.apply(study.plan(macs=0.6)).save("small")
    assert _run("small", "--out", "b.html", "--pareto", "pareto.json").exit_code == 0
    assert data_of(tmp_path / "b.html")["pareto"] == data["pareto"]
    done = _run("small", "--out", "b.html", "--scores", "scores.json")
    assert "--scores is of a study; give the directory of the study" in done.stderr


@pytest.mark.parametrize("command", [("report",), ("explain", "0"), ("plan", "--macs=0.5"), ("pareto",)])
def test_what_is_no_study_is_refused(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("plan.json").write_text("{}")

    def refused(directory: str) -> str:
        done = CliRunner().invoke(seams.cli, [command[0], directory, *command[1:]], catch_exceptions=False)
        assert done.exit_code == 2, done.output
        return done.stderr

    assert "study empty: there is no study.json in it, so no study; give the --out of" in refused("empty")
    assert "it is not there" in refused("nowhere")
    file = refused("plan.json")
    if command == ("report",):
        assert "plan.json: it is a file, and a report is of a directory" in file
        assert "A plan alone has no report: slimrank explain RUN LAYER --plan PLAN" in file
    else:
        assert "study plan.json: it is a file, not a directory; give the --out of" in file


def test_a_run_that_is_not_whole_is_refused(run_dir: Path, study: sr.Study, tmp_path: Path) -> None:
    assert study.curves
    for name, cut, message in (
        (
            "study.json",
            None,
            r"was not finished; run it again .* \(slimrank serve .* shows how far it came\)",
        ),
        ("study.json", 200, "study.json is not whole JSON"),
        ("curves-0000.safetensors", 100, "curves-0000.safetensors is truncated or altered"),
    ):
        broken = shutil.copytree(run_dir, tmp_path / f"{name}-{cut}")
        if cut is None:
            (broken / name).unlink()
        else:
            (broken / name).write_bytes((broken / name).read_bytes()[:cut])
        done = _run(str(broken))
        assert done.exit_code == 2
        assert re.search(message, done.stderr), done.stderr
        assert not (broken / "report.html").exists()


def test_a_journal_that_was_cut_is_no_reason_to_show_nothing(
    run_dir: Path, study: sr.Study, tmp_path: Path
) -> None:
    assert study.curves
    cut = shutil.copytree(run_dir, tmp_path / "cut")
    journal = cut / "events.jsonl"
    journal.write_bytes(journal.read_bytes()[:-20])
    done = _run(str(cut))
    assert done.exit_code == 0, done.stderr
    assert data_of(cut / "report.html")["kind"] == "study"


def test_a_plan_that_is_applied_without_its_study_has_a_page(study: sr.Study, tmp_path: Path) -> None:
    plan = study.plan(macs=0.6, multiple_of=4)
    result = sr.apply(build(), plan, [torch.randn(16, 16)], progress=False)
    result.report(tmp_path / "page.html")
    data = data_of(tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    # What only a study knows is not there; what was built is.
    assert all(row["curves"] == [] for row in data["layers"])
    assert "Damage curves" not in html
    assert data["plan"]["unrounded"] is None
    assert "ranks and widths are multiples of 4" in html
    assert {row["name"] for row in data["layers"] if row["setting"]} == set(plan.settings)


def test_a_page_tells_how_its_study_was_made(study: sr.Study, run_dir: Path, tmp_path: Path) -> None:
    call = "slimrank.study(model, batches, seed=0)"
    result = study.apply(study.plan(macs=0.6))
    for number, one in enumerate((study, sr.Study.load(run_dir), result)):
        one.report(tmp_path / f"{number}.html")
        data = data_of(tmp_path / f"{number}.html")
        assert (data["call"], data["seed"]) == (call, 0)
        assert data["fingerprint"] == dict(study.fingerprint)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(16, 16, generator=generator)]
    other = sr.study(build(), batches, seed=5, draws=2, methods=("weight_svd",), progress=False)
    other.report(tmp_path / "other.html")
    assert data_of(tmp_path / "other.html")["call"] == (
        "slimrank.study(model, batches, seed=5, methods=('weight_svd',), draws=2)"
    )


@pytest.mark.slow
def test_compress_for_a_latency_shows_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.invent_latencies(monkeypatch, lambda _before, _after: 0.5)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "report_net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef build():\n"
        "    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 6)).eval()\n\n\n"
        "def batches():\n    return [torch.ones(8, 16) * i for i in range(4)]\n"
    )
    args = ("report_net.py:build", "report_net.py:batches", "--macs", "0.6", "--latency", "1.0")
    places = ("--run-dir", "run", "--out", "small", "--report", "page.html")
    done = CliRunner().invoke(
        seams.cli,
        ["compress", *args, *places, "--backend", "torch", "--batch", "256", "--effort", "fast", "--quiet"],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.stderr
    data = data_of(tmp_path / "page.html")
    assert data["latency"]["backend"] == "torch"
    assert [row["before"]["ms"] > 0 for row in data["layers"]] == [True, True]
    assert Path("run/latencies.json").is_file()
