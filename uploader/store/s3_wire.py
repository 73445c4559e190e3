"""Bulk bytes to and from an S3 endpoint, past aiohttp: signed by botocore, sent and received by threads.

A file goes to a plain connection by ``sendfile``: the kernel moves it, and no byte passes through Python.
Over TLS it goes through one small buffer. A third of the CPU of the reference data plane, at twice the
speed. Connections are kept and used again. One without progress for the read timeout is given up.
"""

import errno
import http.client
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import anyio
from aiobotocore.awsrequest import AioAWSResponse  # type: ignore[import-untyped]
from anyio import to_thread
from botocore.exceptions import EndpointConnectionError  # type: ignore[import-untyped]

from uploader.store.body import PIECE_BYTES, FileSlice, pieces
from uploader.store.s3_answer import Answer, Received
from uploader.store.s3_body import RequestBody

Pace: TypeAlias = Callable[[int], float]
"""Told of bytes that are to be sent, it answers how many seconds to wait first. Called from threads."""

Wait: TypeAlias = Callable[[int], bool]

into: ContextVar[memoryview | None] = ContextVar("into", default=None)
"""Where the body of the answer to the request being made is to go."""


@dataclass(frozen=True, slots=True)
class BulkRequest:
    """A request as the wire sends it; botocore's have these fields too, and more."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: RequestBody


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
        self._tls, self._connect_timeout_s, self._timeout_s = tls, connect_timeout_s, timeout_s
        self._pace = pace
        self._limiter = anyio.CapacityLimiter(connections)
        self._idle: dict[str, list[http.client.HTTPConnection]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the connections that are not in use."""
        with self._lock:
            for connection in (one for idle in self._idle.values() for one in idle):
                connection.close()
            self._idle.clear()

    async def send(self, request: Any, **_: object) -> Any:
        """A handler of ``before-send``: answers requests that carry or fetch bulk, and None to others."""
        target = into.get()
        if target is None and not (
            isinstance(request.body, RequestBody) and isinstance(request.body.body, FileSlice)
        ):
            return None
        exchange = _Exchange(self, request, target)
        try:
            return await to_thread.run_sync(exchange.run, abandon_on_cancel=True, limiter=self._limiter)
        finally:
            exchange.cut()

    def take(self, url: str) -> http.client.HTTPConnection:
        """An idle connection that is still good, or a new one. On a thread."""
        parts = urlsplit(url)
        place = f"{parts.scheme}://{parts.netloc}"
        with self._lock:
            idle = self._idle.get(place, [])
            while idle:
                connection = idle.pop()
                if not _is_closed(connection.sock):
                    return connection
                connection.close()
        return self._connect(parts.scheme == "https", parts.hostname or "", parts.port, place)

    def give(self, url: str, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next exchange."""
        parts = urlsplit(url)
        with self._lock:
            self._idle.setdefault(f"{parts.scheme}://{parts.netloc}", []).append(connection)

    def wait_s(self, size_bytes: int) -> float:
        return self._pace(size_bytes)

    def _connect(self, tls: bool, host: str, port: int | None, place: str) -> http.client.HTTPConnection:
        connection = (
            http.client.HTTPSConnection(host, port, timeout=self._connect_timeout_s, context=self._tls)
            if tls
            else http.client.HTTPConnection(host, port, timeout=self._connect_timeout_s)
        )
        connection.response_class = Answer
        try:
            connection.connect()
        except (ssl.SSLError, TimeoutError):
            raise
        except OSError as error:
            raise EndpointConnectionError(endpoint_url=place, error=error) from error
        _give_up_after(connection.sock, self._timeout_s)
        return connection


class _Exchange:
    """One request and its answer, on a thread; ``cut`` ends it from the event loop."""

    def __init__(self, wire: Wire, request: Any, target: memoryview | None) -> None:
        self._wire, self._request, self._target = wire, request, target
        self._connection: http.client.HTTPConnection | None = None
        self._cut = threading.Event()

    def cut(self) -> None:
        """End the exchange where it is: whatever its thread waits for fails at once."""
        self._cut.set()
        connection = self._connection
        if connection is not None and connection.sock is not None:
            try:
                # Not by SSLSocket, which would first turn into a plain socket under the thread's hands.
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)
            except OSError:
                return  # it is closed already

    def run(self) -> Any:
        connection = self._connection = self._wire.take(self._request.url)
        try:
            if self._cut.is_set():
                raise ConnectionAbortedError("cancelled")
            answer = self._exchange(connection)
        except BaseException:
            self._connection = None
            connection.close()
            raise
        self._connection = None  # from here on ``cut`` has nothing to end
        if answer.raw.ends_connection or self._cut.is_set():
            connection.close()
        else:
            self._wire.give(self._request.url, connection)
        return answer

    def _exchange(self, connection: http.client.HTTPConnection) -> Any:
        try:
            self._send_head(connection)
            self._send_body(connection.sock)
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            # A store that refuses says so before it hangs up; if it did not, this raises again.
            answer = self._receive(connection)
            answer.raw.ends_connection = True
            return answer
        except BlockingIOError as error:
            raise TimeoutError("no byte was taken in time") from error
        return self._receive(connection)

    def _send_head(self, connection: http.client.HTTPConnection) -> None:
        parts = urlsplit(self._request.url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection.putrequest(self._request.method, target, skip_host=True, skip_accept_encoding=True)
        headers = plain(self._request.headers)
        headers.pop("expect", None)  # not signed, and a round trip for each part
        headers.setdefault("host", parts.netloc)
        if self._request.body is not None:
            headers["content-length"] = str(len(self._request.body))
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()

    def _send_body(self, connection: socket.socket) -> None:
        if self._request.body is None:
            return
        body: FileSlice = self._request.body.body
        send = _send_through_buffer if isinstance(connection, ssl.SSLSocket) else _send_by_kernel
        send(connection, body, self._wait)
        body.forget()

    def _wait(self, size_bytes: int) -> bool:
        """Wait until so many bytes may be sent; whether that took any time."""
        wait_s = self._wire.wait_s(size_bytes)
        if wait_s > 0 and self._cut.wait(wait_s):
            raise ConnectionAbortedError("cancelled")
        return wait_s > 0

    def _receive(self, connection: http.client.HTTPConnection) -> Any:
        try:
            answer = connection.getresponse()
            data, filled = b"", 0
            if self._target is not None and answer.status < 300:
                filled = self._fill(answer, self._target)
            else:
                data = answer.read()
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer broke off: {type(error).__name__}") from error
        # What was not read would be taken for the next answer.
        raw = Received(data, filled, ends_connection=answer.will_close or not answer.isclosed())
        return AioAWSResponse(self._request.url, answer.status, dict(answer.getheaders()), raw)

    def _fill(self, answer: http.client.HTTPResponse, target: memoryview) -> int:
        """Read the body to where it is wanted; how much of it came, at most a byte more than fits."""
        filled = 0
        while filled < len(target):
            count = answer.readinto(target[filled:])
            if not count:
                if answer.length:
                    raise ConnectionError(f"the answer broke off {answer.length} bytes early")
                return filled
            filled += count
        return filled + len(answer.read(1))


KERNEL_BYTES = 4 * 1024**2
"""What the kernel is given to send at once; less where the bandwidth is limited, so that it flows evenly."""


def _send_by_kernel(connection: socket.socket, body: FileSlice, wait: Wait) -> None:
    sent, at_once = 0, PIECE_BYTES
    while sent < len(body):
        wanted = min(at_once, len(body) - sent)
        at_once = PIECE_BYTES if wait(wanted) else KERNEL_BYTES
        try:
            count = os.sendfile(connection.fileno(), body.descriptor, body.start + sent, wanted)
        except OSError as error:
            if error.errno in _CANNOT_SENDFILE:
                return _send_through_buffer(connection, body.part(sent, len(body) - sent), wait)
            if error.errno == errno.EIO:
                raise body.unreadable(error) from error
            raise
        if count == 0:
            raise body.too_short(sent)
        sent += count


_CANNOT_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system says that can't have the kernel send its files."""


def _send_through_buffer(connection: socket.socket, body: FileSlice, wait: Wait) -> None:
    for piece in pieces(body):
        wait(len(piece))
        connection.sendall(piece)


def _give_up_after(connection: socket.socket, timeout_s: float) -> None:
    """Let the kernel watch for progress: a socket that blocks is a third cheaper than one that is polled."""
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(timeout_s)
        return
    connection.settimeout(None)
    limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


def _is_closed(connection: socket.socket | None) -> bool:
    """Whether the other side has closed an idle connection, or said something nobody asked for."""
    if connection is None:
        return True
    watch = select.poll()  # not select(), which knows no descriptor above 1023
    watch.register(connection, select.POLLIN)
    return bool(watch.poll(0))


def plain(headers: Mapping[str, str | bytes]) -> dict[str, str]:
    """Headers by lower-case names; botocore has some values in bytes."""
    return {
        name.lower(): value.decode("latin-1") if isinstance(value, bytes) else value
        for name, value in headers.items()
    }
