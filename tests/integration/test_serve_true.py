# SPDX-License-Identifier: Apache-2.0
"""``serve=True``: long calls show their run in the browser while they last, and never fail by it."""

import inspect
import json
import logging
import re
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.records import Method

_ADDRESS = re.compile(r"^live view: (http://127\.0\.0\.1:\d+/\?token=\S+)$", re.MULTILINE)


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5)).eval()


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(32, 16, generator=generator) for _ in range(2)]


def _spread(model: nn.Module) -> float:
    return float(model(_batches()[0]).std())


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> sr.Study:
    return sr.study(_model(), _batches(), run_dir=tmp_path_factory.mktemp("served") / "run", progress=False)


@pytest.fixture(scope="module")
def study_in_memory() -> sr.Study:
    return sr.study(_model(), _batches(), progress=False)


def _on_study(call: str, study: sr.Study) -> object:
    def met() -> object:
        table = sr.measure_latency(study, backend="torch", batch=256, progress=False)
        return sr.meet_latency(study, 1.0, latencies=table, rounds=1, serve=True)

    methods: tuple[Method, Method] = ("weight_svd", "channel_pruning")
    calls: dict[str, Callable[[], object]] = {
        "apply": lambda: study.apply(study.plan(macs=0.7), serve=True),
        "pareto": lambda: study.pareto(points=2, serve=True),
        "smallest": lambda: sr.smallest(study, max_drop=10.0, tolerance=0.5, serve=True),
        "search_split": lambda: sr.search_split(study, macs=0.7, methods=methods, splits=(), serve=True),
        "measure_latency": lambda: sr.measure_latency(
            study, backend="torch", batch=256, progress=False, serve=True
        ),
        "measure_scores": lambda: sr.measure_scores(study, _spread, candidates=2, progress=False, serve=True),
        "meet_latency": met,
    }
    return calls[call]()


def _in_run_dir(call: str, run_dir: Path | None) -> object:
    labelled = [(x, torch.zeros(32, dtype=torch.int64)) for x in _batches()]
    if call == "finetune":
        return sr.finetune(
            _model(), labelled, nn.CrossEntropyLoss(), epochs=2, run_dir=run_dir, progress=False, serve=True
        )
    if call == "distill":
        return sr.distill(_model(), _model(), _batches(), run_dir=run_dir, progress=False, serve=True)
    if call == "compress":
        return sr.compress(
            _model(), _batches(), macs=0.7, effort="fast", run_dir=run_dir, progress=False, serve=True
        )
    return sr.study(_model(), _batches(), run_dir=run_dir, progress=False, serve=True)


ON_STUDY = (
    "apply",
    "pareto",
    "smallest",
    "search_split",
    "measure_scores",
    "measure_latency",
    "meet_latency",
)
IN_RUN_DIR = ("study", "compress", "finetune", "distill")


def test_these_are_all_calls_that_have_it() -> None:
    calls = {name: getattr(sr, name) for name in sr.__all__ if callable(getattr(sr, name))}
    calls |= {name: getattr(sr.Study, name) for name in dir(sr.Study) if not name.startswith("_")}
    found = {
        name
        for name, call in calls.items()
        if inspect.isfunction(call) and "serve" in inspect.signature(call).parameters
    }
    assert found == {*ON_STUDY, *IN_RUN_DIR}


def test_the_page_is_there_while_the_call_lasts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[str] = []
    addresses: list[str] = []
    streams: list[HTTPConnection] = []

    def listen(event: dict[str, object]) -> None:
        if event["event"] != "phase" or event["phase"] != "curves":
            return
        (found,) = _ADDRESS.findall(capfd.readouterr().err)
        addresses.append(found)
        parts = urlsplit(found)
        connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
        connection.request("GET", f"/events?{parts.query}")
        streams.append(connection)

    sr.study(_model(), _batches(), run_dir=tmp_path / "run", progress=False, callback=listen, serve=True)
    text = streams[0].getresponse().read().decode()
    streams[0].close()
    for line in text.splitlines():
        name, _, value = line.partition(": ")
        if name == "event":
            heard.append(value)
        elif name == "data" and heard[-1:] != ["over"]:
            heard.append(str(json.loads(value).get("event")))
    # The last of the run, and that there is no more.
    assert "end" in heard[-4:]
    assert heard[-1] == "over"
    assert "damage" in heard
    assert capfd.readouterr().err == ""
    parts = urlsplit(addresses[0])
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20).request("GET", "/")
    # Whoever reads the run's directory is not given the token.
    assert parts.query.partition("=")[2] not in (tmp_path / "run" / "events.jsonl").read_text()


@pytest.mark.parametrize("call", ON_STUDY)
def test_calls_on_a_study_show_its_directory(
    call: str, study: sr.Study, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.measure_fewer_variants(monkeypatch)
    shown = seams.watch_live_views(monkeypatch)
    _on_study(call, study)
    assert len(_ADDRESS.findall(capfd.readouterr().err)) == 1
    assert [Path(each).name for each in shown] == ["run"]


@pytest.mark.parametrize("call", IN_RUN_DIR)
def test_calls_with_a_directory_show_it(call: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _in_run_dir(call, tmp_path / "run")
    assert len(_ADDRESS.findall(capfd.readouterr().err)) == 1
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["event"] == "run"


@pytest.mark.parametrize("call", [*ON_STUDY, *IN_RUN_DIR])
def test_without_a_directory_there_is_nothing_to_show(
    call: str, study_in_memory: sr.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.measure_fewer_variants(monkeypatch)
    with pytest.raises(
        sr.OptionError, match=r"serve=True shows what a run writes .* there is none; .*run_dir="
    ):
        _on_study(call, study_in_memory) if call in ON_STUDY else _in_run_dir(call, None)


def test_what_is_no_answer_is_refused(study: sr.Study, tmp_path: Path) -> None:
    with pytest.raises(sr.OptionError, match="serve='yes'; give True or False"):
        study.apply(study.plan(macs=0.7), serve="yes")  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="run_dir is a int; give the path of a directory"):
        sr.study(_model(), _batches(), run_dir=3, progress=False, serve=True)  # type: ignore[arg-type]
    with pytest.raises(sr.StudyError, match="loaded without a model"):
        sr.Study.load(_saved(study, tmp_path)).apply(study.plan(macs=0.7), serve=True)


def _saved(study: sr.Study, folder: Path) -> Path:
    study.save(folder / "saved")
    return folder / "saved"


def test_a_page_that_cannot_be_shown_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.refuse_live_views(monkeypatch)
    with caplog.at_level(logging.WARNING, "slimrank.progress"):
        _in_run_dir("study", tmp_path / "run")
    assert "serve=True: no port; the run goes on without its page" in caplog.text


def test_an_error_of_the_run_ends_the_page_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fail(event: dict[str, object]) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        sr.study(_model(), _batches(), run_dir=tmp_path, progress=False, callback=fail, serve=True)
    (address,) = _ADDRESS.findall(capfd.readouterr().err)
    parts = urlsplit(address)
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20).request("GET", "/")


def test_training_tells_every_epoch(tmp_path: Path) -> None:
    _in_run_dir("finetune", tmp_path)
    events = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    epochs = [event for event in events if event["event"] == "epoch"]
    assert [event["epoch"] for event in epochs] == [1, 2]
    keys = {"phase", "training_loss", "held_out_loss", "held_out_before", "learning_rate", "is_best"}
    assert keys <= set(epochs[0])
    assert events[-1]["event"] == "end"
    assert events[-1]["phase"] == "finetune"


def test_damages_are_told_as_they_are_measured(study: sr.Study, tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    again = sr.study(_model(), _batches(), progress=False, callback=heard.append)
    damages = [event for event in heard if event["event"] == "damage"]
    layers = {curve.layer for curve in again.curves} | {curve.group for curve in again.group_curves}
    assert {event["layer"] for event in damages} == layers
    for event in damages:
        if event["method"] == "channel_pruning":
            group = again.group_curves[str(event["layer"])]
            assert event["damage"] == pytest.approx(group.damage[list(group.kept).index(event["rank"])])
            continue
        (curve,) = (c for c in again.curves if c.layer == event["layer"] and c.form == event["form"])
        index = list(curve.ranks).index(event["rank"])
        assert event["damage"] == pytest.approx(curve.damage[index])
        assert event["keep_ratio"] == pytest.approx(
            curve.macs[index] / again.layers[curve.layer].macs, abs=1e-6
        )


def test_figures_that_are_not_finite_are_told_as_none() -> None:
    heard: list[dict[str, object]] = []
    seams.emit_with(heard.append, value=float("nan"), other=float("inf"), third=0.5)
    assert (heard[0]["value"], heard[0]["other"], heard[0]["third"]) == (None, None, 0.5)


_NET = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
def data():
    return [torch.randn(32, 16, generator=torch.Generator().manual_seed(1))]
def spread(model):
    return float(model(data()[0]).std())
"""


def _called(*arguments: str) -> tuple[int, str, str]:
    shown = CliRunner().invoke(seams.cli, list(arguments))
    return shown.exit_code, shown.stdout, shown.stderr


@pytest.mark.slow
def test_commands_show_their_run(tmp_path: Path) -> None:
    net, run = tmp_path / "net.py", tmp_path / "run"
    net.write_text(_NET)
    calls: list[tuple[str, ...]] = [
        ("study", f"{net}:build", f"{net}:data", "--out", str(run), "--quiet"),
        ("score", f"{net}:build", f"{net}:spread", "--study", str(run), "--candidates", "2", "--quiet",
         "--out", str(tmp_path / "scores.json")),
        ("pareto", str(run), "--model", f"{net}:build", "--points", "2", "--quiet"),
        ("compress", f"{net}:build", f"{net}:data", "--macs", "0.7", "--run-dir", str(tmp_path / "other"),
         "--out", str(tmp_path / "small"), "--no-compete", "--quiet"),
        # A study, then a search: one page for both.
        ("compress", f"{net}:build", f"{net}:data", "--max-drop", "9", "--run-dir", str(tmp_path / "other"),
         "--out", str(tmp_path / "least"), "--quiet"),
    ]  # fmt: skip
    for call in calls:
        code, out, err = _called(*call, "--serve", "--json")
        assert code == 0, err
        assert len(_ADDRESS.findall(err)) == 1, call
        json.loads(out)
    events = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text().splitlines()]
    # A score run is in the journal of its study, which slimrank serve shows.
    assert "score" in events


def test_commands_without_a_directory_say_which_option_is_missing(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(_NET)
    code, _, err = _called(
        "compress",
        f"{net}:build",
        f"{net}:data",
        "--macs",
        "0.7",
        "--out",
        str(tmp_path / "small"),
        "--serve",
    )
    assert code != 0
    assert "--run-dir" in err
    plan = tmp_path / "plan.json"
    study = sr.study(_model(), _batches(), progress=False)
    study.plan(macs=0.7).save(plan)
    code, _, err = _called("apply", f"{net}:build", str(plan), "--out", str(tmp_path / "small"), "--serve")
    assert code != 0
    assert "--serve shows what is written to a run's directory; add --study RUN" in err
