# SPDX-License-Identifier: Apache-2.0
"""What a new user meets in the first hour: typing errors, noise for data, scores that tell nothing."""

import json
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr


class Counting(nn.Sequential):
    """Counts how often it runs."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        Counting.runs += 1
        return super().forward(x)


def net(*, classes: int = 6) -> Counting:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = (nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        return Counting(*body, nn.Linear(24, classes)).eval()


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 24, generator=generator) for _ in range(3)]


def quick(model: nn.Module, **options: object) -> sr.Study:
    return sr.study(model, data(), effort="fast", progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("skip", "words"), [("5", "known are"), ("*.head", "known are"), ("00", "did you mean")]
)
def test_a_typing_error_in_skip_is_told_before_the_model_runs(skip: str, words: str) -> None:
    model = net()
    before = Counting.runs
    with pytest.raises(sr.UnknownNameError, match=rf"skip: '{re.escape(skip)}' matches no layer; {words}"):
        quick(model, skip=(skip,))
    assert Counting.runs == before


class Sure(nn.Module):
    """Answers class 4 where the first input is at least so large, else class 2, and is sure."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.body, self.least = net(), least

    def forward(self, x: Tensor) -> Tensor:
        is_other = (x[:, :1] >= self.least).to(x.dtype)
        classes = torch.eye(6)
        return self.body(x) + 12 * (is_other * classes[4] + (1 - is_other) * classes[2])


_LARGEST = max(float(batch[:, 0].max()) for batch in data())


@pytest.mark.parametrize(
    ("least", "words"),
    [
        (
            _LARGEST,
            "outputs: the output is sure of class 2 for 47 of 48 samples, as trained networks are of noise",
        ),
        (9.0, "outputs: if its elements are classes: the output is sure of class 2 for 48 of 48 samples"),
        (0.5, None),
    ],
)
def test_outputs_that_are_the_same_class_are_told(least: float, words: str | None) -> None:
    told = [str(note) for note in quick(Sure(least).eval()).notes if "sure of class" in note.text]
    assert len(told) == (words is not None)
    assert words is None or told[0].startswith(words)


def test_a_network_that_is_not_sure_is_not_suspected() -> None:
    assert not any("sure of class" in note.text for note in quick(net()).notes)


@pytest.mark.parametrize("typed", [("--skip", "0,2"), ("--skip", "0", "--skip", "2"), ("--skip", "0, 2,")])
def test_skip_is_repeated_or_separated_by_commas(typed: tuple[str, ...], tmp_path: Path) -> None:
    quick(net(), run_dir=tmp_path / "run")
    call = ["plan", str(tmp_path / "run"), "--macs", "0.95", "--json"]
    done = CliRunner().invoke(seams.cli, [*call, *typed], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert list(json.loads(done.stdout)["settings"]) == ["4"]


def test_scores_that_are_all_equal_are_told(tmp_path: Path) -> None:
    study = quick(net(), methods=("weight_svd",))
    path = tmp_path / "scores.json"
    flat = sr.measure_scores(study, lambda model: 0.5, candidates=2, path=path, progress=False)
    assert any(
        note.startswith("all scores are the same (0.5, the untouched model 0.5)") for note in flat.notes
    )
    assert sr.Scores.load(path) == flat
    assert "they do not tell layers apart" in flat.summary()
    again = sr.measure_scores(study, lambda model: 0.5, candidates=2, path=path, progress=False)
    assert again.notes == flat.notes
    first = next(iter(flat.entries))
    better = replace(flat.entries[first][0], score=0.75)
    mixed = replace(flat, entries={**flat.entries, first: (better, *flat.entries[first][1:])})
    assert seams.with_flat_note(mixed).notes == ()


def test_what_was_made_without_data_stands_out(tmp_path: Path) -> None:
    study = quick(net(), data_free=True)
    assert study.summary().startswith("Warning: study: data-free: ")
    study.save(tmp_path / "study")
    assert sr.Study.load(tmp_path / "study").notes == study.notes
    plan = study.plan(macs=0.6)
    assert "\nWarning: study: data-free: " in study.apply(plan).summary()
    alone = sr.apply(net(), plan, progress=False)
    assert "\nWarning: apply: no batches were given: " in alone.summary()
    assert not any(note.is_warning for note in quick(net()).notes)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_gives(umask: int, mode: int, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        study = quick(net(), run_dir=tmp_path / "run")
        study.apply(study.plan(macs=0.6)).save(tmp_path / "small")
    finally:
        os.umask(old)
    for folder in ("run", "small"):
        files = [path for path in (tmp_path / folder).rglob("*") if path.is_file()]
        assert any(path.suffix == ".safetensors" for path in files)
        assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files} == {
            path.name: oct(mode) for path in files
        }


@click.command()
@click.option("--macs")
@click.option("--multiple-of")
@click.option("--latencies", "times")
@click.option("--fast", is_flag=True)
@click.option("--no-fisher", "fisher", flag_value=False, default=True)
@click.option("--out", "run_dir")
@click.option("--study", "study_dir")
@click.option("--inputs")
@click.option("--outputs")
@click.option("--likelihood")
@click.option("--skip")
@click.option("--methods")
def command() -> None:
    """With options whose names differ from their keywords in every way."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            sr.BudgetError('give macs=, params= or multiple_of=, e.g. macs=0.5 or macs="50%"'),
            'give --macs, params= or --multiple-of, e.g. --macs 0.5 or --macs "50%"',
        ),
        (sr.OptionError("multiple_of: 'x' is wrong"), "--multiple-of: 'x' is wrong"),
        (
            sr.OptionError("latency needs latencies=; or (macs=0.5)"),
            "latency needs --latencies; or (--macs 0.5)",
        ),
        (sr.OptionError("pass load(f(1), macs=0.5) or macs=.5"), "pass load(f(1), macs=0.5) or --macs .5"),
        (sr.OptionError("fisher=False is a flag"), "--no-fisher is a flag"),
        (sr.OptionError("fast= is a flag, fast=True"), "--fast is a flag, --fast"),
        (sr.OptionError("give f(fast=True) or fast=False"), "give f(fast=True) or fast=False"),
        (sr.OptionError("times=slimrank.f(x) is code"), "times=slimrank.f(x) is code"),
        (sr.OptionError("in 'macs=1', a/macs=2 and my-macs=3"), "in 'macs=1', a/macs=2 and my-macs=3"),
        (sr.FileError("macs=0.5 is missing"), "macs=0.5 is missing"),
        (
            sr.BatchesError("a loader that yields (input, label) needs inputs=lambda b: b[0]"),
            "a loader that yields (input, label) needs --inputs file.py:fn with def fn(b): return b[0]",
        ),
        (
            sr.DeviceError("move the batches with inputs=lambda b: b.to('cpu'), or move the model"),
            "move the batches with --inputs file.py:fn with def fn(b): return b.to('cpu'), or move the model",
        ),
        (
            sr.BatchesError("check the inputs, or pass inputs=lambda b: ..."),
            "check the inputs, or pass --inputs file.py:fn",
        ),
        (
            sr.OptionError("pass outputs=lambda out: ... that picks tensors"),
            "pass --outputs file.py:fn that picks tensors",
        ),
        (sr.OptionError("pass targets=lambda b: b[1]"), "pass targets=lambda b: b[1]"),
        (
            sr.StudyError("run holds a study of other weights; give another run_dir or delete it"),
            "run holds a study of other weights; give another --out or delete it",
        ),
        (
            sr.FileError("it is not there; give the run_dir= (--out) of a study"),
            "it is not there; give the --out of slimrank study",
        ),
        (
            sr.BudgetError("allow more: fewer layers in skip, more methods, a smaller multiple_of"),
            "allow more: fewer layers in --skip, more --methods, a smaller --multiple-of",
        ),
        (
            sr.OptionError("if that is wrong, pass e.g. likelihood='gaussian'"),
            "if that is wrong, give e.g. --likelihood gaussian",
        ),
        (
            sr.OptionError("if that is wrong, pass e.g. likelihood={'boxes.0': 'gaussian'}"),
            "if that is wrong, give e.g. --likelihood boxes.0=gaussian",
        ),
        (
            sr.OptionError("nothing was measured; pass batches= to fit to data"),
            "nothing was measured; give --study or --batches to fit to data",
        ),
    ],
)
def test_errors_of_the_command_line_speak_of_its_options(error: sr.SlimrankError, words: str) -> None:
    assert seams.in_options(error, command) == words


def test_an_effort_that_is_as_usual_has_its_name(tmp_path: Path) -> None:
    sr.study(net(), data(), run_dir=tmp_path, progress=False)
    with pytest.raises(sr.StudyError, match=r"\(effort='normal' there and 'fast' here\); give"):
        quick(net(), run_dir=tmp_path)


@click.command()
@click.argument("run_dir")
def bare() -> None:
    """Without options."""


def test_errors_name_no_options_that_a_command_lacks() -> None:
    asked = "run it again with this run_dir, fewer layers in skip, pass inputs=lambda b: b[0]"
    told = "run it again with this directory, fewer layers in skip, pass inputs=lambda b: b[0]"
    assert seams.in_options(sr.StudyError(asked), bare) == told


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_study_in_a_directory_of_another_one_is_told_the_options_that_differ(
    is_killed: bool, tmp_path: Path
) -> None:
    quick(net(), run_dir=tmp_path, draws=2, skip=("2",))
    if is_killed:
        (tmp_path / "study.json").unlink()
    words = r"study of other options \(skip=\['2'\] there and \[\] here, draws=2 there and 4 here\); give"
    with pytest.raises(sr.StudyError, match=words):
        quick(net(), run_dir=tmp_path)
    # An older version kept them where the study was finished.
    run = json.loads((tmp_path / "run.json").read_text())
    del run["asked"]
    (tmp_path / "run.json").write_text(json.dumps(run))
    with pytest.raises(sr.StudyError, match=r"study of other options; give" if is_killed else words):
        quick(net(), run_dir=tmp_path)
    assert quick(net(), run_dir=tmp_path, draws=2, skip=("2",)).methods == sr.METHODS
