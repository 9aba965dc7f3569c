# SPDX-License-Identifier: Apache-2.0
"""The commands that show what a study and its plans hold: pareto, explain, diff."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import seams
import slimrank as sr

_CODE = """
import torch
from torch import nn

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 6)
        ).eval()

def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 16, generator=generator) for _ in range(3)]

def score(model):
    return -model(torch.ones(1, 16)).square().sum().item()
"""
_MODEL = ("--model", "see_net.py:build")


@pytest.fixture(scope="module")
def _run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a network of one's own and its study in ``run``."""
    folder = tmp_path_factory.mktemp("see")
    (folder / "see_net.py").write_text(_CODE)
    space: dict[str, object] = {}
    exec(_CODE, space)
    sr.study(space["build"](), space["batches"](), run_dir=folder / "run", progress=False)  # type: ignore[operator]
    return folder


@pytest.fixture
def folder(_run: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(_run)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "see_net", raising=False)
    yield _run
    sys.modules.pop("see_net", None)


def _shown(*args: str) -> str:
    done = CliRunner().invoke(seams.cli, list(args), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def _facts(*args: str) -> dict[str, object]:
    facts: dict[str, object] = json.loads(_shown(*args, "--json"))
    return facts


def _refused(*args: str) -> str:
    done = CliRunner().invoke(seams.cli, list(args), catch_exceptions=False)
    assert done.exit_code == 2, done.output
    return done.stderr


def test_pareto_predicts_without_a_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    before = sorted(folder.iterdir())
    text = _shown("pareto", "run", "--points", "5", "--metric", "params")
    assert "budget  params  predicted" in text
    assert "<- knee" in text
    assert "Predicted, not measured; --model REF builds and measures every plan." in text
    assert "Not saved; --out pareto.json saves it." in text
    assert text.isascii()
    drawn = text[text.index("o predicted damage, over params") :].split("\n\n")[0].splitlines()
    assert max(map(len, drawn)) <= 60
    assert sorted(folder.iterdir()) == before


def test_pareto_measures_and_saves(folder: Path) -> None:
    facts = _facts("pareto", "run", *_MODEL, "--points", "3", "--out", "pareto.json", "--quiet")
    curve = sr.Pareto.load("pareto.json")
    points: list[dict[str, object]] = facts["points"]  # type: ignore[assignment]
    assert [point["measured"] for point in points] == [point.measured for point in curve.points]
    assert None not in [point["measured"] for point in points]
    assert curve.points[facts["knee"]] == curve.knee()  # type: ignore[index]
    assert facts["pareto"] == "pareto.json"
    assert facts["baseline"] is None
    scored = _facts("pareto", "run", *_MODEL, "--points", "2", "--score", "see_net.py:score", "--quiet")
    assert scored["measured_unit"] == "score"
    assert scored["baseline"] is not None


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--points", "1"), "points=1; give a whole number of at least 2"),
        (("--metric", "latency"), "metric='latency' needs measured times"),
        (("--score", "see_net.py:score"), "--score: nothing is measured without --model REF; add it"),
        (("--out", "none/pareto.json"), "--out none/pareto.json: cannot be written; give a file in an"),
        (("--out", "run"), "--out run: cannot be written"),
        (("--metric", "mac"), "'mac' is not one of"),
    ],
)
def test_pareto_refuses(args: tuple[str, ...], message: str, folder: Path) -> None:
    assert message in " ".join(_refused("pareto", "run", *args).split())


def test_explain_tells_of_a_layer_and_of_a_plan(folder: Path) -> None:
    text = _shown("explain", "run", "2")
    assert text.startswith("2 is a Linear with a weight of 24x32 and a bias, called once.")
    assert "<- chosen" not in text
    _shown("plan", "run", "--macs", "0.5", "--methods", "weight_svd", "--out", "plan.json")
    assert "<- chosen" in _shown("explain", "run", "2", "--plan", "plan.json")
    facts = _facts("explain", "run", "2", "--plan", "plan.json")
    assert facts["layer"] == "2"
    setting = sr.Plan.load("plan.json").settings["2"]
    assert facts["setting"] == {"method": "weight_svd", "form": "linear", "rank": setting.rank}
    assert "layer '3': the model has none; known are '0', '2', '4'" in _refused("explain", "run", "3")
    assert "plan.jsn" in _refused("explain", "run", "2", "--plan", "plan.jsn")
