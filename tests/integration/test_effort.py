# SPDX-License-Identifier: Apache-2.0
"""How much a study measures, and what follows from it."""

from pathlib import Path

import pruning_nets
import pytest

import seams
import slimrank as sr


def counted(effort: str, monkeypatch: pytest.MonkeyPatch) -> tuple[sr.Study, int]:
    """A study, and how many divergences it measured."""
    measured = 0
    plain = seams.Anchors.divergence_with

    def counting(self: seams.Anchors, *args: object) -> float:
        nonlocal measured
        measured += 1
        return plain(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(seams.Anchors, "divergence_with", counting)
    model, batches = pruning_nets.build("residual"), pruning_nets.batches("residual")
    study = sr.study(model, batches, effort=effort, progress=False)  # type: ignore[arg-type]
    monkeypatch.undo()
    return study, measured


@pytest.mark.slow
def test_more_effort_measures_more(monkeypatch: pytest.MonkeyPatch) -> None:
    studies, counts = zip(
        *(counted(effort, monkeypatch) for effort in ("fast", "normal", "thorough")), strict=True
    )
    assert list(counts) == sorted(set(counts))
    fast, normal, thorough = studies
    assert [bool(study.block_damages) for study in studies] == [False, True, True]
    # The same is offered, but for blocks.
    assert [len(curve.ranks) for curve in fast.curves] == [len(curve.ranks) for curve in thorough.curves]
    for study in studies:
        assert study.apply(study.plan(macs=0.6)).keep_ratio("macs") <= 0.6
    default = sr.study(pruning_nets.build("residual"), pruning_nets.batches("residual"), progress=False)
    assert default.fingerprint == normal.fingerprint
    assert [curve.damage.tolist() for curve in default.curves] == [c.damage.tolist() for c in normal.curves]


def test_a_fast_compression_builds_one_plan() -> None:
    model, batches = pruning_nets.build("plain"), pruning_nets.batches("plain")
    result = sr.compress(model, batches, macs=0.6, effort="fast", progress=False)
    (told,) = [note.text for note in result.notes if note.where == "compete"]
    assert told.startswith("optimal plan: held-out divergence")


@pytest.mark.slow
def test_another_effort_is_another_study(tmp_path: Path) -> None:
    model, batches = pruning_nets.build("residual"), pruning_nets.batches("residual")
    study = sr.study(model, batches, effort="fast", run_dir=tmp_path / "run", progress=False)
    with pytest.raises(sr.StudyError, match="a study of other options"):
        sr.study(model, batches, run_dir=tmp_path / "run", progress=False)
    loaded = sr.Study.load(tmp_path / "run", model=model, batches=batches, progress=False)
    assert loaded.fingerprint == study.fingerprint
    # Without blocks, and saved once more without a model.
    sr.Study.load(tmp_path / "run").save(tmp_path / "again")
    assert sr.Study.load(tmp_path / "again").plan(macs=0.6) == study.plan(macs=0.6)


@pytest.mark.parametrize("effort", ["quick", "", None, 2])
def test_an_effort_that_does_not_exist_is_refused(effort: object) -> None:
    model, batches = pruning_nets.build("plain"), pruning_nets.batches("plain")
    with pytest.raises(sr.UnknownNameError, match="does not exist; "):
        sr.study(model, batches, effort=effort, progress=False)  # type: ignore[arg-type]
    with pytest.raises(sr.UnknownNameError, match="does not exist; "):
        sr.compress(model, batches, macs=0.5, effort=effort, progress=False)  # type: ignore[arg-type]
