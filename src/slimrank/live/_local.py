# SPDX-License-Identifier: Apache-2.0
"""What servers of pages for this machine have in common: who may ask, how is answered, how one is started."""

import contextlib
import json
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
import webbrowser
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from slimrank._errors import OptionError, SlimrankError
from slimrank._numbers import whole_number
from slimrank.live._guard import LOOPBACK, Guard, is_loopback
from slimrank.report import document

_HIGHEST_PORT = 65535
# Of a host, that mean every address of the machine.
_ALL = ("0.0.0.0", "::", "")
# A request names one row and one value; more is no request of a page.
_MOST_BYTES = 65_536
# Seconds between two looks whether the server is to end, and that its pages have for the last events: a page
# that does not listen any more holds nothing up.
_POLL, _LAST_WORDS = 0.1, 1.0
# Seconds that a connection may stay silent between two requests, or take nothing of an answer.
_IDLE = 60.0
_ENDED = "this server has ended; start it again, and open the address that it prints then"


class Live:
    """A server that shows a run or a plan; it runs until it is closed.

    Attributes:
        url: address for a browser on this machine; it holds the token without which nothing is shown.
    """

    def __init__(self, server: "LocalServer") -> None:
        self._server = server
        self.url = server.url
        self._thread = threading.Thread(target=server.serve_forever, args=(_POLL,), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Waits until the server is closed, by Ctrl-C say."""
        while self._thread.is_alive():
            self._thread.join(0.5)

    def close(self) -> None:
        """Ends the server, once its pages have heard the last of the run."""
        self._server.is_closing.set()
        self._server.wait_for_streams(_LAST_WORDS)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> "Live":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_live(
    make: "Callable[[int], LocalServer]", port: object, *, open_browser: bool, host: str = LOOPBACK
) -> Live:
    """Starts a server.

    Args:
        make: makes it, on a port.
        port: on which to listen; 0 for a free one.
        open_browser: also open the page.
        host: that it listens on, for the message.

    Returns:
        The server, running.

    Raises:
        OptionError: the port is in use, or no port; no such host.
    """
    number = _port_number(port)
    try:
        server = make(number)
    except OSError as error:
        if host != LOOPBACK:
            raise OptionError(
                f"host={host!r}, port={port}: it cannot be listened on ({error.strerror}); give an address "
                "of this machine, or '0.0.0.0' for all, and a port that is free"
            ) from error
        raise OptionError(
            f"port={port}: it cannot be listened on ({error.strerror}); give another, or 0 for a free one"
        ) from error
    live = Live(server)
    if open_browser:
        webbrowser.open(live.url)
    return live


def _port_number(port: object) -> int:
    """The number of a port.

    Raises:
        OptionError: it is none.
    """
    number = whole_number(port)
    if number is None or not 0 <= number <= _HIGHEST_PORT:
        raise OptionError(f"port={port!r}; give a whole number from 0 to {_HIGHEST_PORT}, 0 for a free one")
    return number


class LocalServer(ThreadingHTTPServer):
    """Listens on this machine only, unless told otherwise.

    Attributes:
        is_closing: set before it ends, for answers that go on. Nothing is changed from then on.
        has_ended: whether it answers nobody any more.
        guard: who may ask.
        one_at_a_time: requests come in threads of their own; what they change is changed by one at a time.
    """

    daemon_threads = True
    # A port that another server has must be refused, not shared.
    allow_reuse_address = os.name == "posix"

    def __init__(self, port: int, handler: type["LocalHandler"], host: str = LOOPBACK) -> None:
        if ":" in host:
            self.address_family = socket.AF_INET6
        # First: where the port is taken, the server closes itself at once.
        self.is_closing, self.has_ended = threading.Event(), False
        self.one_at_a_time = threading.Lock()
        self._streams: set[threading.Thread] = set()
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__((host, port), handler)
        self._name = socket.gethostname() if host in _ALL else host
        # Of the address, not of the name that was typed: many names mean this machine alone.
        is_local = is_loopback(self.server_name)
        names = {self._name} if is_local else {self._name, socket.getfqdn()}
        self.guard = Guard(
            port=self.server_port,
            token=secrets.token_urlsafe(24),
            names=frozenset(names),
            is_local=is_local,
        )

    def server_bind(self) -> None:
        """Asks no name server for the name of the machine, as that of the standard library does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: object, client_address: object) -> None:
        """Tells what went wrong, unless a browser just broke its connection off."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Iterator[None]:
        """While a connection is open."""
        with self._connections_lock:
            self._connections.add(connection)
            if self.has_ended:
                _hear_no_more(connection)
        try:
            yield
        finally:
            with self._connections_lock:
                self._connections.discard(connection)

    def server_close(self) -> None:
        """Also ends open connections, each after the answer that it waits for, and lets go.

        A change that goes on is waited for, and what it opened is closed.
        """
        self.is_closing.set()
        super().server_close()
        with self._connections_lock:
            self.has_ended = True
            for connection in self._connections:
                _hear_no_more(connection)
        with self.one_at_a_time:
            self.let_go()

    def let_go(self) -> None:
        """Closes what requests opened; nothing is opened any more."""

    @contextlib.contextmanager
    def changes(self) -> Iterator[None]:
        """Changes are made by one at a time, and none once the server ends.

        Raises:
            OptionError: it ends.
        """
        with self.one_at_a_time:
            if self.is_closing.is_set():
                raise OptionError(_ENDED)
            yield

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """An answer that goes on until the server ends."""
        thread = threading.current_thread()
        self._streams.add(thread)
        try:
            yield
        finally:
            self._streams.discard(thread)

    def wait_for_streams(self, seconds: float) -> None:
        """Waits until answers that go on have ended, but no longer than so many seconds."""
        end = time.monotonic() + seconds
        for thread in tuple(self._streams):
            thread.join(max(0.0, end - time.monotonic()))

    @property
    def url(self) -> str:
        """For a browser: on this machine, or on another one where they may ask."""
        name = f"[{self._name}]" if ":" in self._name else self._name
        return f"http://{name}:{self.guard.port}/?token={self.guard.token}"


def _hear_no_more(connection: socket.socket) -> None:
    """Lets a connection end once what it was asked is answered."""
    # The browser may have gone already.
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RD)


class LocalHandler(BaseHTTPRequestHandler, ABC):
    """Answers who may ask."""

    server: LocalServer
    changes_at: str
    protocol_version = "HTTP/1.1"
    timeout = _IDLE
    server_version = "slimrank"
    sys_version = ""

    def handle(self) -> None:
        """Answers requests until the connection ends."""
        with self.server.connected(self.connection):
            super().handle()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: requests hold the token."""

    def do_GET(self) -> None:
        """Answers who may ask."""
        path, refusal = self.asked()
        if refusal is not None:
            self.answer(HTTPStatus.FORBIDDEN, _plain_page("Not shown", refusal))
        elif not self.show(path):
            page = _plain_page("Nothing here", "open the address that was printed")
            self.answer(HTTPStatus.NOT_FOUND, page)

    def do_POST(self) -> None:
        """Does what a page of the server asks for."""
        # What is not read would be taken for the next request.
        self.close_connection = True
        path, refusal = self.asked(changes=True)
        length = self.headers.get("Content-Length", "")
        if refusal is not None:
            self.tell(HTTPStatus.FORBIDDEN, {"error": refusal})
        elif path != self.changes_at:
            self.tell(HTTPStatus.NOT_FOUND, {"error": f"changes are sent to {self.changes_at}"})
        elif self.headers.get("Content-Type") != "application/json":
            self.tell(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, {"error": "send JSON"})
        elif not length.isdecimal() or int(length) > _MOST_BYTES:
            text = f"give a Content-Length of at most {_MOST_BYTES}"
            self.tell(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": text})
        else:
            self._change(self.rfile.read(int(length)))

    def _change(self, body: bytes) -> None:
        try:
            request: object = json.loads(body)
        except (ValueError, RecursionError) as error:
            self.tell(HTTPStatus.BAD_REQUEST, {"error": f"this is no JSON ({error})"})
            return
        try:
            status, facts = self.change(request)
        except SlimrankError as error:
            self.tell(HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)})
        else:
            self.tell(status, facts)

    @abstractmethod
    def change(self, request: object) -> tuple[HTTPStatus, object]:
        """Does what a page asks for, and says how it went.

        Raises:
            SlimrankError: it cannot be done.
        """

    def tell(self, status: HTTPStatus, content: object) -> None:
        """Answers with JSON."""
        self.answer(status, json.dumps(content).encode(), kind="application/json")

    @abstractmethod
    def show(self, path: str) -> bool:
        """Answers with what is at a path; False where nothing is."""

    def asked(self, *, changes: bool = False) -> tuple[str, str | None]:
        """The path that is asked for, and why it is refused; ``changes`` as in ``Guard.refusal``."""
        address = urlsplit(self.path)
        if self.server.has_ended:
            self.close_connection = True
            return address.path, _ENDED
        token = parse_qs(address.query).get("token", [None])[0]
        headers = {name.lower(): value for name, value in self.headers.items()}
        return address.path, self.server.guard.refusal(headers, token, changes=changes)

    def answer(self, status: HTTPStatus, content: bytes, kind: str = "text/html; charset=utf-8") -> None:
        """Sends a whole answer."""
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


def _plain_page(heading: str, text: str) -> bytes:
    """A page that says one thing."""
    body = f'<h1>{escape(heading)}</h1>\n<p class="verdict">{escape(text)}</p>'
    return document(heading, body).encode()
