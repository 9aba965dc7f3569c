# SPDX-License-Identifier: Apache-2.0
"""AIMET's way from the command line: scores, manual plans, a second step, the smallest model."""

import json
import pickle
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner

import seams

_CODE = """
import torch
from torch import nn

def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128, 6),
        ).eval()

def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 4, 4, generator=generator) for _ in range(4)]

WANTED = [build()(batch).detach().argmax(1) for batch in batches()]

def boom(model, name):
    raise ValueError("no such luck")

def accuracy(model):
    with open("evaluations.txt", "a") as file:
        file.write("x")
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(batches(), WANTED))
    return right / 32
"""
_MODEL, _BATCHES, _SCORE = "score_net.py:build", "score_net.py:batches", "score_net.py:accuracy"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "score_net.py").write_text(_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "score_net", raising=False)
    _facts("study", _MODEL, _BATCHES, "--out", "run", "--likelihood", "categorical")
    return tmp_path


def _facts(*args: str) -> dict[str, object]:
    done = CliRunner().invoke(seams.cli, [*args, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    facts: dict[str, object] = json.loads(done.stdout)
    return facts


def _shown(*args: str) -> str:
    done = CliRunner().invoke(seams.cli, list(args), catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def _refused(*args: str) -> str:
    done = CliRunner().invoke(seams.cli, list(args), catch_exceptions=False)
    assert done.exit_code == 2, done.output
    return done.stderr


def test_score_resumes_and_its_table_plans(folder: Path) -> None:
    score = ("score", _MODEL, _SCORE, "--study", "run", "--out", "scores.json", "--candidates", "0.3,0.6")
    shown = _shown(*score, "--report", "scores.html")
    assert "<svg" in (folder / "scores.html").read_text()
    assert "Next: slimrank plan run --scores scores.json" in shown
    count = len((folder / "evaluations.txt").read_text())
    facts = _facts(*score)
    rows = [*facts["entries"].values(), *(one["entries"] for one in facts["groups"])]  # type: ignore[attr-defined]
    assert count == 1 + sum(map(len, rows))
    assert len((folder / "evaluations.txt").read_text()) == count, "a finished table is not evaluated again"
    plan = ("plan", "run", "--scores", "scores.json", "--macs", "0.7")
    for options in ((), ("--select", "greedy", "--monotonic"), ("--interpolate", "--multiple-of", "2")):
        facts = _facts(*plan, *options)
        assert facts["keep_ratio"]["macs"] <= 0.7  # type: ignore[index]
        assert facts["score_loss"] is not None
    assert "--monotonic and --interpolate treat eval scores; pass" in _refused(
        "plan", "run", "--macs", "0.7", "--monotonic"
    )
    other = (*score[:-1], "0.3,0.5")
    assert "candidates" in _refused(*other)


def test_score_of_channel_groups_alone(folder: Path) -> None:
    score = ("score", _MODEL, _SCORE, "--study", "run", "--out", "scores.json", "--candidates", "0.3,0.6")
    shown = _shown(*score, "--methods", "channel_pruning", "--report", "scores.html")
    assert "or this channel group at this share of its units" in shown
    facts = _facts(*score, "--methods", "channel_pruning")
    assert facts["entries"] == {}
    assert [one["group"] for one in facts["groups"]] == ["0", "2"]  # type: ignore[attr-defined]
    assert (folder / "scores.html").read_text().count("<figure>") == 2
    plan = ("plan", "run", "--scores", "scores.json", "--macs", "0.6", "--select", "greedy")
    done = _facts(*plan, "--out", "plan.json")
    assert done["keep_ratio"]["macs"] <= 0.6  # type: ignore[index]
    assert json.loads((folder / "plan.json").read_text())["steps"][0]["groups"]


@pytest.mark.slow
def test_compress_with_groups_alone_within_a_drop_and_in_a_split(folder: Path) -> None:
    compress = ("compress", _MODEL, _BATCHES, "--likelihood", "categorical", "--score", _SCORE)
    pruned = ("--methods", "channel_pruning", "--max-drop", "0.2", "--out", "small")
    assert _facts(*compress, *pruned)["keep_ratio"]["macs"] < 1  # type: ignore[index]
    split = ("--split", "--macs", "0.6", "--methods", "channel_pruning,weight_svd", "--out", "split")
    facts = _facts(*compress, *split)
    assert facts["keep_ratio"]["macs"] <= 0.6  # type: ignore[index]
    assert len([note for note in facts["notes"] if note.startswith("split: ")]) >= 3  # type: ignore[attr-defined]


def test_score_says_what_it_needs(folder: Path) -> None:
    base = ("--study", "run", "--out", "scores.json")
    assert "give MODEL and SCORE_FN" in _refused("score", _MODEL, *base)
    assert "--baseline is for --from-aimet" in _refused("score", _MODEL, _SCORE, *base, "--baseline", "1")
    assert "give a number, or ratios" in _refused("score", _MODEL, _SCORE, *base, "--candidates", "few")
    aimet = ("score", "--from-aimet", "old.pkl", *base)
    assert "needs the one method that AIMET explored" in _refused(*aimet)
    assert "--layers, --workers: a table of AIMET's is done" in _refused(
        *aimet, "--methods", "spatial_svd", "--layers", "2", "--workers", "2"
    )
    assert "leave out MODEL and SCORE_FN" in _refused("score", _MODEL, "--from-aimet", "old.pkl", *base)


def test_a_table_of_aimet_plans(folder: Path) -> None:
    table = {"2": {Decimal(k) / 10: 0.5 + k / 20 for k in range(1, 10)}}
    (folder / "old.pkl").write_bytes(pickle.dumps(table))
    aimet = ("score", "--from-aimet", "old.pkl", "--methods", "spatial_svd", "--baseline", "1.0")
    _facts(*aimet, "--study", "run", "--out", "scores.json")
    facts = _facts("plan", "run", "--scores", "scores.json", "--macs", "0.8", "--select", "greedy")
    assert set(facts["settings"]) == {"2"}  # type: ignore[call-overload]


def test_manual_plans_from_files_over_another_plan_and_their_difference(folder: Path) -> None:
    _facts("plan", "run", "--macs", "0.7", "--out", "found.json")
    (folder / "own.csv").write_text("layer,method,ratio\n2,spatial_svd,0.4\n")
    alone = _facts("plan", "run", "--manual", "own.csv", "--out", "own.json")
    assert set(alone["settings"]) == {"2"}  # type: ignore[call-overload]
    both = _facts("plan", "run", "--manual", "own.csv", "--base", "found.json", "--diff", "found.json")
    assert both["settings"]["2"]["method"] == "spatial_svd"  # type: ignore[index]
    assert "spatial_svd" in both["diff"]  # type: ignore[operator]
    told = _shown("plan", "run", "--macs", "0.7", "--diff", "own.json")
    assert "own.json (this) and the new plan (other):" in told
    assert "--manual says all; leave out --macs" in _refused(
        "plan", "run", "--manual", "own.csv", "--macs", "0.5"
    )
    assert "give --manual, or leave it out" in _refused("plan", "run", "--base", "own.json", "--macs", "0.5")


@pytest.mark.slow
def test_a_second_step_from_a_saved_model(folder: Path) -> None:
    _facts("plan", "run", "--macs", "0.8", "--methods", "spatial_svd", "--out", "first.json")
    first = _facts("apply", _MODEL, "first.json", "--study", "run", "--out", "small")
    second = ("study", _MODEL, _BATCHES, "--after", "small", "--out", "again", "--methods", "weight_svd")
    _facts(*second, "--likelihood", "categorical")
    plan = _facts("plan", "again", "--macs", "0.6", "--relative-to", "original", "--out", "second.json")
    assert plan["before"] == first["before"]
    assert plan["keep_ratio"]["macs"] <= 0.6  # type: ignore[index]
    result = _facts(
        "apply", _MODEL, "second.json", "--study", "again", "--after", "small", "--out", "smaller"
    )
    assert result["after"] == plan["after"]
    replayed = _facts("apply", _MODEL, "second.json", "--batches", _BATCHES, "--out", "replayed")
    assert replayed["after"] == plan["after"]
    score = ("score", _MODEL, _SCORE, "--study", "again", "--after", "small", "--candidates", "0.5")
    assert _facts(*score, "--out", "scores.json")["entries"]
    apply = ("apply", _MODEL, "second.json", "--study", "again", "--out", "x")
    assert "again is a study of a model that had been compressed before; name the directory" in _refused(
        *apply
    )
    told = _refused(*apply, "--after", "small", "--on-layer", "score_net.py:boom")
    assert "--on-layer 'score_net.py:boom', layer '" in told
    assert "raised ValueError: no such luck" in told
    compressed = ("compress", _MODEL, _BATCHES, "--after", "small", "--macs", "0.6", "--out", "third")
    done = _facts(*compressed, "--relative-to", "original", "--likelihood", "categorical", "--no-compete")
    assert done["keep_ratio"]["macs"] <= 0.6  # type: ignore[index]
    assert "goes with the --study" in _refused(
        "apply", _MODEL, "second.json", "--after", "small", "--out", "x"
    )


@pytest.mark.slow
def test_compress_finds_the_smallest_model_within_a_drop(folder: Path) -> None:
    compress = ("compress", _MODEL, _BATCHES, "--likelihood", "categorical", "--max-drop", "0.1")
    facts = _facts(*compress, "--score", _SCORE, "--out", "small")
    assert any(note.startswith("smallest: ") for note in facts["notes"])  # type: ignore[attr-defined]
    assert facts["keep_ratio"]["macs"] < 1  # type: ignore[index]
    assert "--macs: --max-drop finds the budget itself" in _refused(*compress, "--macs", "0.5", "--out", "x")
    assert "--no-compete: " in _refused(*compress, "--no-compete", "--out", "x")
    plain = ("compress", _MODEL, _BATCHES, "--macs", "0.5", "--score", _SCORE, "--out", "x")
    assert "--score: it judges what --max-drop or --split tries" in _refused(*plain)


@pytest.mark.slow
def test_compress_shares_the_budget_between_two_methods(folder: Path) -> None:
    compress = ("compress", _MODEL, _BATCHES, "--likelihood", "categorical", "--split", "--macs", "0.7")
    facts = _facts(*compress, "--methods", "spatial_svd,weight_svd", "--out", "small")
    assert len([note for note in facts["notes"] if note.startswith("split: ")]) >= 3  # type: ignore[attr-defined]
    assert facts["keep_ratio"]["macs"] <= 0.7  # type: ignore[index]
    assert "--max-drop finds the budget itself" in _refused(*compress, "--max-drop", "0.1", "--out", "x")
