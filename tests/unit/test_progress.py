# SPDX-License-Identifier: Apache-2.0
import json
import logging
import time
from io import StringIO
from pathlib import Path

import pytest

import seams


def test_a_text_stands_beside_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = StringIO()
    seams.show_progress_on(monkeypatch, shown)
    phases = seams.Phases(shown=True)
    with phases.phase("scores", 3) as advance:
        advance(1)
        advance(1, "layer1.conv v_h 12: 0.934")
    assert "layer1.conv v_h 12: 0.934" in shown.getvalue()
    assert "2/3" in shown.getvalue()
    assert phases.seconds["scores"] > 0


def test_events_tell_of_phases_steps_and_their_end(tmp_path: Path) -> None:
    heard: list[dict[str, object]] = []
    file = seams.EventFile(tmp_path / "events.jsonl")
    phases = seams.Phases(shown=False, listeners=[heard.append, file])
    with phases.phase("moments", 2) as advance:
        advance(1, "a")
        advance(1, "b")

    def fail() -> None:
        with phases.phase("apply", 3) as advance:
            advance(1, "c")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    phases.emit("score", layer="fc", score=0.5)
    kinds = [(event["event"], event.get("phase"), event.get("done")) for event in heard]
    assert kinds[0] == ("phase", "moments", None)
    # The first step came too soon to be told; the last one of a phase always is.
    assert ("step", "moments", 2) in kinds
    assert ("end", "moments", 2) in kinds
    assert kinds[-2] == ("stopped", "apply", 1)
    assert heard[-1]["layer"] == "fc"
    assert heard[-1]["score"] == 0.5
    assert all(isinstance(event["time"], float) for event in heard)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["event"] == "run"
    assert [json.loads(line) for line in lines[1:]] == heard


def test_steps_are_told_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    heard: list[dict[str, object]] = []
    phases = seams.Phases(shown=False, listeners=[heard.append])
    with phases.phase("anchors", 100) as advance:
        for _ in range(100):
            now[0] += 0.01
            advance(1)
    steps = [event["done"] for event in heard if event["event"] == "step"]
    assert steps[-1] == 100
    assert 3 <= len(steps) <= 5


def test_a_line_a_minute_where_no_bar_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO, logger="slimrank.progress")
    with seams.Phases(shown=True).phase("anchors", 200) as advance:
        for index in range(200):
            now[0] += 1
            advance(1, f"layer{index}")
    assert [record.getMessage() for record in caplog.records] == [
        "anchors: 60 of 200, about 140 s left (layer59)",
        "anchors: 120 of 200, about 80 s left (layer119)",
        "anchors: 180 of 200, about 20 s left (layer179)",
        "anchors: done after 200.0 s",
    ]
    caplog.clear()
    with seams.Phases(shown=False).phase("anchors", 2) as advance:
        now[0] += 100
        advance(2)
    assert not caplog.records


def test_the_whole_is_weighted_by_what_phases_are_expected_to_take(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    caplog.set_level(logging.INFO, logger="slimrank.progress")
    heard: list[dict[str, object]] = []
    phases = seams.Phases(shown=True, listeners=[heard.append])
    expected = {
        "moments": seams.Expected(seconds=30, steps=100),
        "curves": seams.Expected(seconds=270, steps=10),
    }
    phases.overall = seams.Overall("study", expected)
    # Nothing is known of the pace yet.
    assert str(phases.overall) == "study 0%, about 5 min left"
    # Twice as slow as expected, in two rounds.
    for _ in range(2):
        with phases.phase("moments", 50) as advance:
            now[0] += 30
            advance(50)
    assert str(phases.overall) == "study 10%, about 9 min left"
    with phases.phase("curves", 10) as advance:
        now[0] += 270
        advance(5, "conv")
        now[0] += 270
        advance(5)
    # What was not expected counts nothing, and no phase counts more than was expected of it.
    for name in ("other", "curves"):
        with phases.phase(name, 5) as advance:
            advance(5)
    assert phases.overall.share == 1
    assert phases.overall.seconds_left == 0
    assert caplog.records[2].getMessage() == (
        "curves: 5 of 10, about 270 s left (conv); study 55%, about 4 min left (estimated)"
    )
    steps = [event for event in heard if event["event"] == "step"]
    assert [event["overall"] for event in steps[:4]] == [0.05, 0.1, 0.55, 1.0]
    assert steps[2]["seconds_left"] == 270


def test_a_call_of_which_nothing_is_expected_is_at_its_start() -> None:
    overall = seams.Overall("study", {})
    assert overall.share == 0
    assert overall.seconds_left == 0


def test_a_line_is_whole_where_stderr_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    line = (
        "smallest: macs 0.5243: drop 0.0123 nats per sample, within 0.02, the same class in 99.1 % of samples"
    )
    seams.Phases(shown=True).tell(line)
    assert capfd.readouterr().err == f"{line}\n"
