# SPDX-License-Identifier: Apache-2.0
"""Killed studies and applies go on where they stopped, and end as if nothing had happened, bit for bit."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from slimrank.records import Method


def bits(study: sr.Study) -> list[tuple[str, str, str, list[bytes]]]:
    arrays = ("ranks", "macs", "params", "bytes", "error", "damage")
    return [
        (c.layer, c.method, c.form, [np.asarray(getattr(c, name)).tobytes() for name in arrays])
        for c in study.curves
    ]


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_study_goes_on(
    after: int,
    cnn_study: sr.Study,
    cnn_result: sr.Result,
    nets: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batches = nets.cnn(), nets.noise(1, 8, 8)
    seams.interrupt_after_layers(monkeypatch, after)
    with pytest.raises(KeyboardInterrupt):
        sr.study(model, batches, run_dir=tmp_path / "run", progress=False)
    monkeypatch.undo()
    measured = seams.watch_layer_curves(monkeypatch)
    resumed = sr.study(model, batches, run_dir=tmp_path / "run", progress=False)
    assert measured == ["stem", "conv", "last", "fc"][after:]
    assert bits(resumed) == bits(cnn_study)
    plan = resumed.plan(macs=0.5)
    assert plan.settings == cnn_result.plan.settings
    assert same_state(resumed.apply(plan).model, cnn_result.model)


@pytest.mark.slow
def test_anchors_do_not_depend_on_where_it_stopped(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Large models take fewer held-out samples for an anchor; how many must not depend on the layers left.
    model, batches = nets.cnn(), nets.noise(1, 8, 8, n=8, size=16)
    seams.few_anchor_macs(monkeypatch, 3.0e7)
    whole = sr.study(model, batches, progress=False)
    with monkeypatch.context() as patch:
        seams.interrupt_after_layers(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            sr.study(model, batches, run_dir=tmp_path, progress=False)
    assert bits(sr.study(model, batches, run_dir=tmp_path, progress=False)) == bits(whole)


def test_a_finished_study_is_read_back(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batches = nets.cnn(), nets.noise(1, 8, 8)
    first = sr.study(model, batches, run_dir=tmp_path, progress=False)
    seams.forbid_measuring(monkeypatch)
    assert bits(sr.study(model, batches, run_dir=tmp_path, progress=False)) == bits(first)
    loaded = sr.Study.load(tmp_path, model=model, progress=False)
    assert bits(loaded) == bits(first)


@pytest.mark.slow
def test_a_killed_process_goes_on(
    cnn_study: sr.Study, nets: ModuleType, environment: Mapping[str, str], tmp_path: Path
) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import time, torch
torch.set_num_threads(1)
import nets, pytest, seams
import slimrank as sr
seams.slow_down_layers(pytest.MonkeyPatch(), lambda: time.sleep(0.3))
sr.study(nets.cnn(), nets.noise(1, 8, 8), run_dir="run", progress=False)
"""
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("run/curves-*.safetensors")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "run" / "study.json").exists()
    with pytest.raises(sr.StudyError, match=r"was not finished; run it again with this run_dir"):
        sr.Study.load(tmp_path / "run")
    done = len(list(tmp_path.glob("run/curves-*.safetensors")))
    assert 1 <= done < 4
    resumed = sr.study(nets.cnn(), nets.noise(1, 8, 8), run_dir=tmp_path / "run", progress=False)
    assert bits(resumed) == bits(cnn_study)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("weights", "weights"),
        ("data", "inputs"),
        ("model", "structure and weights"),
        ("seed", "options"),
        ("methods", r"options \(methods="),
        ("skip", "options"),
        ("outputs", "options|outputs"),
    ],
)
def test_a_run_directory_is_tied_to_its_study(
    change: str, words: str, nets: ModuleType, tmp_path: Path
) -> None:
    def build() -> nn.Module:
        return nets.settle(nets.TupleOutput())

    both = ("weight_svd", "channel_pruning")
    sr.study(build(), nets.noise(24), outputs=0, methods=both, run_dir=tmp_path, progress=False)
    model, batches = build(), nets.noise(24)
    options: dict[str, object] = {"outputs": 0, "methods": both}
    if change == "weights":
        model.box.bias.data[0] += 1e-3
    elif change == "data":
        batches[-1][-1, -1] += 1e-3
    elif change == "model":
        model.extra = nn.Linear(3, 3)
    else:
        options |= {
            "seed": {"seed": 1},
            "methods": {"methods": ("weight_svd", "spatial_svd")},
            "skip": {"skip": ("box",)},
            "outputs": {"outputs": 2},
        }[change]
    with pytest.raises(
        sr.StudyError, match=rf"holds a study of other ({words}).*give another run_dir or delete it"
    ):
        sr.study(model, batches, run_dir=tmp_path, progress=False, **options)


def everything(study: sr.Study) -> object:
    """All that was measured, to the bit."""
    groups = [(curve.group, curve.order, curve.damage.tobytes()) for curve in study.group_curves]
    return bits(study), groups, study.block_damages, study.fingerprint


def run_notes(study: sr.Study) -> str:
    return " ".join(note.text for note in study.notes if note.where == "run_dir")


ALL: tuple[Method, ...] = (*sr.METHODS, *sr.MORE_METHODS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("earlier", "measured", "words"),
    [
        (sr.METHODS, ["stem", "conv", "last"], "curves of 1 layers, gradients, channel groups taken over"),
        (("weight_svd",), ["stem", "conv", "last"], "curves of 1 layers taken over.*gradients, which more"),
        (("channel_pruning",), ["stem", "conv", "last", "fc"], "channel groups taken over"),
    ],
)
def test_a_study_of_more_methods_takes_over_what_is_valid(
    earlier: tuple[Method, ...],
    measured: list[str],
    words: str,
    nets: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches = nets.noise(1, 8, 8)
    sr.study(nets.cnn(), batches, methods=earlier, run_dir=tmp_path, progress=False)
    layers = seams.watch_layer_curves(monkeypatch)
    study = sr.study(nets.cnn(), batches, methods=ALL, run_dir=tmp_path, progress=False)
    assert layers == measured
    assert re.search(words, run_notes(study))
    assert everything(study) == everything(sr.study(nets.cnn(), batches, methods=ALL, progress=False))
    assert everything(sr.Study.load(tmp_path)) == everything(study)


@pytest.mark.slow
def test_more_methods_go_on_after_an_interrupt(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = nets.noise(1, 8, 8)
    sr.study(nets.cnn(), batches, methods=("weight_svd",), run_dir=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        seams.interrupt_after_layers(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            sr.study(nets.cnn(), batches, run_dir=tmp_path, progress=False)
    with pytest.raises(sr.StudyError, match="was not finished"):
        sr.Study.load(tmp_path)
    layers = seams.watch_layer_curves(monkeypatch)
    study = sr.study(nets.cnn(), batches, run_dir=tmp_path, progress=False)
    assert layers == ["conv", "last"]
    assert everything(study) == everything(sr.study(nets.cnn(), batches, progress=False))


def test_a_study_of_all_methods_serves_fewer(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = nets.noise(1, 8, 8)
    whole = sr.study(nets.cnn(), batches, run_dir=tmp_path, progress=False)
    subsets: list[tuple[Method, ...]] = [("spatial_svd",), ("weight_svd", "channel_pruning")]
    seams.forbid_measuring(monkeypatch)
    for methods in subsets:
        study = sr.study(nets.cnn(), batches, methods=methods, run_dir=tmp_path, progress=False)
        assert study.methods == methods
        assert bits(study) == [curve for curve in bits(whole) if curve[1] in methods]
        assert len(study.group_curves) == (len(whole.group_curves) if "channel_pruning" in methods else 0)
        assert "what it measured of fewer is taken over" in run_notes(study)
        assert study.apply(study.plan(macs=0.8)).keep_ratio("macs") <= 0.8
    assert everything(sr.Study.load(tmp_path)) == everything(whole)


@pytest.mark.slow
def test_an_unfinished_study_of_all_methods_serves_fewer_and_goes_on(
    nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = nets.noise(1, 8, 8)
    with monkeypatch.context() as patch:
        seams.interrupt_after_layers(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            sr.study(nets.cnn(), batches, run_dir=tmp_path, progress=False)
    fewer = sr.study(nets.cnn(), batches, methods=("weight_svd",), run_dir=tmp_path, progress=False)
    assert {curve.layer for curve in fewer.curves} == {"stem", "conv", "last", "fc"}
    study = sr.study(nets.cnn(), batches, run_dir=tmp_path, progress=False)
    assert everything(study) == everything(sr.study(nets.cnn(), batches, progress=False))


@pytest.mark.slow
def test_more_batches_take_the_directory_and_say_what_is_redone(nets: ModuleType, tmp_path: Path) -> None:
    batches = nets.noise(1, 8, 8, n=4)
    sr.study(nets.cnn(), batches[:2], methods=("weight_svd",), run_dir=tmp_path, progress=False)
    study = sr.study(nets.cnn(), batches, run_dir=tmp_path, progress=False)
    assert "the first 2 of these 4 batches: all that it measured were means" in run_notes(study)
    assert everything(study) == everything(sr.study(nets.cnn(), batches, progress=False))
    with pytest.raises(sr.StudyError, match="4 batches there and 2 here, of which the first 2 are alike"):
        sr.study(nets.cnn(), batches[:2], run_dir=tmp_path, progress=False)
    with pytest.raises(sr.StudyError, match="4 batches there and 5 here, of which the first 0 are alike"):
        sr.study(nets.cnn(), nets.noise(1, 8, 8, n=5, seed=1), run_dir=tmp_path, progress=False)


@pytest.mark.slow
def test_an_interrupted_apply_goes_on(
    cnn_study: sr.Study, nets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = sr.study(nets.cnn(), nets.noise(1, 8, 8), run_dir=tmp_path, progress=False)
    plan = sr.Plan.manual(study, {name: ("weight_svd", 0.5) for name in ("stem", "conv", "last", "fc")})
    whole = cnn_study.apply(plan)
    seams.interrupt_after_pairs(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        study.apply(plan)
    monkeypatch.undo()
    fitted = seams.watch_pair_fits(monkeypatch)
    loaded = sr.Study.load(tmp_path, model=nets.cnn(), run_dir=tmp_path, progress=False)
    resumed = loaded.apply(plan)
    assert "stem" not in fitted
    assert "fc" in fitted
    assert same_state(resumed.model, whole.model)
    assert resumed.divergence == whole.divergence
    other = study.apply(plan.replace("fc", None))
    assert isinstance(other.model.fc, nn.Linear)


def test_files_of_a_run_directory_hold_no_code(nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(nets.cnn(), nets.noise(1, 8, 8), run_dir=tmp_path, progress=False)
    study.apply(study.plan(macs=0.5))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ".safetensors"}
    for path in files:
        if path.suffix == ".json":
            json.loads(path.read_text())


def test_a_run_directory_that_is_damaged_says_so(nets: ModuleType, tmp_path: Path) -> None:
    sr.study(nets.mlp(), nets.noise(24), run_dir=tmp_path, progress=False)
    file = tmp_path / "curves-0000.safetensors"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(sr.FileError, match=r"curves-0000.safetensors is truncated or altered"):
        sr.study(nets.mlp(), nets.noise(24), run_dir=tmp_path, progress=False)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(sr.FileError, match=r"run.json is not whole JSON"):
        sr.study(nets.mlp(), nets.noise(24), run_dir=tmp_path, progress=False)


def test_a_journal_belongs_to_its_weights(nets: ModuleType, tmp_path: Path) -> None:
    for seed in (0, 1):
        study = sr.study(nets.two_layers(seed), nets.noise(12, seed=1), progress=False)
        study.save(tmp_path)
        plan = sr.Plan.manual(study, {"0": ("weight_svd", {"rank": 3})})
        loaded = sr.Study.load(tmp_path, model=nets.two_layers(seed), run_dir=tmp_path, progress=False)
        assert loaded.apply(plan).divergence == study.apply(plan).divergence


def test_a_saved_study_is_not_taken_for_another_run(nets: ModuleType, tmp_path: Path) -> None:
    sr.study(nets.two_layers(0), nets.noise(12, seed=1), progress=False).save(tmp_path)
    with pytest.raises(sr.StudyError, match="holds a study of other weights"):
        sr.study(nets.two_layers(1), nets.noise(12, seed=1), run_dir=tmp_path, progress=False)


def test_a_study_that_is_saved_again_keeps_its_files(nets: ModuleType, tmp_path: Path) -> None:
    study = sr.study(nets.two_layers(), nets.noise(12, seed=1), run_dir=tmp_path, progress=False)
    stays = tmp_path / "curves-9999.safetensors"
    stays.write_text("of this study, as far as the directory tells")
    study.save(tmp_path)
    assert stays.exists()


def test_another_activation_is_another_study(nets: ModuleType, tmp_path: Path) -> None:
    sr.study(nets.two_layers(), nets.noise(12, seed=1), run_dir=tmp_path, progress=False)
    other = nets.two_layers()
    other[1] = nn.GELU()
    with pytest.raises(sr.StudyError, match="holds a study of other modules"):
        sr.study(other, nets.noise(12, seed=1), run_dir=tmp_path, progress=False)
