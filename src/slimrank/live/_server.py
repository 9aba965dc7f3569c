# SPDX-License-Identifier: Apache-2.0
"""The server: a page, and the run's events as they come (server-sent events, W3C)."""

import json
import os
import platform
import time
from functools import cached_property
from html import escape
from http import HTTPStatus
from importlib.resources import files
from pathlib import Path

from slimrank._errors import OptionError
from slimrank._progress import EVENTS_FILE
from slimrank._study import Study
from slimrank.live._beside import Shelf
from slimrank.live._edit_server import edit_in_browser
from slimrank.live._guard import LOOPBACK
from slimrank.live._journal import journal_of, read_lines
from slimrank.live._local import Live, LocalHandler, LocalServer, open_live
from slimrank.report import document

# Seconds between two looks at the journal, and between two signs of life to the browser.
_LOOK, _PING = 0.3, 15.0


def serve(
    run_dir: str | os.PathLike[str], *, host: str = LOOPBACK, port: int = 0, open_browser: bool = False
) -> Live:
    """Shows a run in the browser: its phases with the time that is left, its scores, what it says.

    It reads what the run writes to its directory, so it can be started late, shows what a run that crashed
    had done, and never slows a run down. It is for this machine only, unless ``host`` says otherwise.

    Args:
        run_dir: ``run_dir=`` of a study, of a run that goes on or of one that is over.
        host: address to listen on; "0.0.0.0" for all of this machine: then whoever has the address, with its
            token, can watch from other machines. What is sent is not encrypted.
        port: on which to listen; 0 for a free one.
        open_browser: also open the page.

    Returns:
        The server, which runs until it is closed; ``url`` is the address to open.

    Example:
        >>> import tempfile, torch
        >>> import slimrank as sr
        >>> model, folder = torch.nn.Sequential(torch.nn.Linear(16, 16)), tempfile.mkdtemp()
        >>> study = sr.study(model, [torch.randn(8, 16)], run_dir=folder, progress=False)
        >>> with sr.serve(folder) as live:
        ...     live.url.startswith("http://127.0.0.1:")
        True

    Raises:
        FileError: no run.
        OptionError: the port is in use, or no port; a host that is no address of this machine.
    """
    if not isinstance(host, str):
        raise OptionError(f"host is a {type(host).__name__}; give an address, such as '0.0.0.0' for all")
    journal = journal_of(run_dir)
    return open_live(
        lambda number: _Server(number, journal, host), port, open_browser=open_browser, host=host
    )


def serve_from_start(run_dir: str | os.PathLike[str]) -> Live:
    """As ``serve``, of a run that has not begun to write to its directory.

    Raises:
        OptionError: nothing can be listened on.
    """
    journal = Path(run_dir) / EVENTS_FILE
    return open_live(lambda number: _Server(number, journal, LOOPBACK), 0, open_browser=False)


class _Server(LocalServer):
    """Of one run."""

    def __init__(self, port: int, journal: Path, host: str) -> None:
        self.journal = journal
        self.shelf = Shelf([journal.parent])
        self._editors: dict[str, Live] = {}
        super().__init__(port, _Handler, host)

    def edit(self, name: str) -> str:
        """Opens an editor of a plan in the run's directory, one for each plan; its address.

        Raises:
            OptionError: there is no such plan, the server ends, or others may watch: a plan is edited by one
                person.
            SlimrankError: as in ``edit_in_browser``, and where the study is not done.
        """
        if not self.guard.is_local:
            raise OptionError("plans are edited from the machine of the run alone; use slimrank edit there")
        with self.changes():
            path = self.shelf.path_of(name)
            if name not in self._editors:
                folder = self.journal.parent
                self._editors[name] = edit_in_browser(path, Study.load(folder), run_dir=folder)
            return self._editors[name].url

    def let_go(self) -> None:
        """Ends the editors."""
        for editor in self._editors.values():
            editor.close()
        self._editors.clear()

    @cached_property
    def page(self) -> bytes:
        """The page, which asks for the events."""
        name = self.journal.parent.resolve().name
        code = files("slimrank.live").joinpath("live.js").read_text(encoding="utf-8")
        maps = "".join(
            f'<details class="part" open id="{kind}" hidden><summary><h2>{heading}</h2></summary>'
            '<div class="scroll"><table class="heat"><thead></thead><tbody></tbody></table></div></details>\n'
            for kind, heading in (("damage", "Predicted damage"), ("score", "Eval scores"))
        )
        body = (
            f'<h1>{escape(name)}</h1>\n<p class="verdict" id="state" role="status">Reading the journal</p>\n'
            '<p class="soft" id="detail"></p>\n<div class="numbers" id="numbers"></div>\n'
            '<details class="part" open><summary><h2>Phases</h2></summary>'
            '<div><ul class="bars phases" id="phases"></ul></div></details>\n'
            '<details class="part" open id="training" hidden>'
            f"<summary><h2>Training</h2></summary><div></div></details>\n{maps}"
            '<details class="part" open id="plans" hidden><summary><h2>Plans</h2></summary>'
            '<div class="tools"></div></details>\n'
            '<details class="part" open id="said" hidden><summary><h2>Messages</h2></summary><div>'
            '<dl id="messages"></dl></div></details>\n<dialog id="layer"></dialog>\n'
            "<noscript><p>This page needs its script to show a run that goes on.</p></noscript>"
        )
        return document(f"{name}, live", body, {}, code=code, connects=True).encode()


class _Handler(LocalHandler):
    server: _Server
    changes_at = "/edit"

    def show(self, path: str) -> bool:
        """The page, or events until the browser goes."""
        if path == "/":
            self.answer(HTTPStatus.OK, self.server.page)
        elif path == "/events":
            self._stream(self.headers.get("Last-Event-ID", ""))
        elif path == "/plans":
            names = self.server.shelf.names() if self.server.guard.is_local else []
            self.tell(HTTPStatus.OK, {"plans": names})
        else:
            return False
        return True

    def change(self, request: object) -> tuple[HTTPStatus, object]:
        """Opens an editor."""
        name = request.get("plan") if isinstance(request, dict) else None
        if not isinstance(name, str):
            raise OptionError('the request is no object with a "plan"')
        return HTTPStatus.OK, {"url": self.server.edit(name)}

    def _stream(self, last_id: str) -> None:
        """Sends the journal from a byte on, and what is added to it, until one of both ends goes."""
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            with self.server.stream():
                self._send_events(last_id)
        except ConnectionError:
            # The browser went.
            return

    def _send_events(self, last_id: str) -> None:
        """Sends what is in the journal behind an event, then what is added; another journal from its start.

        Args:
            last_id: file and byte of the last event that the browser has seen; "" for none.
        """
        journal, told, quiet_since = self.server.journal, "", time.monotonic()
        seen_file, _, seen_byte = last_id.partition("-")
        file, start = seen_file, int(seen_byte) if seen_byte.isdecimal() else 0
        process: tuple[object, object] = (None, None)
        is_first = True
        is_over = False
        while not is_over:
            # Read before the journal: what a run wrote before it closed its page is still sent.
            is_over = self.server.is_closing.is_set()
            parts = []
            now, size = _identity(journal)
            if now != file or size < start:
                # Another run took the place of the one that the browser saw.
                if start:
                    parts.append("event: reset\ndata: {}\n\n")
                file, start, process = now, 0, (None, None)
            elif is_first:
                process = _process_before(journal, start)
            is_first = False
            for line in read_lines(journal, start):
                start = line.end
                process = _process_of(line.event) or process
                event = {"event": "unreadable"} if line.event is None else line.event
                parts.append(f"id: {file}-{line.end}\ndata: {json.dumps(event)}\n\n")
            status = json.dumps({"alive": _is_alive(*process)})
            if status != told:
                parts.append(f"event: status\ndata: {status}\n\n")
                told = status
            if not parts and time.monotonic() - quiet_since > _PING:
                parts.append(": still here\n\n")
            if is_over:
                parts.append("event: over\ndata: {}\n\n")
            if parts:
                quiet_since = time.monotonic()
                self.wfile.write("".join(parts).encode())
                self.wfile.flush()
            self.server.is_closing.wait(_LOOK)


def _process_before(journal: Path, end: int) -> tuple[object, object]:
    """The process that worked in a run's directory when its journal had so many bytes."""
    process: tuple[object, object] = (None, None)
    for line in read_lines(journal, 0):
        if line.end > end:
            break
        process = _process_of(line.event) or process
    return process


def _identity(path: Path) -> tuple[str, int]:
    """Which file a journal is, and its bytes; nothing where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return "", 0
    return str(found.st_ino), found.st_size


def _process_of(event: dict[str, object] | None) -> tuple[object, object] | None:
    """Machine and number of the process that a line tells of."""
    if event is None or event["event"] != "run":
        return None
    return event.get("machine"), event.get("pid")


def _is_alive(machine: object, pid: object) -> bool | None:
    """Whether the process that works in the run's directory is there; None where that cannot be told."""
    if machine != platform.node() or not isinstance(pid, int) or os.name != "posix":
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is somebody else's, and so it is there.
        return True
    return True
