# SPDX-License-Identifier: Apache-2.0
"""The pages in a real Chromium, headless: a run is watched and killed, a plan is edited, compared and saved.

Skipped where there is no Chromium or no playwright; ``make test-browser`` installs the latter.
"""

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import slimrank as sr
from invented_times import Machine, table_on
from slimrank.live import Live, edit_in_browser
from slimrank.plan import Plan

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
_REASON = f"no Chromium is found: none of {', '.join(_NAMES)} is in PATH, and CHROMIUM names none"
pytestmark = pytest.mark.skipif(_CHROMIUM is None, reason=_REASON)

# Of playwright, which has no types here: it is installed by ``make test-browser`` alone.
Page = Browser = Any


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make test-browser")
    with api.sync_playwright() as playwright:
        # As root, in a container say, Chromium has no sandbox.
        started = playwright.chromium.launch(
            executable_path=_CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window that is as narrow as a phone's; what its scripts complain of fails the test."""
    context = browser.new_context(viewport={"width": 400, "height": 900}, color_scheme="dark")
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    problems: list[str] = []
    opened.on("pageerror", lambda error: problems.append(str(error)))
    opened.on("console", lambda message: message.type == "error" and problems.append(message.text))
    yield opened
    context.close()
    # A server that has gone, or that refused what it had to, is told by the page itself.
    own = [text for text in problems if "Failed to load resource" not in text and "ERR_" not in text]
    assert own == []


def _says(page: Page, text: str, where: str = "#state") -> None:
    page.locator(where).filter(has_text=text).wait_for()


def _fits(page: Page) -> bool:
    """Whether nothing stands out of the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


_RUN = """
import sys, torch, slimrank as sr
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
model = nn.Sequential(*(nn.Linear(48, 48) for _ in range(6))).eval()
def slow(event):
    if event["event"] == "damage" and "--wait" in sys.argv:
        print("told", flush=True)
        sys.stdin.readline()
batches, methods = [torch.randn(96, 48)], ("weight_svd",)
sr.study(model, batches, run_dir=sys.argv[1], progress=False, callback=slow, methods=methods)
"""


def _started(folder: Path, *options: str) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", _RUN, str(folder), *options]
    return subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_a_run_is_watched_killed_and_goes_on(page: Page, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with _started(folder, "--wait") as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stdout.readline() == "told\n"
        with sr.serve(folder) as live:
            page.goto(live.url)
            _says(page, "Running: curves")
            _says(page, "curves", "#phases")
            # It advances while it is watched.
            _says(page, "0 of 6", "#phases")
            for _ in range(11):
                run.stdin.write("\n")
                run.stdin.flush()
                assert run.stdout.readline() == "told\n"
            page.locator("#damage tbody tr").nth(2).wait_for()
            # Steps are told four times a second at most.
            time.sleep(0.3)
            for _ in range(5):
                run.stdin.write("\n")
                run.stdin.flush()
                assert run.stdout.readline() == "told\n"
            page.locator("#phases li", has_text="curves").filter(has_text="left").wait_for()
            run.send_signal(signal.SIGKILL)
            run.wait()
            _says(page, "The run is gone: its process ended in the middle of a phase.")
            _says(page, "start the same call again and it goes on", "#detail")
            assert _fits(page)
            # The same call, again: the page follows on its own.
            with _started(folder) as again:
                assert again.wait(timeout=120) == 0
            _says(page, "Nothing is running; all phases are done.")


def test_a_click_on_a_layer_draws_its_curves(page: Page, tmp_path: Path) -> None:
    nets: ModuleType = sys.modules["nets"]
    study = sr.study(nets.with_a_block(), nets.noise(3, 4, 4, n=3), run_dir=tmp_path / "run", progress=False)
    sr.measure_scores(study, lambda model: 1.0, candidates=4, progress=False)
    with sr.serve(tmp_path / "run") as live:
        page.goto(live.url)
        _says(page, "Nothing is running")
        page.locator("#damage").get_by_role("button", name="5", exact=True).first.click()
        dialog = page.get_by_role("dialog")
        dialog.locator("h2", has_text="5").wait_for()
        dialog.get_by_text("predicted damage").first.wait_for()
        dialog.get_by_text("eval score").first.wait_for()
        assert dialog.locator("svg polyline").count() >= 2
        points = dialog.locator("svg").first.locator("circle")
        assert points.count() >= 2
        assert re.search(r": \S+ at \d+(\.\d)? %", points.first.locator("title").text_content())
        assert _fits(page)
        dialog.get_by_role("button", name="Close").click()
        dialog.wait_for(state="hidden")
        # As many scores as the table has.
        cells = page.locator("#score tbody td").all_text_contents()
        told = (tmp_path / "run" / "events.jsonl").read_text().count('"event": "score"')
        assert sum(bool(cell) for cell in cells) == told


def test_a_plan_of_the_run_is_edited_from_its_page(page: Page, tmp_path: Path) -> None:
    nets: ModuleType = sys.modules["nets"]
    folder = tmp_path / "run"
    study = sr.study(nets.with_a_block(), nets.noise(3, 4, 4, n=3), run_dir=folder, progress=False)
    study.plan(macs=0.6).save(folder / "plan.json")
    with sr.serve(folder) as live:
        page.goto(live.url)
        page.get_by_role("button", name="Edit plan.json").click()
        _says(page, "Ready.")
        _slide(page, "width of 2", 5)
        _says(page, "2 changed.")
        page.get_by_role("button", name="Save as a new plan").click()
        _says(page, "Saved as plan-edited-1.json.")
        page.goto(live.url)
        page.get_by_role("button", name="Edit plan-edited-1.json").wait_for()
        (folder / "study.json").unlink()
        page.get_by_role("button", name="Edit plan-edited-1.json").click()
        _says(page, "was not finished; run it again", "#detail")


def test_a_training_is_drawn_epoch_by_epoch(page: Page, tmp_path: Path) -> None:
    torch.manual_seed(0)
    labelled = [(torch.randn(16, 8), torch.randint(0, 3, (16,))) for _ in range(4)]
    model = nn.Linear(8, 3)
    sr.finetune(model, labelled, nn.CrossEntropyLoss(), epochs=3, run_dir=tmp_path, progress=False)
    with sr.serve(tmp_path) as live:
        page.goto(live.url)
        page.locator("#training svg polyline").nth(1).wait_for()
        assert page.locator("#training svg circle").count() == 6
        _says(page, "before training (dashed)", "#training")
        assert _fits(page)


def test_what_a_journal_may_hold_is_shown(page: Page, tmp_path: Path) -> None:
    """Half a line, nothing of a number, a name with markup, an error in a phase, messages, a result."""
    journal = tmp_path / "events.jsonl"
    name = "<b>layer</b>"
    damage = {"event": "damage", "layer": name, "method": "weight_svd", "form": "linear", "rank": 1}
    events = [
        {"event": "run", "machine": platform.node(), "pid": os.getpid(), "time": 1.0},
        {"event": "phase", "phase": "curves", "total": 0, "time": 1.0},
        {**damage, "keep_ratio": 0.5, "damage": None},
        {**damage, "keep_ratio": 0.75, "damage": 0.0},
        {**damage, "keep_ratio": 0.25, "damage": 2.5},
        {"event": "message", "text": name, "time": 1.0},
        {"event": "result", "macs": 0.5, "params": 0.5, "bytes": 0.5, "divergence": None},
        {"event": "stopped", "phase": "curves", "done": 0, "total": 0, "seconds": 1.0},
        {"event": "something later versions write"},
        {"event": "damage"},
        {"event": "message"},
    ]
    lines = [json.dumps(event) for event in events]
    journal.write_text("\n".join([*lines[:3], '{"event": "da', *lines[3:]]) + '\n{"event": "mess')
    with sr.serve(tmp_path) as live:
        page.goto(live.url)
        _says(page, "Stopped in curves.")
        _says(page, "1 line of the journal cannot be read", "#detail")
        _says(page, name, "#messages")
        page.locator("#damage").get_by_role("button", name=name).click()
        page.get_by_role("dialog").locator("svg circle").nth(1).wait_for()
        assert page.locator("b", has_text="layer").count() == 0
        assert page.locator("#numbers section").count() == 3


def test_the_page_of_a_call_says_when_that_has_ended(
    page: Page, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    is_open, addresses = threading.Event(), list[str]()

    def hold(event: dict[str, object]) -> None:
        if event["event"] == "damage" and not addresses:
            addresses.append(capfd.readouterr().err.split()[-1])
            assert is_open.wait(60)

    def run() -> None:
        batches = [torch.randn(32, 16)]
        model = nn.Sequential(nn.Linear(16, 16))
        sr.study(model, batches, run_dir=tmp_path / "run", progress=False, callback=hold, serve=True)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive() and not addresses:
        time.sleep(0.05)
    page.goto(addresses[0])
    _says(page, "Running: curves")
    is_open.set()
    thread.join()
    _says(page, "The call that showed this page has ended", "#detail")
    _says(page, "Nothing is running; all phases are done.")


def test_without_the_token_a_page_says_what_to_do(page: Page, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("")
    with sr.serve(tmp_path) as live:
        page.goto(live.url.partition("?")[0])
        page.get_by_text("open the whole address that the server printed").wait_for()
        page.goto(live.url)
        _says(page, "The run has not begun.")


@pytest.fixture(scope="module")
def study() -> sr.Study:
    nets: ModuleType = sys.modules["nets"]
    return sr.study(nets.with_a_block(), nets.noise(3, 4, 4, n=3), progress=False)


@pytest.fixture
def path(study: sr.Study, tmp_path: Path) -> Path:
    found = tmp_path / "plan.json"
    study.plan(macs=0.6, multiple_of=1).save(found)
    study.plan(macs=0.4, multiple_of=1).save(tmp_path / "other.json")
    return found


@pytest.fixture
def editor(study: sr.Study, path: Path, page: Page) -> Iterator[Live]:
    table = table_on(study.structure, Machine(call=10.0))
    with edit_in_browser(path, study, latencies=table) as live:
        page.goto(live.url)
        _says(page, "Ready.")
        yield live


def _card(page: Page, heading: str) -> str:
    return str(page.locator("#numbers section", has_text=heading).locator("b").first.text_content())


def _slide(page: Page, label: str, value: int) -> None:
    """As a person does: the slider is moved, then let go."""
    page.get_by_label(label, exact=True).fill(str(value))


def test_a_plan_is_edited_locked_planned_again_and_saved(editor: Live, page: Page, path: Path) -> None:
    before = {name: _card(page, name) for name in ("macs", "predicted damage", "predicted latency")}
    _slide(page, "width of 2", 5)
    _says(page, "2 changed.")
    after = {name: _card(page, name) for name in before}
    assert all(before[name] != after[name] for name in before)
    page.get_by_label("lock group 2", exact=True).check()
    _says(page, "2 is locked.")
    page.get_by_role("button", name="Replan the rest").click()
    _says(page, "The rest is planned again.")
    assert page.get_by_label("width of 2", exact=True).input_value() == "5"
    assert float(_card(page, "macs").split()[0]) <= 60.0
    page.get_by_role("button", name="Save as a new plan").click()
    _says(page, "Saved as plan-edited-1.json.")
    saved = Plan.load(path.with_name("plan-edited-1.json"))
    assert len(saved.groups["2"]) == 5
    assert saved.fixed == {"groups": ("2",)}
    for _ in range(3):
        page.get_by_role("button", name="Undo").click()
    page.locator("#undo:disabled").wait_for()
    assert {name: _card(page, name) for name in before} == before
    assert _fits(page)
    assert editor.url.startswith("http://127.0.0.1:")


def test_totals_follow_a_slider_before_it_is_let_go(editor: Live, page: Page) -> None:
    before = _card(page, "macs")
    slider = page.get_by_label("width of 2", exact=True)
    slider.evaluate("slider => { slider.value = 3; slider.dispatchEvent(new Event('input')); }")
    page.wait_for_function(
        "before => document.querySelector('#numbers b').textContent !== before", arg=before
    )
    # Nothing is changed yet.
    assert page.locator("#undo").is_disabled()
    assert editor.url


def test_a_slider_stops_at_what_the_layer_takes_and_says_why(editor: Live, page: Page) -> None:
    page.get_by_label("method of 5", exact=True).select_option("weight_svd")
    _says(page, "5 changed.")
    slider = page.get_by_label("rank of 5", exact=True)
    slider.focus()
    slider.press("End")
    _says(page, "5 changed.")
    assert slider.input_value() == slider.get_attribute("max")
    row = page.locator("#layers tbody tr", has=page.get_by_role("rowheader", name="5", exact=True))
    assert "rank" in str(row.locator("td").last.text_content())
    # Who works with the keyboard stays at the slider.
    assert page.evaluate("document.activeElement.ariaLabel") == "rank of 5"
    assert editor.url


def test_two_plans_stand_side_by_side(editor: Live, page: Page, study: sr.Study, path: Path) -> None:
    page.get_by_label("other plan", exact=True).select_option("other.json")
    _says(page, "Beside other.json.")
    other = Plan.load(path.with_name("other.json"))
    table = page.locator("#compared")
    assert f"{100 * other.keep_ratio('macs'):.1f} %" in table.inner_text()
    for name, kept in other.groups.items():
        row = table.locator("tr", has=page.get_by_role("rowheader", name=f"group {name}", exact=True))
        assert f"keeps {len(kept)} of" in str(row.locator("td").nth(1).text_content())
    fewer = table.locator("tbody tr").count()
    page.get_by_label("also what is the same").check()
    assert table.locator("tbody tr").count() >= fewer
    page.get_by_label("other plan", exact=True).select_option("as it was opened")
    table.get_by_text("Both plans do the same.").wait_for()
    _slide(page, "width of 2", 5)
    table.get_by_text("keeps 5 of 16").wait_for()
    assert _fits(page)
    assert editor.url


def test_a_plan_is_applied(editor: Live, page: Page, path: Path) -> None:
    page.get_by_role("button", name="Apply").click()
    _says(page, "the model is in plan-edited-1-model-1", "#built")
    assert (path.with_name("plan-edited-1-model-1") / "plan.json").is_file()
    assert editor.url


def test_a_change_in_another_window_is_told(editor: Live, page: Page, browser: Browser) -> None:
    second = browser.new_page()
    second.goto(editor.url)
    _says(second, "Ready.")
    _slide(page, "width of 2", 5)
    _says(page, "2 changed.")
    second.get_by_label("lock group 2", exact=True).click()
    _says(second, "the plan was changed in another window", "#detail")
    assert second.get_by_label("width of 2", exact=True).input_value() == "5"
    second.close()


def test_an_editor_that_has_gone_is_told(study: sr.Study, path: Path, page: Page) -> None:
    with edit_in_browser(path, study) as live:
        page.goto(live.url)
        _says(page, "Ready.")
    _slide(page, "width of 2", 5)
    _says(page, "The server does not answer.")
