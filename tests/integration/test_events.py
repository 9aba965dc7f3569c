# SPDX-License-Identifier: Apache-2.0
"""Events of a run: a caller's function, the run's journal, TensorBoard."""

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)).eval()


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=generator) for _ in range(2)]


def test_a_callback_and_the_journal_hear_of_all_work(tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    study = sr.study(_model(), _batches(), run_dir=tmp_path / "run", progress=False, callback=heard.append)
    study.apply(study.plan(macs=0.5))
    sr.measure_scores(study, lambda model: float(model(_batches()[0]).std()), candidates=2, progress=False)
    phases = [event["phase"] for event in heard if event["event"] == "phase"]
    for name in ("capture", "curves", "apply", "verify", "scores"):
        assert name in phases
    ended = [event["phase"] for event in heard if event["event"] == "end"]
    assert sorted(map(str, ended)) == sorted(map(str, phases))
    (result,) = [event for event in heard if event["event"] == "result"]
    assert isinstance(result["macs"], float)
    assert 0 < result["macs"] <= 0.5
    scores = [event for event in heard if event["event"] == "score"]
    assert scores
    assert {"layer", "method", "rank", "keep_ratio", "score"} <= set(scores[0])
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    journal = [json.loads(line) for line in lines]
    assert journal[0]["event"] == "run"
    assert journal[0]["pid"] == os.getpid()
    # All but what came before the directory was claimed.
    assert heard[heard.index(journal[1]) :] == journal[1:]
    # The directory stays one that a study is read from.
    assert sr.Study.load(tmp_path / "run").before == study.before


def test_later_work_on_a_study_that_was_read_writes_its_own_journal(tmp_path: Path) -> None:
    model = _model()
    sr.study(model, _batches(), run_dir=tmp_path / "run", progress=False)
    study = sr.Study.load(tmp_path / "run", model=model, run_dir=tmp_path / "later", progress=False)
    assert not (tmp_path / "later").exists()
    study.apply(study.plan(macs=0.5))
    lines = (tmp_path / "later" / "events.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines[:2]] == ["run", "phase"]
    with pytest.raises(sr.FileError, match=r"run_dir .*where cannot be written: there is no folder .*no;"):
        sr.Study.load(tmp_path / "run", model=model, run_dir=tmp_path / "no" / "where", progress=False)
    (tmp_path / "file").write_text("")
    study = sr.Study.load(tmp_path / "run", model=model, run_dir=tmp_path / "file", progress=False)
    with pytest.raises(sr.FileError, match=r"events\.jsonl cannot be written \(.*\); give a run_dir"):
        study.apply(study.plan(macs=0.5))


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(sr.OptionError, match=r"callback is a str; give a function of one event"):
        sr.study(_model(), _batches(), progress=False, callback="log")  # type: ignore[arg-type]


def test_what_a_callback_raises_ends_the_call() -> None:
    def fail(event: object) -> None:
        raise RuntimeError("no room for events")

    with pytest.raises(RuntimeError, match="no room for events"):
        sr.study(_model(), _batches(), progress=False, callback=fail)


def test_tensorboard_is_given_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, log_dir: str) -> None:
            assert log_dir == str(tmp_path / "logs")

        def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
            written.append((tag, scalar_value, global_step))

        def flush(self) -> None:
            pass

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    study = sr.study(_model(), _batches(), progress=False, log_dir=tmp_path / "logs")
    study.apply(study.plan(macs=0.5))
    tags = {tag for tag, _, _ in written}
    assert {"end/curves/seconds", "result/macs", "result/divergence"} <= tags
    assert not any(tag.endswith(("time", "total")) for tag in tags)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(sr.MissingPackageError, match=r"pip install 'slimrank\[tensorboard\]'"):
        sr.study(_model(), _batches(), progress=False, log_dir=tmp_path / "logs")
