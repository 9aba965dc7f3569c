# SPDX-License-Identifier: Apache-2.0
"""The server of a plan that is edited in the browser."""

import json
import os
import secrets
import threading
import webbrowser
from functools import cached_property
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from slimrank._errors import SlimrankError
from slimrank._study import Study
from slimrank.live._editor import Editor, do
from slimrank.live._guard import LOOPBACK, Guard
from slimrank.live._server import Live, check_port, plain_page, port_error
from slimrank.plan import Plan
from slimrank.report import document

# A request names one row and one value; more is no request of the page.
_MOST_BYTES = 65_536


def edit_in_browser(
    plan_path: str | os.PathLike[str], study: Study, *, port: int = 0, open_browser: bool = False
) -> Live:
    """Edits a plan in the browser; it is for this machine only.

    Args:
        plan_path: file of the plan. It is never changed: what is saved goes to new files beside it.
        study: that the plan is of; it computes everything that the page shows.
        port: on which to listen; 0 for a free one.
        open_browser: also open the page.

    Returns:
        The server, which runs until it is closed; ``url`` is the address to open.

    Raises:
        FileError: the file cannot be read.
        PlanError: it is no plan, or one of another model.
        OptionError: the port is in use, or no port.
    """
    path = Path(plan_path)
    editor = Editor(study, Plan.load(path), path)
    check_port(port)
    try:
        server = _EditServer(port, editor, path.name)
    except OSError as error:
        raise port_error(port, error) from error
    live = Live(server)
    if open_browser:
        webbrowser.open(live.url)
    return live


class _EditServer(ThreadingHTTPServer):
    """Listens on this machine only."""

    daemon_threads = True
    # A port that another server has must be refused, not shared.
    allow_reuse_address = os.name == "posix"

    def __init__(self, port: int, editor: Editor, name: str) -> None:
        super().__init__((LOOPBACK, port), _Handler)
        self.editor, self.name = editor, name
        # Requests come in threads of their own; the plan is changed by one at a time.
        self.one_at_a_time = threading.Lock()
        self.is_closing = threading.Event()
        self.guard = Guard(port=self.server_address[1], token=secrets.token_urlsafe(24))

    @property
    def url(self) -> str:
        """For a browser on this machine."""
        return f"http://{LOOPBACK}:{self.guard.port}/?token={self.guard.token}"

    @cached_property
    def page(self) -> bytes:
        """The page, which asks for what it shows."""
        code = files("slimrank.live").joinpath("edit.js").read_text(encoding="utf-8")
        parts = "".join(
            f'<details class="part" open id="{kind}s"><summary><h2>{heading}</h2></summary>'
            '<div class="scroll"><table><thead></thead><tbody></tbody></table></div></details>\n'
            for kind, heading in (("layer", "Layers"), ("group", "Channel groups"), ("block", "Blocks"))
        )
        body = (
            f"<h1>{escape(self.name)}</h1>\n"
            '<p class="verdict" id="state" role="status">Reading the plan</p>\n'
            '<p class="soft" id="detail"></p>\n<div class="numbers" id="numbers"></div>\n'
            '<p><button id="replan">Replan the rest</button> <button id="undo">Undo</button> '
            f'<button id="save">Save as a new plan</button></p>\n{parts}'
            "<noscript><p>This page needs its script to edit a plan.</p></noscript>"
        )
        return document(f"{self.name}, edit", body, {}, code=code, connects=True).encode()


class _Handler(BaseHTTPRequestHandler):
    server: _EditServer
    protocol_version = "HTTP/1.1"
    server_version = "slimrank"
    sys_version = ""

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: requests hold the token."""

    def do_GET(self) -> None:
        """Answers with the page, or with what it shows."""
        path, refusal = self._asked(changes=False)
        if refusal is not None:
            self._answer(HTTPStatus.FORBIDDEN, plain_page("Not shown", refusal))
        elif path == "/":
            self._answer(HTTPStatus.OK, self.server.page)
        elif path == "/state":
            with self.server.one_at_a_time:
                facts = self.server.editor.facts()
            self._tell(HTTPStatus.OK, facts)
        else:
            self._answer(
                HTTPStatus.NOT_FOUND, plain_page("Nothing here", "open the address that was printed")
            )

    def do_POST(self) -> None:
        """Changes the plan, and answers with what the page then shows."""
        # What is not read would be taken for the next request.
        self.close_connection = True
        path, refusal = self._asked(changes=True)
        length = self.headers.get("Content-Length", "")
        if refusal is not None:
            self._tell(HTTPStatus.FORBIDDEN, {"error": refusal})
        elif path != "/do":
            self._tell(HTTPStatus.NOT_FOUND, {"error": "changes are sent to /do"})
        elif self.headers.get("Content-Type") != "application/json":
            self._tell(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "send JSON"})
        elif not length.isdecimal() or int(length) > _MOST_BYTES:
            text = f"give a Content-Length of at most {_MOST_BYTES}"
            self._tell(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": text})
        else:
            self._change(self.rfile.read(int(length)))

    def _change(self, body: bytes) -> None:
        try:
            request: object = json.loads(body)
        except ValueError as error:
            self._tell(HTTPStatus.BAD_REQUEST, {"error": f"this is no JSON ({error})"})
            return
        try:
            with self.server.one_at_a_time:
                facts = do(self.server.editor, request)
        except SlimrankError as error:
            self._tell(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)})
        else:
            self._tell(HTTPStatus.OK, facts)

    def _asked(self, *, changes: bool) -> tuple[str, str | None]:
        """The path that is asked for, and why it is refused."""
        address = urlsplit(self.path)
        token = parse_qs(address.query).get("token", [None])[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        return address.path, self.server.guard.refusal(headers, token, changes=changes)

    def _tell(self, status: HTTPStatus, content: object) -> None:
        self._answer(status, json.dumps(content).encode(), kind="application/json")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str = "text/html; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)
