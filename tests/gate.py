"""A gate in front of a real S3 server: it counts what passes, and holds or loses what a test names.

Requests go through as they came, ``Host`` and signature included: the server behind takes them for its own.
"""

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal, TypeAlias
from urllib.parse import parse_qs, unquote, urlsplit

PATIENCE_S = 240.0
"""A test that waits for this long has failed."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: what a test decides by.

    Attributes:
        query: names and values; ``uploads`` and the like have an empty one.
    """

    method: str
    key: str
    query: dict[str, str]
    size_bytes: int

    @property
    def part(self) -> int | None:
        """The number of the part it brings."""
        number = self.query.get("partNumber")
        return int(number) if self.method == "PUT" and number is not None else None


@dataclass(frozen=True, slots=True)
class Instead:
    """This is answered, whether the request reached the server or not."""

    status: int
    body: bytes = b""
    passes: bool = True


Decision: TypeAlias = Literal["pass", "hold", "hold answer"] | Instead
"""``hold``: it never reaches the server. ``hold answer``: it does, but nobody is told."""


class Gate:
    """Where clients of the server behind ``port`` connect to instead.

    Attributes:
        decide: asked once for each request, by one thread at a time.
        asked: every request, in order of arrival.
        held: those that were held; each is counted once it has come whole.
    """

    def __init__(self, host: str, port: int) -> None:
        self.decide: Callable[[Asked], Decision] = lambda _: "pass"
        self.asked: list[Asked] = []
        self.held: list[Asked] = []
        self._behind = host, port
        self._changed, self._closing = threading.Condition(), threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def wait_for(self, condition: Callable[[], bool], what: str) -> None:
        """Until the requests that came make it true."""
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE_S), f"this never happened: {what}"

    def parts(self, name: str) -> list[int]:
        """The numbers of all parts of a file that came, whole, since ``reset``."""
        return sorted(one.part for one in self.asked if one.part is not None and one.key.endswith(name))

    def reset(self) -> None:
        """Let everything pass from now on, and count anew."""
        with self._changed:
            self.decide = lambda _: "pass"
            self.asked, self.held = [], []

    @contextmanager
    def open(self) -> Iterator["Gate"]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._closing.set()
            self._server.shutdown()
            thread.join()
            self._server.server_close()

    def answer(self, asked: Asked, request: "_Handler", body: bytes) -> None:
        """Decide, forward and answer one request."""
        with self._changed:
            decision = self.decide(asked)
            self.asked.append(asked)
            if decision == "hold":
                self.held.append(asked)
            self._changed.notify_all()
        if decision == "hold":
            return self._closing_wait(request)
        if isinstance(decision, Instead) and not decision.passes:
            return request.reply(decision.status, _XML, decision.body)
        status, headers, answer = self._forward(request, body)
        if decision == "hold answer":
            with self._changed:
                self.held.append(asked)
                self._changed.notify_all()
            return self._closing_wait(request)
        if isinstance(decision, Instead):
            status, headers, answer = decision.status, _XML, decision.body
        request.reply(status, headers, answer)

    def _closing_wait(self, request: "_Handler") -> None:
        """Say nothing for as long as the gate is open: whoever asked has been killed by then."""
        self._closing.wait()
        request.close_connection = True

    def _forward(self, request: "_Handler", body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection(*self._behind)
        try:
            connection.putrequest(request.command, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                if name.lower() != "expect":
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _handler(self) -> type["_Handler"]:
        return type("Handler", (_Handler,), {"gate": self})


_XML = [("Content-Type", "application/xml")]


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    gate: Gate

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):  # the client was killed
            self.close_connection = True

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        parts = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        asked = Asked(self.command, unquote(parts.path).lstrip("/"), query, len(body))
        self.gate.answer(asked, self, body)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def reply(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        lengths = {"content-length", "transfer-encoding", "connection"}
        for name, value in headers:
            if name.lower() not in lengths or (name.lower() == "content-length" and self.command == "HEAD"):
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Requests are counted, not printed."""
