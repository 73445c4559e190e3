"""Bulk bytes to and from an S3 endpoint, past aiohttp: sent and received by threads, several in a row.

A file goes to a plain connection by ``sendfile``: the kernel moves it, and no byte passes through Python.
Over TLS it goes through one small buffer. A third of the CPU of the reference data plane, at twice the
speed. Connections are kept and used again. One without progress for the read timeout is given up.
"""

import socket
import ssl
import threading
from collections.abc import Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
from anyio import to_thread

from uploader.store.body import FileSlice, Pace
from uploader.store.s3_body import RequestBody
from uploader.store.s3_connection import Connection, connect, naming
from uploader.store.s3_http import AnswerBody
from uploader.store.s3_messages import Answer, WireRequest
from uploader.store.s3_send import send_body

into: ContextVar[memoryview | None] = ContextVar("into", default=None)
"""Where the body of the answer to the request being made is to go."""


class Wire:
    """The connections of one client.

    Args:
        tls: for ``https``.
        timeout_s: without a byte sent or received for so long, a connection counts as dead.
        connections: how many exchanges go on at once.
    """

    def __init__(
        self, *, tls: ssl.SSLContext, connect_timeout_s: float, timeout_s: float, connections: int, pace: Pace
    ) -> None:
        self._connect = partial(connect, tls=tls, connect_timeout_s=connect_timeout_s, timeout_s=timeout_s)
        self.pace = pace
        self._limiter = anyio.CapacityLimiter(connections)
        self._idle: dict[str, list[Connection]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            for connection in (one for idle in self._idle.values() for one in idle):
                connection.close()
            self._idle.clear()

    async def carry(self, request: Any, **_: object) -> Any:
        """A handler of ``before-send``: answers requests that carry or fetch bulk, and None to others."""
        memory = into.get()
        if memory is None and not (
            isinstance(request.body, RequestBody) and isinstance(request.body.body, FileSlice)
        ):
            return None
        answers = await self.send([WireRequest.of_botocore(request, memory)])
        return answers[0].for_botocore(request.url)

    async def send(self, requests: Iterable[WireRequest]) -> list[Answer]:
        """Send requests, one after the other, up to the first that is refused or fails.

        Args:
            requests: made on the thread, each as its turn comes.

        Returns:
            The answers, one at least. Where the last is a good one and some are missing, the next request
            failed; it will again if it is sent first, and that is raised.

        Raises:
            HTTPClientError, ConnectionError: botocore's, of the first request.
            ResponseParserError: its answer is none.
            CorruptError: its file is shorter than its slice, or can't be read.
        """
        exchange = _Exchange(self)
        run = partial(exchange.run, requests)
        try:
            return await to_thread.run_sync(run, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            exchange.cut()

    def take(self, place: str) -> Connection:
        """An idle connection that is still good, or a new one. On a thread."""
        with self._lock:
            idle = self._idle.get(place, [])
            while idle:
                connection = idle.pop()
                if connection.is_usable:
                    return connection
                connection.close()
        return self._connect(place)

    def give(self, place: str, connection: Connection) -> None:
        """Keep a connection for the next exchange."""
        with self._lock:
            self._idle.setdefault(place, []).append(connection)


class _Exchange:
    """Requests and their answers, in turn, on a thread; ``cut`` ends them from the event loop."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._cut = wire, threading.Event()
        self._connection: Connection | None = None

    def cut(self) -> None:
        """End the exchange where it is: whatever its thread waits for fails at once."""
        self._cut.set()
        connection = self._connection
        if connection is not None:
            connection.cut()

    def run(self, requests: Iterable[WireRequest]) -> list[Answer]:
        answers: list[Answer] = []
        for request in requests:
            try:
                answers.append(self._ask(request))
            except Exception:
                if not answers:
                    raise
                break
            if answers[-1].status >= 300:
                break
        return answers

    def _ask(self, request: WireRequest) -> Answer:
        connection = self._connection = self._wire.take(request.place)
        try:
            if self._cut.is_set():
                raise ConnectionAbortedError("cancelled")
            with naming(request.place):
                answer = self._exchange(connection, request)
        except BaseException:
            self._connection = None
            connection.close()
            raise
        self._connection = None  # from here on ``cut`` has nothing to end
        if answer.ends_connection or self._cut.is_set():
            connection.close()
        else:
            self._wire.give(request.place, connection)
        return answer

    def _exchange(self, connection: Connection, request: WireRequest) -> Answer:
        try:
            _send_head(connection.socket, request)
            if request.body is not None:
                send_body(connection.socket, request.body, self._wait)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # A store that refuses says so before it hangs up; if it did not, this raises again.
            return _answer(connection, request, is_last=True)
        return _answer(connection, request, is_last=False)

    def _wait(self, size_bytes: int) -> bool:
        wait_s = self._wire.pace(size_bytes)
        if wait_s > 0 and self._cut.wait(wait_s):
            raise ConnectionAbortedError("cancelled")
        return wait_s > 0


_MORE = getattr(socket, "MSG_MORE", 0)
"""Tells the kernel that more comes, which may go into the same packet."""


def _send_head(connection: socket.socket, request: WireRequest) -> None:
    by_kernel = bool(request.body) and not isinstance(connection, ssl.SSLSocket)
    connection.sendall(request.head(), _MORE if by_kernel else 0)


def _answer(connection: Connection, request: WireRequest, *, is_last: bool) -> Answer:
    head = connection.incoming.head(of_head=request.method == "HEAD")
    body = AnswerBody(head, connection.incoming)
    data, filled = b"", 0
    if request.memory is not None and head.status < 300:
        filled = _fill(body, request.memory)
    else:
        data = body.read(request.most_bytes)
    # What was not read would be taken for the next answer.
    ends = is_last or not (head.keeps and body.is_over)
    return Answer(head.status, head.headers, data, filled, ends)


def _fill(body: AnswerBody, memory: memoryview) -> int:
    """Read a body to where it is wanted; how much of it came, at most a byte more than fits."""
    filled = 0
    while filled < len(memory):
        count = body.readinto(memory[filled:])
        if not count:
            return filled
        filled += count
    return filled + body.readinto(memoryview(bytearray(1)))
