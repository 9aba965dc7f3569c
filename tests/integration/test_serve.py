# SPDX-License-Identifier: Apache-2.0
"""A run in the browser: what the server sends, and whom it refuses."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from torch import nn

import seams
import slimrank as sr


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run whose process is this one."""
    folder = tmp_path / "run"
    folder.mkdir()
    _add(folder, event="run", what="study", machine=platform.node(), pid=os.getpid())
    _add(folder, event="phase", phase="curves", total=4)
    return folder


def _add(folder: Path, **event: object) -> None:
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": 1.0, **event}) + "\n")


class _Stream:
    """Server-sent events, read one after the other."""

    def __init__(self, url: str, last_id: str = "") -> None:
        parts = urlsplit(url)
        self.connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
        headers = {"Last-Event-ID": last_id} if last_id else {}
        self.connection.request("GET", f"/events?{parts.query}", headers=headers)
        self.response: HTTPResponse = self.connection.getresponse()
        assert self.response.status == 200
        assert self.response.headers["Content-Type"] == "text/event-stream"

    def next(self) -> dict[str, str]:
        fields: dict[str, str] = {}
        while True:
            line = self.response.readline().decode().rstrip("\n")
            if not line and fields:
                return fields
            name, _, value = line.partition(": ")
            if name:
                fields[name] = value

    def close(self) -> None:
        self.response.close()
        self.connection.close()


def _get(url: str, path: str = "/", **headers: str) -> tuple[int, str, HTTPResponse]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text, response


def test_events_come_as_they_are_written_and_go_on_after_a_break(run_dir: Path) -> None:
    with sr.serve(run_dir) as live:
        stream = _Stream(live.url)
        first, second, status = stream.next(), stream.next(), stream.next()
        assert json.loads(first["data"])["event"] == "run"
        assert json.loads(second["data"])["phase"] == "curves"
        assert status == {"event": "status", "data": '{"alive": true}'}
        _add(run_dir, event="step", phase="curves", done=2, total=4, seconds=1.0, text="layer2")
        third = stream.next()
        assert json.loads(third["data"])["done"] == 2
        found = (run_dir / "events.jsonl").stat()
        assert third["id"] == f"{found.st_ino}-{found.st_size}"
        stream.close()
        _add(run_dir, event="end", phase="curves", done=4, total=4, seconds=2.0)
        again = _Stream(live.url, third["id"])
        assert json.loads(again.next()["data"])["event"] == "end"
        again.close()


def test_another_journal_in_its_place_begins_anew(run_dir: Path) -> None:
    journal = run_dir / "events.jsonl"
    with sr.serve(run_dir) as live:
        stream = _Stream(live.url)
        seen = [stream.next() for _ in range(3)]
        new = run_dir / "new"
        new.mkdir()
        _add(new, event="run", machine="elsewhere", pid=1)
        _add(new, event="message", text="the second run, whose journal is longer than the first was" * 9)
        journal.unlink()
        # Gone for a moment, it is waited for.
        assert stream.next() == {"event": "reset", "data": "{}"}
        assert stream.next() == {"event": "status", "data": '{"alive": null}'}
        (new / "events.jsonl").rename(journal)
        told = [json.loads(stream.next()["data"]) for _ in range(2)]
        assert [event["event"] for event in told] == ["run", "message"]
        stream.close()
        late = _Stream(live.url, seen[1]["id"])
        assert late.next()["event"] == "reset"
        assert json.loads(late.next()["data"])["machine"] == "elsewhere"
        late.close()


def test_a_half_written_line_waits_and_a_broken_one_is_told(run_dir: Path) -> None:
    path = run_dir / "events.jsonl"
    with path.open("a") as file:
        file.write('{"event": "mess\n[1, 2]\n{"event": "message", "te')
    with sr.serve(run_dir) as live:
        stream = _Stream(live.url)
        kinds = [json.loads(stream.next()["data"]).get("event") for _ in range(4)]
        assert kinds == ["run", "phase", "unreadable", "unreadable"]
        assert stream.next()["event"] == "status"
        with path.open("a") as file:
            file.write('xt": "whole now"}\n')
        assert json.loads(stream.next()["data"]) == {"event": "message", "text": "whole now"}
        stream.close()


@pytest.mark.slow
def test_a_run_that_was_killed_is_told(tmp_path: Path) -> None:
    code = (
        "import torch, slimrank as sr, sys\n"
        "from torch import nn\n"
        "torch.set_num_threads(1)\n"
        "model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).eval()\n"
        "def slow(event):\n"
        "    if event['event'] == 'phase' and event['phase'] == 'curves':\n"
        "        print('there', flush=True)\n"
        "        sys.stdin.read()\n"
        "sr.study(model, [torch.randn(64, 64)], run_dir=sys.argv[1], progress=False, callback=slow)\n"
    )
    folder = tmp_path / "run"
    arguments = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        with sr.serve(folder) as live:
            stream = _Stream(live.url)
            found = stream.next()
            while found.get("event") != "status":
                found = stream.next()
            assert json.loads(found["data"]) == {"alive": True}
            process.send_signal(signal.SIGKILL)
            process.wait()
            while found.get("event") != "status" or "true" in found["data"]:
                found = stream.next()
            assert json.loads(found["data"]) == {"alive": False}
            stream.close()


def test_only_who_knows_the_token_is_shown_anything(run_dir: Path) -> None:
    with sr.serve(run_dir) as live:
        parts = urlsplit(live.url)
        right = f"/?{parts.query}"
        status, page, response = _get(live.url, right)
        assert status == 200
        assert "<h1>run</h1>" in page
        assert "connect-src 'self'" in page
        assert response.headers["Referrer-Policy"] == "no-referrer"
        refusals: list[tuple[str, dict[str, str], str]] = [
            ("/", {}, "the token is missing or wrong"),
            ("/?token=wrong", {}, "the token is missing or wrong"),
            ("/events?token=", {}, "the token is missing or wrong"),
            (right, {"Host": f"evil.example:{parts.port}"}, "this server is asked as"),
            (right, {"Host": f"127.0.0.1:{(parts.port or 0) + 1}"}, "this server is asked as"),
            (right, {"Origin": "http://evil.example"}, "a page of http://evil.example asks"),
        ]
        for path, headers, why in refusals:
            status, page, _ = _get(live.url, path, **headers)
            assert status == 403, path
            assert why in page
            assert "run" not in page.partition("<h1>")[2].partition("</h1>")[0]
        assert _get(live.url, right, Host=f"localhost:{parts.port}")[0] == 200
        for path in ("/../../etc/passwd", "/events.jsonl", "/etc/passwd"):
            status, page, _ = _get(live.url, f"{path}?{parts.query}")
            assert status == 404
            assert "Nothing here" in page


def test_names_of_folders_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "<b>run"
    folder.mkdir()
    _add(folder, event="run", what="study", machine="elsewhere", pid=1)
    with sr.serve(folder) as live:
        _, page, _ = _get(live.url, f"/?{urlsplit(live.url).query}")
        assert "&lt;b&gt;run" in page
        assert "<b>run" not in page
        stream = _Stream(live.url)
        assert json.loads(stream.next()["data"])["machine"] == "elsewhere"
        # Of a process of another machine nobody can tell.
        assert stream.next()["data"] == '{"alive": null}'
        stream.close()


def test_what_cannot_be_served_is_refused(tmp_path: Path, run_dir: Path) -> None:
    with pytest.raises(
        sr.FileError, match=r"missing is no directory; give that of a run, e\.g\. the run_dir="
    ):
        sr.serve(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(sr.FileError, match=r"empty holds no run: there is no events\.jsonl in it"):
        sr.serve(tmp_path / "empty")
    for port in (-1, 70000, True, "80"):
        with pytest.raises(sr.OptionError, match=r"give a whole number from 0 to 65535"):
            sr.serve(run_dir, port=port)  # type: ignore[arg-type]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(sr.OptionError, match=r"it cannot be listened on \(.*\); give another, or 0"):
            sr.serve(run_dir, port=taken.getsockname()[1])


def test_others_may_watch_where_that_is_asked_for(run_dir: Path) -> None:
    with sr.serve(run_dir, host="0.0.0.0") as live:
        parts = urlsplit(live.url)
        port, right = parts.port, f"/?{parts.query}"
        assert parts.hostname == socket.gethostname().lower()
        local = f"http://127.0.0.1:{port}/"
        # By number, or by the name of the machine: a foreign page has only its own name to use.
        for host in (
            f"127.0.0.1:{port}",
            f"192.168.7.3:{port}",
            f"[::1]:{port}",
            f"{socket.gethostname()}:{port}",
        ):
            assert _get(local, right, Host=host)[0] == 200, host
        for host in (f"evil.example:{port}", "192.168.7.3:1", f"192.168.7.3.evil.example:{port}", ""):
            assert _get(local, right, Host=host)[0] == 403, host
        assert _get(local, right, Origin="http://evil.example")[0] == 403
        assert _get(local, "/?token=wrong")[0] == 403
        # One person edits, from this machine.
        status, text = _post(local, f"/edit?{parts.query}", {"plan": "plan.json"})
        assert status == 422
        assert "plans are edited from the machine of the run alone" in text
    with sr.serve(run_dir) as live:
        here = urlsplit(live.url)
        assert _get(live.url, f"/?{here.query}", Host=f"192.168.7.3:{here.port}")[0] == 403
    with pytest.raises(
        sr.OptionError, match=r"host='192\.0\.2\.1', port=0: it cannot be listened on \(.*\); give an"
    ):
        sr.serve(run_dir, host="192.0.2.1")
    with pytest.raises(sr.OptionError, match=r"host is a int; give an address"):
        sr.serve(run_dir, host=3)  # type: ignore[arg-type]


def _post(url: str, path: str, request: object, **headers: str) -> tuple[int, str]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
    sent = {"Origin": f"http://{parts.netloc}", "Content-Type": "application/json", **headers}
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    connection.request("POST", path, body=body, headers=sent)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def test_plans_of_a_run_are_listed_and_each_opens_in_an_editor(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, folder = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5)), tmp_path / "run"
    study = sr.study(model, [torch.randn(32, 16)], run_dir=folder, progress=False)
    study.plan(macs=0.7).save(folder / "plan.json")
    (folder / "notes.json").write_text("{}")
    with sr.serve(folder) as live:
        query = urlsplit(live.url).query
        status, text, _ = _get(live.url, f"/plans?{query}")
        assert (status, json.loads(text)) == (200, {"plans": ["plan.json"]})
        status, text = _post(live.url, f"/edit?{query}", {"plan": "plan.json"})
        assert status == 200, text
        editor = json.loads(text)["url"]
        parts = urlsplit(editor)
        assert _get(editor, f"/state?{parts.query}")[0] == 200
        # One editor for each plan.
        assert json.loads(_post(live.url, f"/edit?{query}", {"plan": "plan.json"})[1])["url"] == editor
        refusals: list[tuple[object, str, dict[str, str], int, str]] = [
            ({"plan": "../run/plan.json"}, query, {}, 422, "there is none beside this one"),
            ({"plan": "notes.json"}, query, {}, 422, "there is none beside this one"),
            ({"plan": 3}, query, {}, 422, "is no object with a"),
            ([1], query, {}, 422, "is no object with a"),
            (b"[" * 60_000, query, {}, 400, "this is no JSON"),
            ({"plan": "plan.json"}, "token=wrong", {}, 403, "the token is missing or wrong"),
            ({"plan": "plan.json"}, query, {"Origin": "http://evil.example"}, 403, "a page of"),
            ({"plan": "plan.json"}, query, {"Content-Type": "text/plain"}, 415, "send JSON"),
        ]
        for request, token, headers, expected, why in refusals:
            status, text = _post(live.url, f"/edit?{token}", request, **headers)
            assert status == expected, (request, text)
            assert why in text
        assert _post(live.url, f"/do?{query}", {"plan": "plan.json"})[0] == 404
    # It ends with the page that opened it.
    with pytest.raises(ConnectionRefusedError):
        _get(editor)


@pytest.mark.parametrize("host", ["localhost", "LocalHost", "127.0.0.1", "127.0.0.2", "::1"])
def test_plans_are_shown_on_every_address_of_this_machine_alone(host: str, tmp_path: Path) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as tried:
        try:
            tried.bind((host, 0))
        except OSError:
            pytest.skip(f"this machine has no {host}")
    _run_with_a_plan(tmp_path / "run")
    with sr.serve(tmp_path / "run", host=host) as live:
        parts = urlsplit(live.url)
        assert parts.hostname == host.lower()
        # Browsers write it in lower case.
        named = f"{parts.hostname}:{parts.port}" if ":" not in host else f"[{host}]:{parts.port}"
        assert _get(live.url, f"/?{parts.query}", Host=named, Origin=f"http://{named}")[0] == 200
        status, text, _ = _get(live.url, f"/plans?{parts.query}")
        assert (status, json.loads(text)) == (200, {"plans": ["plan.json"]})
        status, text = _post(live.url, f"/edit?{parts.query}", {"plan": "plan.json"})
        assert status == 200, text
        assert _get(live.url, f"/?{parts.query}", Host=f"192.168.7.3:{parts.port}")[0] == 403
        assert _get(live.url, f"/?{parts.query}", Host=f"{socket.gethostname()}:{parts.port}")[0] == 403


def test_a_plan_of_a_run_that_is_not_done_cannot_be_edited_yet(run_dir: Path, tmp_path: Path) -> None:
    study = sr.study(nn.Sequential(nn.Linear(16, 16)), [torch.randn(32, 16)], progress=False)
    study.plan(macs=0.9).save(run_dir / "plan.json")
    with sr.serve(run_dir) as live:
        status, text = _post(live.url, f"/edit?{urlsplit(live.url).query}", {"plan": "plan.json"})
        assert status == 422
        assert "study" in json.loads(text)["error"]


def test_lines_that_are_no_events_are_told_whatever_they_hold(run_dir: Path) -> None:
    journal = run_dir / "events.jsonl"
    with journal.open("ab") as file:
        file.write(b"[" * 100_000 + b"\n" + b"\xff\xfe\n" + b'{"event": 3}\n{"event": "x", "a": NaN}\n')
    with sr.serve(run_dir) as live:
        stream = _Stream(live.url)
        told = [json.loads(stream.next()["data"]) for _ in range(6)]
        stream.close()
    assert [event["event"] for event in told[2:]] == ["unreadable", "unreadable", "unreadable", "x"]
    # A browser reads no NaN.
    assert told[5]["a"] is None


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_journal_that_cannot_be_read_is_refused(run_dir: Path) -> None:
    (run_dir / "events.jsonl").chmod(0)
    with pytest.raises(sr.FileError, match=r"events\.jsonl cannot be read; ask its owner"):
        sr.serve(run_dir)


def test_names_of_hosts_are_the_same_in_any_case() -> None:
    guard = seams.Guard(port=80, token="secret", names=frozenset({"Maria-PC"}), is_local=False)
    for name in ("maria-pc:80", "MARIA-PC:80", "LOCALHOST:80", "[::ABCD]:80"):
        headers = {"host": name, "origin": f"HTTP://{name.swapcase()}"}
        assert guard.refusal(headers, "secret", changes=True) is None, name
    for name in ("maria-pc.evil.example:80", "maria-pc:81", "maria:80"):
        assert "this server is asked as" in str(guard.refusal({"host": name}, "secret"))
    assert "the token is missing or wrong" in str(guard.refusal({"host": "maria-pc:80"}, "SECRET"))


def test_a_change_needs_an_origin_of_its_own() -> None:
    guard = seams.Guard(port=80, token="secret")
    host = {"host": "127.0.0.1:80"}
    assert guard.refusal(host, "secret") is None
    assert "needs an Origin" in str(guard.refusal(host, "secret", changes=True))
    own = {**host, "origin": "http://127.0.0.1:80"}
    assert guard.refusal(own, "secret", changes=True) is None
    assert "only the server's own" in str(guard.refusal({**host, "origin": "null"}, "secret", changes=True))


@pytest.fixture
def command(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-m", "slimrank", "serve", str(run_dir)]
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background hands on an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    ) as process:
        timer = threading.Timer(60, process.kill)
        timer.start()
        yield process
        timer.cancel()
        process.kill()


@pytest.mark.slow
def test_the_command_prints_the_address_alone_and_ends_by_ctrl_c(command: subprocess.Popen[str]) -> None:
    assert command.stdout is not None
    url = command.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    assert _get(url, f"/?{urlsplit(url).query}")[0] == 200
    time.sleep(0.2)
    command.send_signal(signal.SIGINT)
    assert command.wait(timeout=20) == 0


def _kept_open(url: str) -> HTTPConnection:
    """A connection that has had an answer, and stays."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port or 0, timeout=20)
    connection.request("GET", f"/?{parts.query}")
    response = connection.getresponse()
    response.read()
    assert (response.status, response.will_close) == (200, False)
    return connection


def _run_with_a_plan(folder: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5))
    study = sr.study(model, [torch.randn(32, 16)], run_dir=folder, progress=False)
    study.plan(macs=0.7).save(folder / "plan.json")


def test_a_server_that_ended_answers_no_connection_that_was_open(run_dir: Path) -> None:
    with sr.serve(run_dir) as live:
        connection = _kept_open(live.url)
    connection.sock.settimeout(20)
    assert connection.sock.recv(1) == b""
    connection.close()


def test_a_browser_that_breaks_off_leaves_no_trace_and_other_errors_are_told(
    run_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with sr.serve(run_dir) as live:
        for error in (ConnectionResetError("reset"), BrokenPipeError("gone"), ValueError("a mistake")):
            try:
                raise error
            except (OSError, ValueError):
                live._server.handle_error(None, ("127.0.0.1", 1))
    told = capfd.readouterr().err
    assert "ValueError: a mistake" in told
    assert "reset" not in told
    assert "gone" not in told


def test_an_editor_that_opens_while_the_server_ends_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    _run_with_a_plan(folder)
    loads, goes_on = threading.Event(), threading.Event()
    load = sr.Study.load

    def slow(path: Path) -> sr.Study:
        loads.set()
        assert goes_on.wait(20)
        return load(path)

    monkeypatch.setattr(sr.Study, "load", slow)
    live = sr.serve(folder)
    path, answers = f"/edit?{urlsplit(live.url).query}", []
    asking = threading.Thread(target=lambda: answers.append(_post(live.url, path, {"plan": "plan.json"})))
    asking.start()
    assert loads.wait(20)
    closing = threading.Thread(target=live.close)
    closing.start()
    closing.join(0.5)
    assert closing.is_alive()
    goes_on.set()
    for thread in (closing, asking):
        thread.join(20)
        assert not thread.is_alive()
    # It is answered, with an address where nothing is any more.
    ((status, text),) = answers
    assert status == 200
    with pytest.raises(ConnectionRefusedError):
        _get(json.loads(text)["url"])


def test_a_server_that_ends_opens_no_editor(tmp_path: Path) -> None:
    _run_with_a_plan(tmp_path / "run")
    with sr.serve(tmp_path / "run") as live:
        live._server.is_closing.set()
        status, text = _post(live.url, f"/edit?{urlsplit(live.url).query}", {"plan": "plan.json"})
        assert status == 422
        assert "this server has ended; start it again" in text
        connection = _kept_open(live.url)
        live._server.has_ended = True
        connection.request("GET", f"/?{urlsplit(live.url).query}")
        response = connection.getresponse()
        assert (response.status, response.will_close) == (403, True)
        assert "this server has ended; start it again" in response.read().decode()
        connection.close()
