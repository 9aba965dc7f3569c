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
