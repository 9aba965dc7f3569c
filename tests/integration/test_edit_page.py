# SPDX-License-Identifier: Apache-2.0
"""A plan that is edited in the browser: what the server computes, what it refuses, and whom."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import seams
import slimrank as sr
from invented_times import Machine, Table, table_on
from slimrank.live import Live, edit_in_browser
from slimrank.plan import Plan, planned_latency

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def study() -> sr.Study:
    nets: ModuleType = sys.modules["nets"]
    return sr.study(nets.with_a_block(), nets.noise(3, 4, 4, n=3), progress=False)


@pytest.fixture
def path(study: sr.Study, tmp_path: Path) -> Path:
    found = tmp_path / "plan.json"
    study.plan(macs=0.6, params=0.7, multiple_of=1).save(found)
    return found


@pytest.fixture
def live(study: sr.Study, path: Path) -> Iterator[Live]:
    with edit_in_browser(path, study) as server:
        yield server


def _ask(live: Live, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, str]:
    parts = urlsplit(live.url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body=body, headers=named)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def _state(live: Live) -> dict[str, Any]:
    status, text = _ask(live, "GET", f"/state?{urlsplit(live.url).query}")
    assert status == 200
    found: dict[str, Any] = json.loads(text)
    return found


def _do(live: Live, status: int = 200, **request: object) -> dict[str, Any]:
    parts = urlsplit(live.url)
    found, text = _ask(
        live,
        "POST",
        f"/do?{parts.query}",
        json.dumps(request).encode(),
        Origin=f"http://{parts.netloc}",
        Content_Type="application/json",
    )
    assert found == status, text
    answer: dict[str, Any] = json.loads(text)
    return answer


def _row(facts: dict[str, Any], kind: str, name: str) -> dict[str, Any]:
    row: dict[str, Any] = next(row for row in facts[kind] if row["name"] == name)
    return row


def test_the_page_and_its_state_show_the_plan(live: Live, study: sr.Study, path: Path) -> None:
    plan = Plan.load(path)
    status, page = _ask(live, "GET", f"/?{urlsplit(live.url).query}")
    assert status == 200
    assert "<h1>plan.json</h1>" in page
    assert "connect-src 'self'" in page
    facts = _state(live)
    assert facts["totals"]["macs"]["after"] == plan.after.macs
    assert facts["totals"]["bytes"]["ratio"] == plan.keep_ratio("bytes")
    assert facts["damage"] == pytest.approx(plan.damage)
    assert facts["budgets"] == {"macs": 0.6, "params": 0.7}
    for name, setting in plan.settings.items():
        assert _row(facts, "layers", name)["rank"] == setting.rank
    for row in facts["groups"]:
        assert row["keep"] == len(plan.groups.get(row["name"], range(row["units"])))
    assert {row["name"] for row in facts["blocks"]} == {each.block for each in study.block_damages}
    assert facts["undo"] == 0


def test_changes_are_those_of_the_study(live: Live, study: sr.Study, path: Path) -> None:
    plan = study.edit(Plan.load(path), {"5": ("weight_svd", {"rank": 2})})
    facts = _do(live, action="pair", name="5", method="weight_svd", rank=2)
    assert facts["totals"]["params"]["after"] == plan.after.params
    assert facts["damage"] == pytest.approx(plan.damage)
    plan = study.edit(plan, {"2": ("channel_pruning", {"keep": 9})})
    facts = _do(live, action="width", name="2", keep=9)
    assert facts["totals"]["macs"]["after"] == plan.after.macs
    assert _row(facts, "groups", "2")["keep"] == 9
    facts = _do(live, action="pair", name="2", method=None)
    assert _row(facts, "layers", "2")["method"] is None
    # The channels of the same name stay as they were.
    assert _row(facts, "groups", "2")["keep"] == 9
    facts = _do(live, action="block", name="1", dropped=True)
    assert _row(facts, "blocks", "1")["dropped"]
    assert not any(row["name"] == "1.conv" for row in facts["layers"])
    facts = _do(live, action="block", name="1", dropped=False)
    assert not _row(facts, "blocks", "1")["dropped"]
    assert facts["undo"] == 5


def test_undo_goes_back_to_the_plan_as_it_was_opened(live: Live) -> None:
    first = _state(live)
    _do(live, action="width", name="2", keep=9)
    _do(live, action="lock", kind="group", name="2", locked=True)
    assert _row(_do(live, action="undo"), "groups", "2")["locked"] is False
    assert {**_do(live, action="undo"), "version": 0} == first
    assert "there is nothing to undo" in _do(live, 422, action="undo")["error"]


def test_sliders_end_at_what_a_layer_takes(live: Live) -> None:
    facts = _do(live, action="pair", name="5", method="weight_svd", rank=1)
    row = _row(facts, "layers", "5")
    assert row["top"] >= 1
    assert "rank" in row["why"]
    assert (
        _row(_do(live, action="pair", name="5", method="weight_svd", rank=row["top"]), "layers", "5")["rank"]
        == row["top"]
    )
    before = _state(live)
    told = _do(live, 422, action="pair", name="5", method="weight_svd", rank=row["top"] + 1)
    assert "is outside" in told["error"]
    assert _state(live) == before
    # A narrower layer takes less.
    _do(live, action="width", name="2", keep=16)
    _do(live, action="pair", name="2", method="spatial_svd", rank=1)
    wide = _row(_state(live), "layers", "2")["top"]
    assert _row(_do(live, action="width", name="2", keep=3), "layers", "2")["top"] < wide


def test_the_rest_is_planned_around_what_is_locked(live: Live, study: sr.Study, path: Path) -> None:
    _do(live, action="pair", name="5", method="weight_svd", rank=3)
    _do(live, action="width", name="2", keep=11)
    _do(live, action="pair", name="2", method=None)
    for kind, name in (("layer", "5"), ("layer", "2"), ("group", "2"), ("block", "1")):
        assert _do(live, action="lock", kind=kind, name=name, locked=True)
    facts = _do(live, action="replan")
    assert _row(facts, "layers", "5")["rank"] == 3
    assert _row(facts, "layers", "2")["method"] is None
    assert _row(facts, "groups", "2")["keep"] == 11
    assert not _row(facts, "blocks", "1")["dropped"]
    assert facts["select"] == "optimal"
    assert facts["totals"]["macs"]["ratio"] <= 0.6
    assert facts["totals"]["params"]["ratio"] <= 0.7
    free = study.plan(macs=0.6, params=0.7, multiple_of=1)
    assert facts["damage"] >= (free.damage or 0) * (1 - 1e-9)
    # Nothing locked: the plan that was opened.
    for kind, name in (("layer", "5"), ("layer", "2"), ("group", "2"), ("block", "1")):
        _do(live, action="lock", kind=kind, name=name, locked=False)
    assert _do(live, action="replan")["damage"] == pytest.approx(Plan.load(path).damage)


def test_budgets_out_of_reach_with_the_locks_are_told(live: Live) -> None:
    before = _state(live)
    for row in before["layers"]:
        _do(live, action="pair", name=row["name"], method=None)
        _do(live, action="lock", kind="layer", name=row["name"], locked=True)
    for row in before["groups"]:
        _do(live, action="width", name=row["name"], keep=row["units"])
        _do(live, action="lock", kind="group", name=row["name"], locked=True)
    told = _do(live, 422, action="replan")["error"]
    assert "cannot be met; the smallest reachable is" in told
    assert "Fixed: " in told


def test_saving_never_replaces_a_file(live: Live, path: Path) -> None:
    before = path.read_bytes()
    taken = path.with_name("plan-edited-1.json")
    taken.write_text("mine")
    _do(live, action="width", name="2", keep=9)
    assert _do(live, action="save")["saved"] == "plan-edited-2.json"
    assert _do(live, action="save")["saved"] == "plan-edited-3.json"
    assert path.read_bytes() == before
    assert taken.read_text() == "mine"
    assert len(Plan.load(path.with_name("plan-edited-2.json")).groups["2"]) == 9


def test_a_plan_by_hand_has_no_budgets_to_plan_for(study: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "hand.json"
    Plan.manual(study, {"5": ("weight_svd", {"rank": 3})}).save(path)
    with edit_in_browser(path, study) as live:
        assert "it has no budgets" in _do(live, 422, action="replan")["error"]


def test_plans_chosen_by_scores_are_not_planned_again(study: sr.Study, tmp_path: Path) -> None:
    table = sr.measure_scores(study, lambda model: 1.0, progress=False)
    path = tmp_path / "scored.json"
    study.plan(macs=0.7, scores=table).save(path)
    with edit_in_browser(path, study) as live:
        assert (
            "it was chosen by scores, which this page does not have"
            in _do(live, 422, action="replan")["error"]
        )


def test_a_slider_that_is_moved_changes_nothing_yet(live: Live) -> None:
    before = _state(live)
    told = _do(live, action="width", name="2", keep=9, preview=True)
    assert set(told) == {"totals", "damage", "latency"}
    assert _state(live) == before
    made = _do(live, action="width", name="2", keep=9)
    assert {key: made[key] for key in told} == told
    refused = _do(live, 422, action="width", name="2", keep=0, preview=True)
    assert "outside 1..16" in refused["error"]


def test_two_plans_stand_side_by_side(live: Live, study: sr.Study, path: Path) -> None:
    other = study.plan(macs=0.4, multiple_of=1)
    other.save(path.with_name("other.json"))
    path.with_name("notes.json").write_text('{"mine": 1}')
    path.with_name("broken.json").write_text('{"steps": ')
    assert _state(live)["plans"] == ["as it was opened", "other.json"]
    found = _do(live, action="compare", name="other.json")["compared"]
    plan = Plan.load(path)
    assert found["ratios"]["params"] == other.keep_ratio("params")
    assert found["damage"] == pytest.approx(other.damage)
    rows = {(row["kind"], row["name"]): (row["this"], row["other"]) for row in found["rows"]}
    for name in {*plan.settings, *other.settings}:
        texts = rows["layer", name]
        assert (texts[0] == texts[1]) == (plan.settings.get(name) == other.settings.get(name))
        for text, own in zip(texts, (plan, other), strict=True):
            assert (
                (f"rank {own.settings[name].rank} " in text) if name in own.settings else text == "left alone"
            )
    # It follows the changes.
    _do(live, action="compare", name="as it was opened")
    same = _state(live)["compared"]["rows"]
    assert same
    assert all(row["this"] == row["other"] for row in same)
    changed = _do(live, action="width", name="2", keep=9)["compared"]["rows"]
    assert [row["name"] for row in changed if row["this"] != row["other"]] == ["2"]
    assert _do(live, action="compare", name=None)["compared"] is None


def test_only_plans_beside_this_one_are_opened(
    live: Live, path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    nets: ModuleType = sys.modules["nets"]
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "far.json"
    elsewhere.write_bytes(path.read_bytes())
    for name in ("far.json", str(elsewhere), f"../{elsewhere.parent.name}/far.json", "plan.jso"):
        assert "there is none beside this one" in _do(live, 422, action="compare", name=name)["error"]
    foreign = sr.study(nn.Sequential(nn.Linear(8, 8)), nets.noise(8, n=3), progress=False)
    foreign.plan(macs=0.9, multiple_of=1).save(path.with_name("foreign.json"))
    path.with_name("torn.json").write_text('{"steps": [], "costs": {}, "select": "optimal"}')
    before = _state(live)
    assert "belongs to another model" in _do(live, 422, action="compare", name="foreign.json")["error"]
    assert "torn.json" in _do(live, 422, action="compare", name="torn.json")["error"]
    assert "is no name of a plan" in _do(live, 422, action="compare", name=3)["error"]
    assert _state(live) == before


def test_plans_of_the_run_can_be_compared_too(study: sr.Study, path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    study.save(run)
    study.plan(macs=0.5).save(run / "kept.json")
    with edit_in_browser(path, study, run_dir=run) as live:
        assert _state(live)["plans"] == ["as it was opened", "kept.json"]
        assert _do(live, action="compare", name="kept.json")["compared"]["name"] == "kept.json"


def test_a_change_from_a_window_that_is_behind_is_refused(live: Live) -> None:
    behind = _state(live)["version"]
    now = _do(live, action="width", name="2", keep=9, version=behind)
    told = _do(live, 409, action="width", name="2", keep=12, version=behind)
    assert "was changed in another window" in told["error"]
    assert told["now"] == now == _state(live)
    assert (
        _row(_do(live, action="width", name="2", keep=12, version=now["version"]), "groups", "2")["keep"]
        == 12
    )


@pytest.mark.skipif(os.name != "posix", reason="locks of files are those of POSIX")
def test_two_editors_on_one_plan_are_told_and_never_write_to_one_file(
    live: Live, study: sr.Study, path: Path
) -> None:
    assert _state(live)["notices"] == []
    with edit_in_browser(path, study) as second:
        (notice,) = _state(second)["notices"]
        assert "plan.json is open in another editor, too" in notice
        assert _state(live)["notices"] == []
        names = {_do(each, action="save")["saved"] for each in (live, second, live)}
        assert names == {f"plan-edited-{number}.json" for number in (1, 2, 3)}
    # The next one is alone again, but for the first.
    live.close()
    with edit_in_browser(path, study) as third:
        assert _state(third)["notices"] == []


def test_a_plan_that_changed_on_disk_is_told(live: Live, study: sr.Study, path: Path) -> None:
    study.plan(macs=0.5).save(path)
    assert "plan.json was changed or removed since it was opened" in _state(live)["notices"][0]
    path.unlink()
    assert "was changed or removed" in _state(live)["notices"][0]


def test_what_was_fixed_is_locked_when_a_plan_is_opened(study: sr.Study, tmp_path: Path) -> None:
    path = tmp_path / "held.json"
    plan = study.plan(params=0.6, fixed={"2": ("spatial_svd", {"rank": 5}), "1": None})
    plan.save(path)
    with edit_in_browser(path, study) as live:
        facts = _state(live)
        assert _row(facts, "layers", "2")["locked"]
        assert not _row(facts, "groups", "2")["locked"]
        assert _row(facts, "blocks", "1")["locked"]
        assert _row(_do(live, action="replan"), "layers", "2")["rank"] == 5


@pytest.fixture
def times(study: sr.Study) -> Table:
    return table_on(study.structure, Machine(mac=1.0, call=10.0))


def test_predicted_times_follow_each_change(study: sr.Study, path: Path, times: Table) -> None:
    with edit_in_browser(path, study, latencies=times) as live:
        first = _state(live)["latency"]
        step = Plan.load(path).steps[-1]
        assert first["ratio"] == pytest.approx(planned_latency(times, step, 1.0).predicted)
        assert first["budget"] is None
        found = _do(live, action="width", name="2", keep=4)["latency"]
        edited = study.edit(Plan.load(path), {"2": ("channel_pruning", {"keep": 4})})
        assert found["ratio"] == pytest.approx(planned_latency(times, edited.steps[-1], 1.0).predicted)
        assert found["ratio"] < first["ratio"]
        assert found["ms"] == pytest.approx(found["ratio"] * found["before_ms"])
        _do(live, action="compare", name="as it was opened")
        assert _state(live)["compared"]["latency"] == first


def test_a_plan_for_a_time_is_planned_again_by_the_same_table(
    study: sr.Study, tmp_path: Path, times: Table
) -> None:
    path = tmp_path / "timed.json"
    study.plan(latency=0.8, latencies=times).save(path)
    with edit_in_browser(path, study) as live:
        assert "start slimrank edit with --latencies" in _do(live, 422, action="replan")["error"]
    with edit_in_browser(path, study, latencies=times) as live:
        row = next(row for row in _state(live)["groups"])
        _do(live, action="lock", kind="group", name=row["name"], locked=True)
        facts = _do(live, action="replan")
        assert facts["latency"]["budget"] == pytest.approx(0.8)
        assert facts["latency"]["ratio"] <= 0.8 * (1 + 1e-9)
        assert _row(facts, "groups", row["name"])["keep"] == row["keep"]


def test_times_of_another_network_are_refused(study: sr.Study, path: Path, times: Table) -> None:
    nets: ModuleType = sys.modules["nets"]
    other = sr.study(nn.Sequential(nn.Linear(8, 8)), nets.noise(8, n=3), progress=False)
    plan = path.with_name("linear.json")
    other.plan(macs=0.9, multiple_of=1).save(plan)
    with pytest.raises(sr.LatencyError):
        edit_in_browser(plan, other, latencies=times)


def test_a_plan_is_applied_from_the_page(live: Live, path: Path) -> None:
    _do(live, action="width", name="2", keep=9)
    facts = _do(live, action="build")
    assert facts["building"]["plan"] == facts["saved"] == "plan-edited-1.json"
    end = time.monotonic() + 60
    while (found := _state(live)["building"])["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert found["state"] == "done", found
    folder = path.with_name(found["folder"])
    assert Plan.load(folder / "plan.json").groups == Plan.load(path.with_name("plan-edited-1.json")).groups
    # Not saved again where nothing has changed, and no model is replaced.
    again = _do(live, action="build")
    assert again["saved"] == "plan-edited-1.json"


def test_without_a_model_nothing_is_applied(study: sr.Study, path: Path, tmp_path: Path) -> None:
    study.save(tmp_path / "run")
    with edit_in_browser(path, sr.Study.load(tmp_path / "run")) as live:
        assert _state(live)["building"] == {"state": "no model"}
        assert "start slimrank edit with --model" in _do(live, 422, action="build")["error"]


def test_a_model_that_cannot_be_built_is_told(
    study: sr.Study, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise sr.OutOfMemoryError("memory is used up")

    monkeypatch.setattr(sr.Study, "apply", fail)
    with edit_in_browser(path, study) as live:
        _do(live, action="build")
        end = time.monotonic() + 20
        while (found := _state(live)["building"])["state"] == "running":
            assert time.monotonic() < end
            time.sleep(0.05)
        assert found["state"] == "failed"
        assert found["error"] == "memory is used up"


def test_plans_chosen_for_a_peak_of_activations_are_not_planned_again(
    study: sr.Study, tmp_path: Path
) -> None:
    path = tmp_path / "peak.json"
    study.plan(activation_bytes=0.9).save(path)
    with edit_in_browser(path, study) as live:
        assert "for a peak of activations" in _do(live, 422, action="replan")["error"]


@pytest.mark.parametrize(
    ("request_", "match"),
    [
        ({}, "no object with an"),
        ({"action": "fly"}, "action 'fly': there is none"),
        ({"action": "pair"}, "give the name of a row"),
        ({"action": "pair", "name": "nope"}, "layer 'nope': there is none"),
        ({"action": "pair", "name": "5", "method": "weight_svd"}, "no rank is given"),
        ({"action": "pair", "name": "5", "method": 3}, "is no text"),
        ({"action": "pair", "name": "5", "method": "weight_svt", "rank": 2}, "did you mean 'weight_svd'"),
        ({"action": "width", "name": "2", "keep": "many"}, "is no whole number"),
        ({"action": "width", "name": "2", "keep": 0}, "outside 1..16"),
        ({"action": "width", "name": "nope", "keep": 2}, "group 'nope': there is none"),
        ({"action": "block", "name": "5", "dropped": True}, "block '5': there is none"),
        ({"action": "lock", "kind": "wall", "name": "5"}, "kind 'wall': there is none"),
    ],
)
def test_wrong_requests_change_nothing(live: Live, request_: dict[str, object], match: str) -> None:
    before = _state(live)
    assert match in _do(live, 422, **request_)["error"]
    assert _state(live) == before


def test_only_the_page_itself_may_change_the_plan(live: Live) -> None:
    parts = urlsplit(live.url)
    own = {"Origin": f"http://{parts.netloc}", "Content_Type": "application/json"}
    body = json.dumps({"action": "width", "name": "2", "keep": 9}).encode()
    right = f"/do?{parts.query}"
    refusals: list[tuple[str, dict[str, str], bytes, int, str]] = [
        ("/do", own, body, 403, "the token is missing or wrong"),
        ("/do?token=wrong", own, body, 403, "the token is missing or wrong"),
        (right, {"Content_Type": "application/json"}, body, 403, "a change needs an Origin"),
        (right, {**own, "Origin": "http://evil.example"}, body, 403, "a page of http://evil.example asks"),
        (right, {**own, "Host": "evil.example"}, body, 403, "this server is asked as"),
        (right, {**own, "Content_Type": "text/plain"}, body, 415, "send JSON"),
        (right, own, b"{", 400, "this is no JSON"),
        (right, own, b"[1]", 422, "no object with an"),
        (right, own, b" " * 70_000, 413, "give a Content-Length of at most"),
        (f"/other?{parts.query}", own, body, 404, "changes are sent to /do"),
    ]
    before = _state(live)
    for path, headers, sent, expected, why in refusals:
        status, text = _ask(live, "POST", path, sent, **headers)
        assert status == expected, (path, text)
        assert why in text
    assert _state(live) == before
    for path in ("/", "/state", "/do"):
        assert _ask(live, "GET", path)[0] == 403
    assert _ask(live, "GET", f"/do?{parts.query}")[0] == 404
    assert _ask(live, "POST", right, body, **own)[0] == 200


def test_what_cannot_be_edited_is_refused(study: sr.Study, path: Path, tmp_path: Path) -> None:
    with pytest.raises(sr.FileError, match=r"missing\.json"):
        edit_in_browser(tmp_path / "missing.json", study)
    nets: ModuleType = sys.modules["nets"]
    other = sr.study(nn.Sequential(nn.Linear(8, 8)), nets.noise(8, n=3), progress=False)
    with pytest.raises(sr.PlanError, match="belongs to another model"):
        edit_in_browser(path, other)
    with pytest.raises(sr.OptionError, match="give a whole number from 0 to 65535"):
        edit_in_browser(path, study, port=-1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(sr.OptionError, match="it cannot be listened on"):
            edit_in_browser(path, study, port=taken.getsockname()[1])


@pytest.mark.skipif(os.name != "posix", reason="locks of files are those of POSIX")
def test_a_plan_that_was_refused_is_not_held_open(study: sr.Study, path: Path) -> None:
    nets: ModuleType = sys.modules["nets"]
    other = sr.study(nn.Sequential(nn.Linear(8, 8)), nets.noise(8, n=3), progress=False)
    # While the error is looked at, what it left is there.
    with pytest.raises(sr.PlanError, match="belongs to another model") as told:
        edit_in_browser(path, other)
    with edit_in_browser(path, study) as live:
        assert _state(live)["notices"] == []
    assert told.value is not None


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_the_command_prints_the_address_and_ends_with_ctrl_c(
    study: sr.Study, path: Path, tmp_path: Path
) -> None:
    study.save(tmp_path / "run")
    arguments = [sys.executable, "-m", "slimrank", "edit", str(path), "--study", str(tmp_path / "run")]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        parts = urlsplit(url)
        connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
        connection.request("GET", f"/state?{parts.query}")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


_NET = """
import torch
from torch import nn
def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12)).eval()
def data():
    return [torch.randn(32, 16, generator=torch.Generator().manual_seed(1))]
"""


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
def test_the_command_applies_with_a_model_and_tells_times(tmp_path: Path) -> None:
    net, run, path = tmp_path / "net.py", tmp_path / "run", tmp_path / "plan.json"
    net.write_text(_NET)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 12)).eval()
    batches = [torch.randn(32, 16, generator=torch.Generator().manual_seed(1))]
    study = sr.study(model, batches, run_dir=run, progress=False)
    study.plan(macs=0.7).save(path)
    arguments = [
        sys.executable,
        "-m",
        "slimrank",
        "edit",
        str(path),
        "--study",
        str(run),
        "--model",
        f"{net}:build",
    ]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        assert process.stdout is not None
        live = _At(process.stdout.readline().strip())
        _do(live, action="build")  # type: ignore[arg-type]
        end = time.monotonic() + 60
        while (found := _state(live)["building"])["state"] == "running":  # type: ignore[arg-type]
            assert time.monotonic() < end
            time.sleep(0.1)
        assert found["state"] == "done", found
        assert (tmp_path / found["folder"] / "plan.json").is_file()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
    # Whoever watches the run sees the apply.
    assert '"phase": "apply"' in (run / "events.jsonl").read_text()


class _At(NamedTuple):
    """A server that another process has."""

    url: str


def test_the_command_refuses_a_plan_of_another_study(study: sr.Study, path: Path, tmp_path: Path) -> None:
    nets: ModuleType = sys.modules["nets"]
    other = sr.study(nn.Sequential(nn.Linear(8, 8)), nets.noise(8, n=3), progress=False)
    other.save(tmp_path / "other")
    shown = CliRunner().invoke(seams.cli, ["edit", str(path), "--study", str(tmp_path / "other")])
    assert shown.exit_code == 2
    assert "belongs to another model" in shown.stderr
    shown = CliRunner().invoke(seams.cli, ["serve", str(tmp_path / "nowhere")])
    assert shown.exit_code == 2
    assert "nowhere is no directory" in shown.stderr
