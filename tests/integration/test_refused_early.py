# SPDX-License-Identifier: Apache-2.0
"""What cannot be planned is refused before anything is measured, scored or timed."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import invented_times
import seams
import slimrank as sr

# Phases that only find out what there is to measure.
_LOOKING = {"capture", "channels"}


class Net(nn.Module):
    """A residual branch between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.fc = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.fc((x + self.b(x).relu()).mean((2, 3)))


def _net() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def _batches() -> list[Tensor]:
    return [torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


@pytest.fixture(scope="module")
def small() -> sr.Result:
    return sr.compress(_net(), _batches(), macs=0.7, effort="fast", progress=False)


@pytest.fixture(scope="module")
def study() -> sr.Study:
    return sr.study(_net(), _batches(), effort="fast", progress=False)


_PAIR = ("weight_svd", 0.5)
_REFUSED: list[tuple[dict[str, object], type[Exception], str]] = [
    ({"relative_to": "orignal"}, sr.OptionError, "relative_to='orignal'"),
    ({"multiple_of": {"nothing*": 8}}, sr.UnknownNameError, r"multiple_of\['nothing\*'\] matches no layer"),
    ({"fixed": {"nope": _PAIR}}, sr.UnknownNameError, "fixed: layer 'nope': the model has none"),
    ({"fixed": {"b": ("weight_sdv", 0.5)}}, sr.UnknownNameError, "did you mean 'weight_svd'"),
    ({"fixed": {"b": ("weight_svd", {"rank": 800})}}, sr.RankError, r"rank 800 is outside 1\.\."),
    ({"fixed": {"b": ("weight_svd", {"rnk": 8})}}, sr.OptionError, "did you mean 'rank'"),
    ({"fixed": {"fc": ("spatial_svd", 0.5)}}, sr.OptionError, "does not apply to this Linear"),
    ({"fixed": {"a": ("channel_pruning", {"keep": 9})}}, sr.RankError, "group 'a'"),
    ({"fixed": {"b": ("tucker2", 0.5)}}, sr.UnknownNameError, "method 'tucker2' is not there"),
    ({"fixed": {"a": "drop"}}, sr.UnknownNameError, "block 'a'"),
    ({"uniform_widths": "yes", "fixed": {"nope": None}}, sr.UnknownNameError, "'nope'"),
    ({"macs": 10**15}, sr.BudgetError, "is above what the model costs"),
    ({"params": 10**12}, sr.BudgetError, "is above what the model costs"),
    ({"bytes": "2GB"}, sr.BudgetError, "is above what the model costs"),
    ({"macs": 0.0001}, sr.BudgetError, "cannot be met; the smallest reachable is"),
    ({"macs": 0.5, "latency": 0.5, "multiple_of": {"nothing*": 8}}, sr.UnknownNameError, "nothing"),
]


@pytest.mark.parametrize(("options", "error", "words"), _REFUSED)
def test_compress_refuses_before_it_measures(
    options: dict[str, object], error: type[Exception], words: str
) -> None:
    events: list[dict[str, object]] = []
    budget = {} if options.keys() & {"macs", "params", "bytes"} else {"macs": 0.5}
    if "latency" in options:
        budget["backend"] = "torch"
    with pytest.raises(error, match=words):
        sr.compress(_net(), _batches(), **budget, **options, progress=False, callback=events.append)  # type: ignore[arg-type]
    assert {event["phase"] for event in events if "phase" in event} <= _LOOKING


def test_no_new_bias_after_a_step_with_new_biases(small: sr.Result) -> None:
    events: list[dict[str, object]] = []
    for options in ({}, {"previous": small.plan}):
        model = small.model if options else small
        with pytest.raises(sr.OptionError, match="new_bias=False: the model was compressed before"):
            sr.compress(
                model, _batches(), macs=0.5, new_bias=False, progress=False, callback=events.append, **options
            )
    assert {event["phase"] for event in events if "phase" in event} <= _LOOKING


def test_a_table_of_other_conditions_in_the_run_directory(tmp_path: Path, study: sr.Study) -> None:
    (tmp_path / "latencies.json").write_text("{}")
    with pytest.raises(sr.LatencyError, match=r"latencies\.json has format None"):
        sr.compress(_net(), _batches(), latency=0.5, backend="torch", run_dir=tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["latencies.json"]


def test_what_fits_is_not_refused() -> None:
    fixed = {"a": ("channel_pruning", {"keep": 6}), "fc": ("weight_svd", {"rank": 2})}
    result = sr.compress(
        _net(),
        _batches(),
        macs=0.5,
        params="90%",
        bytes=3000,
        fixed=fixed,
        multiple_of={"a": 4, "*": 1},
        new_bias=False,
        progress=False,
    )
    assert len(result.plan.groups["a"]) == 6
    assert result.keep_ratio("macs") <= 0.5


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"select": "best"}, sr.UnknownNameError, "select: 'best' does not exist"),
        ({"metric": "flops"}, sr.UnknownNameError, "smallest: metric 'flops' does not exist"),
        ({"multiple_of": {"nothing*": 8}}, sr.UnknownNameError, "matches no layer"),
        ({"methods": ("weight_sdv",)}, sr.UnknownNameError, "weight_sdv"),
        ({"skip": ("nothing*",)}, sr.UnknownNameError, "skip: 'nothing"),
        ({"fixed": {"nope": _PAIR}}, sr.UnknownNameError, "'nope'"),
    ],
)
def test_smallest_refuses_before_it_scores(
    options: dict[str, object], error: type[Exception], words: str, study: sr.Study
) -> None:
    def score(_: nn.Module) -> float:
        raise AssertionError("a model was scored")

    with pytest.raises(error, match=words):
        sr.smallest(study, score_fn=score, **options)  # type: ignore[arg-type]


def test_smallest_without_new_bias_refuses_before_it_scores(small: sr.Result) -> None:
    again = sr.study(small, _batches(), effort="fast", progress=False)

    def score(_: nn.Module) -> float:
        raise AssertionError("a model was scored")

    with pytest.raises(sr.OptionError, match="new_bias=False"):
        sr.smallest(again, score_fn=score, new_bias=False)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"latency": 0.5, "select": "best"}, sr.UnknownNameError, "select: 'best' does not exist"),
        ({"latency": 0.5, "multiple_of": {"nothing*": 8}}, sr.UnknownNameError, "matches no layer"),
        ({"latency": 0.5, "fixed": {"nope": _PAIR}}, sr.UnknownNameError, "'nope'"),
        ({"latency": 0.5, "monotonic": True}, sr.OptionError, "monotonic= and interpolate="),
        ({"latency": 0.5, "rounds": 0}, sr.OptionError, "rounds=0"),
        ({"latency": 0.0001}, sr.BudgetError, "cannot be met"),
    ],
)
def test_meet_latency_refuses_before_it_times(
    options: dict[str, object],
    error: type[Exception],
    words: str,
    study: sr.Study,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = invented_times.times_on(study.structure, invented_times.Machine())
    table = invented_times.Table(times=times, structure=study.structure)
    seams.refuse_runtimes(monkeypatch)
    with pytest.raises(error, match=words):
        sr.meet_latency(study, latencies=table, **options)  # type: ignore[arg-type]


_NET = """
import torch
from torch import nn

def build():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 6)).eval()

def batches():
    return [torch.randn(8, 12) for _ in range(2)]
"""


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (("--max-drop", "-1"), "--max-drop -1.0; give a number of at least 0"),
        (("--max-drop", "0.1", "--multiple-of", "some"), "--multiple-of 'some' is no number"),
        (("--max-drop", "0.1", "--multiple-of", "conv*=8"), "matches no layer"),
        (("--max-drop", "0.1", "--fix", "conv=none"), "layer 'conv': the model has none"),
        (("--split", "--macs", "half"), "is no keep ratio"),
        (("--split", "--macs", "0.5", "--params", "0.5"), "needs exactly one budget"),
        (("--split", "--macs", "0.5", "--methods", "weight_svd"), "give two different ones"),
        (("--split", "--macs", "0.5", "--multiple-of", "conv*=8"), "matches no layer"),
        (("--macs", "0.5", "--multiple-of", "conv*=8"), "matches no layer"),
        (("--macs", "0.5", "--report", "none/page.html"), "there is no folder none"),
        (("--macs", "0.5", "--report", "page.json"), "give the page another, e.g. .html"),
    ],
)
def test_the_command_refuses_before_it_measures(
    typed: tuple[str, ...], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "early_net.py").write_text(_NET)
    monkeypatch.chdir(tmp_path)
    command = ["compress", "early_net.py:build", "early_net.py:batches", "--out", "small", "--run-dir", "run"]
    done = CliRunner().invoke(seams.cli, [*command, *typed], catch_exceptions=False)
    assert done.exit_code == 2
    assert words in done.stderr
    events = tmp_path / "run" / "events.jsonl"
    told = [json.loads(line) for line in events.read_text().splitlines()] if events.exists() else []
    assert {event["phase"] for event in told if "phase" in event} <= _LOOKING


def test_a_page_of_scores_needs_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["score", "net.py:build", "net.py:score", "--study", "run", "--out", "scores.json"]
    done = CliRunner().invoke(seams.cli, [*command, "--report", "none/page.html"])
    assert done.exit_code == 2
    assert "--report none/page.html cannot be written: there is no folder none" in done.stderr
