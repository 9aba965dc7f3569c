# SPDX-License-Identifier: Apache-2.0
"""The command line end to end, on a model file of one's own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

import seams
import slimrank as sr

# PAUSE slows the forward down, so that a run can be met midway.
_CODE = """
import os
import time

import torch
from torch import nn

class Pause(nn.Module):
    def forward(self, x):
        time.sleep(float(os.environ.get("PAUSE", "0")))
        return x

def build():
    print("building")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            Pause(), nn.Flatten(), nn.Linear(128, 6),
        ).eval()

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.conv(x).relu()

def residual():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), Residual(), Residual(),
            nn.Flatten(), nn.Linear(128, 6),
        ).eval()

def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 4, 4, generator=generator) for _ in range(4)]

def labelled():
    return [(batch, torch.zeros(len(batch))) for batch in batches()]

def images(pair):
    return pair[0]

class TwoOutputs(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return {"boxes": y[:, :3], "scores": y[:, 3:]}

def two_outputs():
    return TwoOutputs(*build()).eval()

def boxes_loss(outputs, original):
    return (outputs["boxes"] - original["boxes"]).square().sum(1)

def other_loss(outputs, original):
    return (outputs["boxes"] - original["boxes"]).abs().sum(1)

def note_layer(model, name):
    with open("layers.txt", "a") as file:
        file.write(name + "\\n")
"""
_MODEL, _BATCHES = "cli_net.py:build", "cli_net.py:batches"
_LOAD = """
import cli_net, slimrank
print(slimrank.load("small", model=cli_net.build())(cli_net.batches()[0]).shape)
"""
_PROGRAM = Path(sys.executable).parent / "slimrank"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "cli_net.py").write_text(_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "cli_net", raising=False)
    return tmp_path


def _facts(*args: str) -> dict[str, object]:
    """What a command says with ``--json``; also that stdout holds nothing else."""
    done = CliRunner().invoke(seams.cli, [*args, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    facts: dict[str, object] = json.loads(done.stdout)
    return facts


def _refused(*args: str) -> str:
    done = CliRunner().invoke(seams.cli, list(args), catch_exceptions=False)
    assert done.exit_code == 2, done.output
    return done.stderr


def _start(*args: str, pause: float) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [_PROGRAM, *args],
        env={**os.environ, "PAUSE": str(pause)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that runs the tests in the background hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )


def _wait_for(path: Path, program: "subprocess.Popen[str]") -> None:
    while not path.exists():
        assert program.poll() is None, program.communicate()
        time.sleep(0.005)


def _arrays(run: Path) -> Mapping[str, torch.Tensor]:
    files = sorted(run.glob("*.safetensors"))
    return {f"{file.name}/{key}": value for file in files for key, value in load_file(file).items()}


@pytest.mark.slow
def test_study_plan_apply_and_load_in_a_new_process(folder: Path) -> None:
    study = _facts("study", _MODEL, _BATCHES, "--out", "run", "--likelihood", "categorical")
    assert [layer["name"] for layer in study["layers"]] == ["0", "2", "6"]  # type: ignore[attr-defined]

    shown = CliRunner().invoke(seams.cli, ["plan", "run", "--macs", "0.6"])
    assert "Not saved; --out plan.json saves it." in shown.stdout
    assert "ranks and widths are any number (auto)" in shown.stdout
    assert not list(folder.glob("*.json"))
    auto = _facts("plan", "run", "--macs", "0.6", "--multiple-of", "auto")
    assert (auto["multiple_of"], auto["relaxed"]) == (1, [])
    plan = _facts("plan", "run", "--macs", "0.6", "--multiple-of", "2", "--out", "plan.json")
    assert (plan["multiple_of"], plan["relaxed"]) == (2, None)
    assert 0 < plan["keep_ratio"]["macs"] <= 0.6  # type: ignore[index]
    assert all(setting["rank"] % 2 == 0 for setting in plan["settings"].values())  # type: ignore[attr-defined]

    result = _facts(
        "apply", _MODEL, "plan.json", "--study", "run", "--out", "small", "--on-layer", "cli_net:note_layer"
    )
    assert result["after"] == plan["after"]
    fitted = [layer["name"] for layer in result["layers"] if layer["fit"]]  # type: ignore[attr-defined]
    assert (folder / "layers.txt").read_text().split() == fitted
    assert set(plan["settings"]) <= set(fitted)  # type: ignore[call-overload]
    loaded = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True, check=True)
    assert "torch.Size([8, 6])" in loaded.stdout

    # The same plan without data, and with data of the caller's own.
    assert _facts("apply", _MODEL, "plan.json", "--out", "plain")["divergence"] is None
    told = CliRunner().invoke(seams.cli, ["apply", _MODEL, "plan.json", "--out", "plain", "--overwrite"])
    assert "; give --study or --batches to fit to data" in told.stdout
    own = ("apply", _MODEL, "plan.json", "--batches", "cli_net:labelled", "--inputs", "cli_net:images")
    assert _facts(*own, "--out", "small", "--overwrite")["divergence"] is not None

    assert _facts("report", "run", "--out", "study.html")
    assert "<!DOCTYPE html>" in (folder / "study.html").read_text()
    assert _facts("report", "small", "--out", "small.html") == {
        "report": "small.html",
        "data": "small.json",
        "latencies": None,
    }
    assert (folder / "small.html").read_bytes() == (folder / "small" / "report.html").read_bytes()
    assert _facts("report", "run") == {
        "report": "run/report.html",
        "data": "run/report.json",
        "latencies": None,
    }
    data = json.loads((folder / "run" / "report.json").read_text())
    assert data["kind"] == "study"
    (folder / "small" / "report.html").write_text("<p>mine</p>")
    assert "no page that slimrank wrote" in _refused("report", "small", "--out", "small.html")
    assert "--macs 1.5 is no keep ratio" in _refused("plan", "run", "--macs", "1.5")
    assert "a plan needs a budget" in _refused("plan", "run")
    by_number = _facts("plan", "run", "--macs", "9_000", "--bytes", "75%", "--out", "number.json")
    saved = json.loads((folder / "number.json").read_text())
    assert saved["asked"] == {"bytes": "75%", "macs": "9_000"}
    assert saved["costs"]["after"]["macs"] <= 9_000
    assert by_number["plan"] == "number.json"
    assert "did you mean 'weight_svd'" in _refused("plan", "run", "--macs", "0.6", "--methods", "weight_svt")
    fixed = _refused(
        "apply", _MODEL, "plan.json", "--study", "run", "--out", "x", "--seed", "3", "--draws", "2"
    )
    assert "--draws, --seed: fixed when the study was made" in fixed
    assert "plan.jsn" in _refused("apply", _MODEL, "plan.jsn", "--out", "x")
    assert "no_run: it is not there; give the --out of slimrank study" in _refused(
        "plan", "no_run", "--macs", "0.5"
    )
    assert "small holds a saved model, not a run; give the directory of its study" in _refused(
        "serve", "small"
    )
    assert "nodir is no directory; give that of a run, e.g. the --out of slimrank study" in _refused(
        "serve", "nodir"
    )
    assert "give another --out or delete it" in _refused(
        "study", "cli_net.py:residual", _BATCHES, "--out", "run"
    )
    assert "needs --inputs file.py:fn with def fn(b): return b[0]" in _refused(
        "study", _MODEL, "cli_net:labelled", "--out", "other"
    )


@pytest.mark.slow
def test_channels_from_the_study_to_the_saved_model(folder: Path) -> None:
    command = ("study", _MODEL, _BATCHES, "--out", "run", "--methods", "channel_pruning", "--quiet")
    shown = CliRunner().invoke(seams.cli, [*command, "--groups"], catch_exceptions=False)
    assert "2 groups, 2 can be slimmed" not in shown.stdout
    assert "\n3 groups, 2 can be slimmed\n\nStay whole\n - 6: model output\n" in shown.stdout
    assert "layer  kind" in shown.stdout
    assert "Kept in run." in shown.stdout
    assert "Stay whole" not in CliRunner().invoke(seams.cli, list(command)).stdout
    facts = _facts(*command)
    groups = {group["name"]: group for group in facts["groups"]}  # type: ignore[attr-defined]
    assert groups["0"]["producers"] == ["0"]
    assert groups["0"]["consumers"] == ["2"]
    assert groups["6"]["reason"] == "model output"
    assert facts["blocks"] == []

    budget = ("plan", "run", "--macs", "0.6", "--methods", "channel_pruning")
    text = CliRunner().invoke(seams.cli, list(budget)).stdout
    assert "slimmed" in text
    assert "of 2 groups compressed" in text
    plan = _facts(*budget, "--multiple-of", "2", "--out", "plan.json")
    assert plan["settings"] == {}
    assert plan["dropped"] == []
    kept: dict[str, list[int]] = plan["groups"]  # type: ignore[assignment]
    assert kept
    assert all(len(units) % 2 == 0 for units in kept.values())

    result = _facts("apply", _MODEL, "plan.json", "--study", "run", "--out", "small")
    assert result["after"] == plan["after"]
    slimmed = {layer["name"]: layer["slimmed"] for layer in result["layers"]}  # type: ignore[attr-defined]
    for name, units in kept.items():
        assert slimmed[name].startswith(f"8 -> {len(units)} outputs")
    loaded = subprocess.run([sys.executable, "-c", _LOAD], capture_output=True, text=True, check=True)
    assert "torch.Size([8, 6])" in loaded.stdout


def test_channels_and_factors_by_hand(folder: Path) -> None:
    assert _facts("study", _MODEL, _BATCHES, "--out", "run", "--quiet")
    (folder / "first.json").write_text(
        json.dumps({"0": ["channel_pruning", {"keep": 4}], "6": ["weight_svd", {"rank": 3}]})
    )
    first = _facts("plan", "run", "--manual", "first.json", "--out", "first_plan.json")
    assert len(first["groups"]["0"]) == 4  # type: ignore[index]
    assert list(first["settings"]) == ["6"]  # type: ignore[call-overload]

    (folder / "second.csv").write_text("layer,method,ratio\n2,channel_pruning,0.5\n6,,\n")
    command = (
        "plan",
        "run",
        "--manual",
        "second.csv",
        "--base",
        "first_plan.json",
        "--diff",
        "first_plan.json",
    )
    second = _facts(*command)
    assert second["settings"] == {}
    assert second["groups"]["0"] == first["groups"]["0"]  # type: ignore[index]
    assert len(second["groups"]["2"]) == 4  # type: ignore[index]
    assert "4 of 8" in str(second["diff"])
    shown = CliRunner().invoke(seams.cli, list(command)).stdout
    assert "2      channel_pruning  4 of 8" in shown
    assert "manual: 0 of 3 layers, 2 of 2 groups compressed" in shown


def test_a_base_keeps_a_pair_and_channels_of_one_name_and_its_dropped_blocks(folder: Path) -> None:
    assert _facts("study", "cli_net.py:residual", _BATCHES, "--out", "run", "--quiet")
    wanted = {
        "0": [["channel_pruning", {"keep": 4}], ["weight_svd", {"rank": 2}]],
        "2": "drop",
    }
    (folder / "first.json").write_text(json.dumps(wanted))
    first = _facts("plan", "run", "--manual", "first.json", "--out", "first_plan.json")
    assert first["dropped"] == ["2"]
    assert list(first["settings"]) == ["0"]  # type: ignore[call-overload]
    (folder / "none.json").write_text("{}")
    again = _facts("plan", "run", "--manual", "none.json", "--base", "first_plan.json")
    for key in ("settings", "groups", "dropped", "after"):
        assert again[key] == first[key], key
    shown = CliRunner().invoke(seams.cli, ["plan", "run", "--manual", "first.json"]).stdout
    assert "gone with 2" in shown
    assert "1 block compressed" in shown


def test_over_a_base_what_is_said_of_a_pair_leaves_channels_and_the_other_way_round(folder: Path) -> None:
    assert _facts("study", _MODEL, _BATCHES, "--out", "run", "--quiet")
    (folder / "first.json").write_text(
        json.dumps({"0": [["channel_pruning", {"keep": 6}], ["weight_svd", {"rank": 2}]]})
    )
    first = _facts("plan", "run", "--manual", "first.json", "--out", "first_plan.json")
    over = ("plan", "run", "--base", "first_plan.json", "--manual")
    (folder / "channels.csv").write_text("layer,method,keep\n0,channel_pruning,4\n")
    narrower = _facts(*over, "channels.csv")
    assert narrower["settings"] == first["settings"]
    assert len(narrower["groups"]["0"]) == 4  # type: ignore[index]
    (folder / "pair.csv").write_text("layer,method,rank\n0,weight_svd,1\n")
    lower = _facts(*over, "pair.csv")
    assert lower["groups"] == first["groups"]
    assert lower["settings"]["0"]["rank"] == 1  # type: ignore[index,call-overload]
    assert "--base brings the multiples of its plan" in _refused(*over, "pair.csv", "--multiple-of", "2")


def test_compress_saves_the_model_and_a_report(folder: Path) -> None:
    options = ("--macs", "0.6", "--methods", "weight_svd", "--no-compete", "--no-fisher", "--quiet")
    places = ("--out", "small", "--report", "page.html")
    done = CliRunner().invoke(
        seams.cli,
        ["compress", _MODEL, "cli_net:labelled", "--inputs", "cli_net:images", *options, *places],
        catch_exceptions=False,
    )
    assert done.exit_code == 0, done.stderr
    assert "Saved in small; report: small/report.html" in done.stdout
    assert sorted(path.name for path in (folder / "small").iterdir()) == [
        "manifest.json",
        "model.safetensors",
        "plan.json",
        "report.html",
    ]
    assert (folder / "page.html").read_bytes() == (folder / "small" / "report.html").read_bytes()
    settings = json.loads((folder / "small" / "plan.json").read_text())["steps"][0]["layers"]
    assert settings
    assert "is not empty" in _refused("compress", _MODEL, _BATCHES, "--macs", "0.6", "--out", "small")


@pytest.mark.slow
def test_in_a_pipe_no_line_is_broken(folder: Path) -> None:
    commands = (
        ("study", _MODEL, _BATCHES, "--out", "run", "--groups"),
        ("plan", "run", "--macs", "0.6", "--out", "plan.json"),
        ("explain", "run", "2", "--plan", "plan.json"),
        ("compress", _MODEL, _BATCHES, "--macs", "0.6", "--out", "small", "--effort", "fast"),
    )
    longest = {}
    for command in commands:
        done = CliRunner().invoke(seams.cli, command, catch_exceptions=False)
        assert done.exit_code == 0, done.stderr
        lines = done.stdout.split("\n")
        longest[command[0]] = max(map(len, lines))
        # What goes on in another line is indented; tables and the beginnings of sentences are not.
        assert [line for line in lines if line.startswith(" ") and not line.startswith(" - ")] == []
    assert longest["explain"] > 200
    assert longest["compress"] > 120


def test_help_in_a_pipe_has_whole_sentences() -> None:
    shown = subprocess.run([_PROGRAM, "--help"], capture_output=True, text=True, check=True).stdout
    for name in seams.command_names():
        assert f"  {name:<8}  {seams.told_help(name)}\n" in shown
    options = subprocess.run([_PROGRAM, "plan", "--help"], capture_output=True, text=True, check=True).stdout
    assert "or so many bytes at most, as 2MB.\n" in options


@pytest.mark.parametrize("macs", ["0", "-1", "1.01", "nan"])
def test_a_budget_that_is_no_keep_ratio_is_refused_at_once(folder: Path, macs: str) -> None:
    line = _refused("compress", _MODEL, _BATCHES, f"--macs={macs}", "--out", "small")
    assert "is no keep ratio (cost after / cost before) in (0, 1]; give e.g. --macs 0.5" in line
    assert not (folder / "small").exists()


_NOT_BEGUN = (
    "\nslimrank: stopped; the command had not begun, so nothing was changed; what earlier calls kept in a "
    "run directory is there: the same command goes on from it\n"
)


@pytest.mark.parametrize("imported", ["click", "torch"])
def test_ctrl_c_during_imports_is_told_in_a_line(folder: Path, imported: str) -> None:
    # What stands in the working directory is imported first.
    (folder / f"{imported}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    done = subprocess.run(
        [sys.executable, "-m", "slimrank", "study", _MODEL, _BATCHES, "--out", "run"],
        capture_output=True,
        text=True,
        check=False,
        # A shell that runs the tests in the background hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", _NOT_BEGUN)


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_tells_what_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sr, "compress", _interrupt)
    command = ["compress", _MODEL, _BATCHES, "--macs", "0.5", "--out", "small", "--overwrite"]

    def told(*more: str) -> str:
        done = CliRunner().invoke(seams.cli, [*command, *more])
        assert done.exit_code == 130
        return done.stderr.strip()

    resume = "with --run-dir DIR the same command goes on where it was stopped"
    assert told() == f"slimrank: stopped; nothing was kept; {resume}"
    assert told("--run-dir", "run") == "slimrank: stopped; nothing was measured yet"
    (folder / "run").mkdir()
    kept = "what was measured is kept in run: the same command goes on from there"
    assert told("--run-dir", "run") == f"slimrank: stopped; {kept}"
    # As after the model was saved, and while its report was written.
    (folder / "small").mkdir()
    assert told() == f"slimrank: stopped; nothing was kept but what small holds; {resume}"


def test_ctrl_c_while_the_answer_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.interrupt_answers(monkeypatch)
    done = CliRunner().invoke(seams.cli, ["env"])
    assert done.exit_code == 130
    assert done.stderr == "\nslimrank: stopped; all was done, only its answer was not shown in full\n"


@pytest.mark.slow
def test_workers_that_are_starting_say_nothing_of_ctrl_c(folder: Path) -> None:
    assert _facts("study", _MODEL, _BATCHES, "--out", "run", "--quiet")
    (folder / "judge.py").write_text("import time\ndef score(model):\n    time.sleep(0.5)\n    return 1.0\n")
    command = ("score", _MODEL, "judge.py:score", "--study", "run", "--out", "scores.json", "--quiet")
    stopped = _start(*command, "--workers", "2", pause=0.0)
    _wait_for(folder / "scores.json", stopped)
    # As from a terminal: to the workers as well.
    os.killpg(stopped.pid, signal.SIGINT)
    _, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130
    kept = "what was measured is kept in scores.json: the same command goes on from there"
    assert errors == f"\nslimrank: stopped; {kept}\n"


@pytest.mark.slow
def test_a_study_that_was_stopped_and_then_killed_goes_on(folder: Path) -> None:
    command = ("study", _MODEL, _BATCHES, "--quiet")
    assert _facts(*command, "--out", "whole")

    stopped = _start(*command, "--out", "run", pause=0.2)
    _wait_for(folder / "run" / "run.json", stopped)
    stopped.send_signal(signal.SIGINT)
    output, errors = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, errors
    assert "slimrank: stopped; what was measured is kept in run: the same command goes on" in errors
    assert "Traceback" not in errors
    assert "Kept in" not in output

    killed = _start(*command, "--out", "run", pause=0.05)
    _wait_for(folder / "run" / "curves-0000.safetensors", killed)
    killed.kill()
    killed.communicate(timeout=60)
    assert not (folder / "run" / "study.json").exists(), "the run was over before it was killed"

    resumed = _facts(*command, "--out", "run")
    assert "gradients" not in resumed["seconds"]  # type: ignore[operator]
    whole, found = _arrays(folder / "whole"), _arrays(folder / "run")
    assert whole.keys() == found.keys()
    for key, expected in whole.items():
        # Not bit for bit: another process may sum in another order.
        torch.testing.assert_close(
            found[key], expected, rtol=1e-5, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}"
        )


@pytest.mark.slow
def test_demo_measures_saves_and_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.short_demo(monkeypatch)
    facts = _facts("demo", "--out", str(tmp_path / "demo"), "--macs", "0.7", "--quiet")
    assert facts["loads_equal"] is True
    assert 0.69 < facts["keep_ratio"]["macs"] <= 0.7  # type: ignore[index]
    names = [measured["name"] for measured in facts["measurements"]]  # type: ignore[attr-defined]
    assert names == [
        "peak of activations, one sample",
        "accuracy, 250 unseen images",
        "latency, batch 1",
        "latency, batch 64",
        "ONNX file",
        "onnxruntime, batch 16, 1 thread",
    ]
    exported = facts["exported"]
    assert [path.name for path in (tmp_path / "demo").iterdir() if path.is_file()] == ["compressed.onnx"]
    size = (tmp_path / "demo" / "compressed.onnx").stat().st_size
    assert size == exported["bytes"] < exported["before_bytes"]  # type: ignore[index]
    (named,) = json.loads((tmp_path / "demo" / "model" / "manifest.json").read_text())["exports"]
    assert (named["file"], named["bytes"]) == ("../compressed.onnx", size)
    assert exported["before_ms"] > 0  # type: ignore[index]
    assert facts["not_exported"] is None
    assert {"capture", "curves", "apply", "latency"} <= set(facts["seconds"])  # type: ignore[call-overload]
    assert (tmp_path / "demo" / "model" / "report.html").is_file()


@pytest.mark.slow
def test_demo_ends_with_the_exported_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seams.short_demo(monkeypatch)
    done = CliRunner().invoke(seams.cli, ["demo", "--out", str(tmp_path / "demo"), "--quiet"])
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    # On a busy machine a note on the times follows.
    end = lines[lines.index("Exported:") :]
    size = (tmp_path / "demo" / "compressed.onnx").stat().st_size / 1e6
    assert f"compressed.onnx (onnx): {size:,.3f} MB, original 1." in end[1]
    assert "equal classes" in end[2]
    assert end[3].startswith("original ")
    assert end[3].endswith("batch 16, 1 thread")
    report = (tmp_path / "demo" / "model" / "report.html").read_text()
    assert "compressed.onnx has the compressed network for onnxruntime" in report


@pytest.mark.slow
def test_demo_without_the_export_extra_says_the_line_for_pip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.short_demo(monkeypatch)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    done = CliRunner().invoke(seams.cli, ["demo", "--out", str(tmp_path), "--quiet"])
    assert done.exit_code == 0, done.output
    last = done.stdout.splitlines()[-1]
    assert last.startswith("Not exported: format='onnx' needs onnxruntime, which")
    assert last.endswith("pip install 'slimrank[export]'")
    assert (tmp_path / "model" / "report.html").is_file()
    assert not list(tmp_path.glob("*.onnx"))


@pytest.mark.slow
def test_outputs_are_picked_read_and_weighed(folder: Path) -> None:
    study = ("study", "cli_net.py:two_outputs", _BATCHES, "--out", "run")
    options = ("--outputs", "boxes", "--outputs", "scores", "--likelihood", "scores=categorical")
    facts = _facts(*study, *options, "--weight", "boxes=3")
    before = _arrays(folder / "run")
    assert _facts(*study, *options, "--weight", "boxes=3")["layers"] == facts["layers"]
    torch.testing.assert_close(_arrays(folder / "run"), before, rtol=0, atol=0)
    words = (
        "run holds a study of other outputs (which ones, or their likelihood, weights or loss); give anoth"
    )
    assert words in _refused(*study, *options)
    assert words in _refused(*study, *options, "--weight", "boxes=4")
    assert "other options (--likelihood" in _refused(*study, "--weight", "boxes=3")
    assert _facts("plan", "run", "--macs", "0.6", "--out", "plan.json")
    apply = ("apply", "cli_net.py:two_outputs", "plan.json", "--study", "run", "--out", "small")
    assert "--weight: fixed when the study was made" in _refused(*apply, "--weight", "boxes=3")
    assert "--likelihood: fixed when the study was made" in _refused(*apply, "--likelihood", "auto")
    assert _facts(*apply)["divergence"] is not None


def test_a_loss_of_ones_own_is_named_again(folder: Path) -> None:
    study = ("study", "cli_net.py:two_outputs", _BATCHES, "--out", "run")
    loss = ("--loss", "cli_net.py:boxes_loss")
    facts = _facts(*study, *loss)
    assert facts["unit"] == "loss per sample"
    before = _arrays(folder / "run")
    _facts(*study, *loss)
    torch.testing.assert_close(_arrays(folder / "run"), before, rtol=0, atol=0)
    assert "run holds a study of other outputs (which ones," in _refused(*study)
    assert "run holds a study of other outputs" in _refused(*study, "--loss", "cli_net.py:other_loss")
    assert "--weight and --loss are given" in _refused(*study, *loss, "--weight", "boxes=2")
    _facts("plan", "run", "--macs", "0.6", "--out", "plan.json")

    apply = ("apply", "cli_net.py:two_outputs", "plan.json", "--study", "run", "--out", "small")
    assert "made with --loss, a function that no file can keep; pass the same --loss" in _refused(*apply)
    assert "was made of other outputs" in _refused(*apply, "--loss", "cli_net.py:other_loss")
    assert _facts(*apply, *loss)["divergence"] is not None

    (folder / "score.py").write_text("def score(model):\n    return 1.0\n")
    score = ("score", "cli_net.py:two_outputs", "score.py:score", "--study", "run", "--out", "table.json")
    narrow = ("--layers", "6", "--candidates", "0.5", "--methods", "weight_svd")
    assert "made with --loss" in _refused(*score, *narrow)
    assert _facts(*score, *narrow, *loss)


def test_memory_reaches_every_command_that_studies_or_applies(folder: Path) -> None:
    _facts("study", _MODEL, _BATCHES, "--out", "run", "--memory", "2GB", "--quiet")
    _facts("plan", "run", "--macs", "0.6", "--out", "plan.json")
    (folder / "score.py").write_text("def score(model):\n    return 1.0\n")
    commands = [
        ("study", _MODEL, _BATCHES, "--out", "other"),
        ("compress", _MODEL, _BATCHES, "--macs", "0.6", "--out", "small"),
        ("apply", _MODEL, "plan.json", "--batches", _BATCHES, "--out", "small"),
        ("apply", _MODEL, "plan.json", "--study", "run", "--out", "small"),
        ("score", _MODEL, "score.py:score", "--study", "run", "--out", "scores.json"),
    ]
    for command in commands:
        refusal = _refused(*command, "--memory", "1 MB", "--quiet")
        assert "--memory 1 MB is too little: layer" in refusal, command
        assert "there is no unit 'XB'" in _refused(*command, "--memory", "1XB", "--quiet"), command
    _facts(*commands[3], "--memory", "1 GiB", "--quiet")
