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
        (("--points", "1"), "--points 1; give a whole number of at least 2"),
        (("--metric", "latency"), "--metric 'latency' needs measured times"),
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


def test_diff_shows_layers_groups_blocks_and_totals(folder: Path) -> None:
    study = sr.Study.load("run")
    first = sr.Plan.manual(study, {"2": ("weight_svd", {"rank": 6}), "4": ("weight_svd", {"rank": 3})})
    second = study.edit(first, {"2": ("weight_svd", {"rank": 5}), "0": ("channel_pruning", {"keep": 20})})
    first.save("a.json")
    second.save("b.json")
    text = _shown("diff", "a.json", "b.json")
    assert text.startswith("a.json (this), b.json (other): 1 layer, 1 group\n")
    lines = [line.split() for line in text.splitlines()[1:]]
    assert [line[0] for line in lines] == ["layer", "2", "0", "macs", "params", "bytes", "damage"]
    assert lines[3][1:] == [f"{plan.keep_ratio('macs'):.4f}" for plan in (first, second)]
    facts = _facts("diff", "a.json", "b.json")
    (layer,), (group,) = facts["layers"], facts["groups"]  # type: ignore[misc]
    assert (layer["name"], layer["this"]["rank"], layer["other"]["rank"]) == ("2", 6, 5)
    assert (group["name"], group["this"], group["other"]) == ("0", None, list(second.groups["0"]))
    assert group["other_text"].startswith("channel_pruning keeps 20 of 32")
    assert (facts["same"], facts["same_model"], facts["blocks"]) == (False, True, [])
    assert facts["other"]["keep_ratio"]["macs"] == second.keep_ratio("macs")  # type: ignore[index]
    same = _shown("diff", "a.json", "a.json")
    assert (
        same == "a.json (this), a.json (other)\nno difference: both plans give every layer the same setting\n"
    )
    assert _facts("diff", "b.json", "b.json")["same"] is True
    assert "c.json: cannot be read" in _refused("diff", "a.json", "c.json")


def test_diff_of_plans_for_different_models_says_so(folder: Path) -> None:
    study = sr.Study.load("run")
    sr.Plan.manual(study, {"2": ("weight_svd", {"rank": 6})}).save("one.json")
    text = Path("one.json").read_text().replace(study.structure.sha256, "0" * 64)
    Path("other.json").write_text(text)
    assert "The two plans are for different models" in _shown("diff", "one.json", "other.json")
    assert _facts("diff", "one.json", "other.json")["same_model"] is False
