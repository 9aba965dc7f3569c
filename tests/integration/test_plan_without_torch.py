# SPDX-License-Identifier: Apache-2.0
"""``slimrank plan`` and ``explain`` where torch cannot be imported: the same as of a study."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import slimrank as sr
from invented_times import Machine, times_on
from slimrank.latencies import Conditions, LatencyRecord, Parts, tie_of
from slimrank.records import Steps


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(16, 24, 3, padding=1), nn.Conv2d(24, 16, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.two(self.one(x).relu())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study, and tables of scores and of times of its network."""
    root = tmp_path_factory.mktemp("study")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(), Block(), nn.Flatten(), nn.Linear(256, 10)
    ).eval()
    batches = [torch.randn(16, 3, 4, 4) for _ in range(2)]
    study = sr.study(model, batches, run_dir=root / "run", progress=False)
    # Blocks are among what is read.
    assert study.block_damages
    first = batches[0]

    def score(candidate: nn.Module) -> float:
        with torch.no_grad():
            return -float((candidate(first) - model(first)).square().mean())

    sr.measure_scores(study, score, candidates=3, path=root / "scores.json")
    _table(study).save(root / "times.json")
    study.plan(macs=0.8, multiple_of=4).save(root / "other.json")
    (root / "settings.json").write_text('{"0": null, "5": {"method": "weight_svd", "rank": 4}}')
    return root


def _table(study: sr.Study) -> sr.Latencies:
    """Times that nobody measured, as a table on disk has them."""
    times = times_on(study.structure, Machine())
    conditions = Conditions(
        backend="onnxruntime",
        threads=1,
        batch=1,
        precision="float32",
        machine="invented",
        versions={},
        fingerprint=tie_of(study.structure),
        methods=sr.METHODS,
    )
    parts = Parts(factors={name: (1.0,) for name in study.structure.layers}, others={})
    record = LatencyRecord(conditions=conditions, steps=Steps(), original=parts)
    return sr.Latencies(
        before_ms=times.before / 1e6, spread=0.0, error=0.0, times=times, notes=(), _record=record
    )


def _run_without_torch(folder: Path, *args: str, command: str = "plan") -> "subprocess.CompletedProcess[str]":
    blocked = folder / "blocked"
    blocked.mkdir(exist_ok=True)
    (blocked / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "slimrank", command, "run", *args],
        capture_output=True,
        check=False,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(blocked), *sys.path])},
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("--macs", "0.5"), lambda study, _: study.plan(macs=0.5)),
        (
            ("--params", "0.6", "--bytes", "60%", "--select", "greedy", "--skip", "0", "--multiple-of", "4"),
            lambda study, _: study.plan(params=0.6, bytes="60%", select="greedy", skip=("0",), multiple_of=4),
        ),
        (
            ("--macs", "0.6", "--scores", "scores.json", "--interpolate"),
            lambda study, root: study.plan(
                macs=0.6, scores=sr.Scores.load(root / "scores.json"), interpolate=True
            ),
        ),
        (
            ("--latency", "0.7", "--latencies", "times.json"),
            lambda study, root: study.plan(latency=0.7, latencies=sr.Latencies.load(root / "times.json")),
        ),
        (
            ("--macs", "0.6", "--fix", "5=weight_svd:rank=4", "--uniform-widths", "--no-new-bias"),
            lambda study, _: study.plan(
                macs=0.6, fixed={"5": ("weight_svd", {"rank": 4})}, uniform_widths=True, new_bias=False
            ),
        ),
        (
            ("--manual", "settings.json"),
            lambda study, root: sr.Plan.manual(study, root / "settings.json", multiple_of=1),
        ),
    ],
    ids=["macs", "greedy", "scores", "latency", "fixed", "manual"],
)
def test_a_plan_is_the_same_without_torch(
    args: tuple[str, ...], expected: Callable[[sr.Study, Path], sr.Plan], folder: Path
) -> None:
    done = _run_without_torch(folder, *args, "--diff", "other.json", "--out", "plan.json")
    assert (done.returncode, done.stderr) == (0, "")
    assert "other.json (this) and the new plan (other):" in done.stdout
    expected(sr.Study.load(folder / "run"), folder).save(folder / "expected.json")
    assert (folder / "plan.json").read_text() == (folder / "expected.json").read_text()


def test_a_layer_is_explained_without_torch(folder: Path) -> None:
    done = _run_without_torch(folder, "0", "--plan", "other.json", command="explain")
    assert (done.returncode, done.stderr) == (0, "")
    told = sr.Study.load(folder / "run").explain("0", sr.Plan.load(folder / "other.json"))
    assert done.stdout.split() == told.split()


def test_the_model_takes_torch(folder: Path) -> None:
    """What blocks torch does so: a plan for activations needs it."""
    done = _run_without_torch(folder, "--activation-bytes", "0.9", "--model", "net.py:build")
    assert (done.returncode, done.stderr.strip()) == (1, "torch was imported")


def test_a_study_that_cannot_be_read_is_refused_in_the_words_of_the_library(
    folder: Path, tmp_path: Path
) -> None:
    done = _run_without_torch(tmp_path, "--macs", "0.5")
    with pytest.raises(sr.FileError) as error:
        sr.Study.load(tmp_path / "run")
    assert done.returncode == 2
    told, _, advice = str(error.value).replace(str(tmp_path / "run"), "run").partition("; ")
    assert advice == "give the run_dir= (--out) of a study"
    assert done.stderr == f"slimrank: {told}; give the --out of slimrank study\n"
