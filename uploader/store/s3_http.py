"""HTTP/1.1 of one connection: the head of a request, and answers, read strictly. Blocking, for a thread.

By hand, as ``http.client`` takes longer over an answer than the kernel takes to send a MiB. Whatever is not
exactly an answer is refused, and its connection is used no more: no server, and nobody in between, can have
one answer taken for two, or for another request's.

RFC 9112: https://www.rfc-editor.org/rfc/rfc9112
"""

import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from uploader.errors import SettingsError

RECEIVE_BYTES = 64 * 1024
MAX_HEAD_BYTES = 64 * 1024
MAX_ERROR_BYTES = 1024**2
"""An answer that nobody wants the bytes of says in less what went wrong."""

_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n\0]*)?")
_FIELD: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n\0]*)?")


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """The head of a request.

    Args:
        target: path and query, percent-encoded.

    Raises:
        SettingsError: it would hold more lines than it has headers, or something that is no text of HTTP.
    """
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    head = "\r\n".join(lines) + "\r\n\r\n"
    breaks = len(lines) + 1
    whole = head.count("\r") == head.count("\n") == breaks and "\0" not in head and " " not in target
    if not (whole and head.isascii()):
        raise SettingsError(
            "a setting holds a line break, or what is not ASCII, and would be sent as a header",
            subject="storage",
            hint="correct storage.storage_class, storage.sse_kms_key_id or the credentials",
        )
    return head.encode()


@dataclass(frozen=True, slots=True)
class Head:
    """Status and headers of an answer.

    Attributes:
        headers: by lower-case names; of one that came several times, the values joined by commas.
        length: of the body in bytes; None where its end is marked in another way.
        is_chunked: whether it is marked by an empty chunk; else, without a length, by the end of all.
        keeps: whether another request may follow on this connection, once the body is read.
    """

    status: int
    headers: dict[str, str]
    length: int | None
    is_chunked: bool
    keeps: bool


def parsed_head(head: bytes, *, of_head: bool = False) -> Head:
    """The head of an answer, without the empty line at its end.

    Args:
        of_head: whether it answers HEAD, and so has no body whatever it says.

    Raises:
        ResponseParserError: it is none, or leaves open where its body ends.
    """
    first, *lines = head.split(b"\r\n")
    status_line = _STATUS.fullmatch(first)
    if status_line is None:
        raise ResponseParserError("not an answer of HTTP/1.1")
    headers: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise ResponseParserError("a line of the answer is no header")
        name, value = field[1].decode().lower(), field[2].decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    status = int(status_line[2])
    has_none = of_head or status < 200 or status in (204, 304)
    length, is_chunked = (0, False) if has_none else _framing(headers)
    wish = headers.get("connection", "").lower()
    keeps = "close" not in wish and (status_line[1] == b"1" or "keep-alive" in wish)
    return Head(status, headers, length, is_chunked, keeps and (is_chunked or length is not None))


def _framing(headers: Mapping[str, str]) -> tuple[int | None, bool]:
    """The length of a body, or whether it is chunked. What says both, or one of them twice, is a trick."""
    coding, length = headers.get("transfer-encoding"), headers.get("content-length")
    if coding is not None:
        if coding.lower() != "chunked" or length is not None:
            raise ResponseParserError("the answer's length is told in a way that is not understood")
        return None, True
    if length is not None and not (length.isascii() and length.isdigit() and len(length) <= 15):
        raise ResponseParserError("the answer's length is no number")
    return None if length is None else int(length), False


class Incoming:
    """What comes in over one connection, byte after byte: the answers to what is asked in turn.

    Raises (every method):
        ConnectionError: the connection ended in the middle.
        ResponseParserError: what comes is no answer.
        TimeoutError, BlockingIOError: nothing came in time.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._held = connection, b""

    @property
    def is_clear(self) -> bool:
        """Whether nothing has come that nobody asked for."""
        return not self._held

    def head(self, *, of_head: bool = False) -> Head:
        """The head of the next answer; those that only announce it (100) are passed over."""
        for _ in range(8):
            found = parsed_head(self._until(b"\r\n\r\n"), of_head=of_head)
            if found.status >= 200:
                return found
            if found.status == 101:
                break
        raise ResponseParserError("the answer does not come to the point")

    def line(self) -> bytes:
        """The next line, without its end."""
        return self._until(b"\r\n")

    def readinto(self, target: memoryview) -> int:
        """Some bytes; 0 at the end of all or where ``target`` is empty."""
        if not self._held:
            return self._connection.recv_into(target)
        count = min(len(target), len(self._held))
        target[:count] = self._held[:count]
        self._held = self._held[count:]
        return count

    def _until(self, mark: bytes) -> bytes:
        while (end := self._held.find(mark)) < 0:
            if len(self._held) > MAX_HEAD_BYTES:
                raise ResponseParserError("the answer's head has no end")
            more = self._connection.recv(RECEIVE_BYTES)
            if not more:
                raise ConnectionError("the connection ended before the answer")
            self._held += more
        found, self._held = self._held[:end], self._held[end + len(mark) :]
        return found


class AnswerBody:
    """The body that follows a head, read piece by piece.

    Attributes:
        is_over: whether all of it was read.
    """

    def __init__(self, head: Head, incoming: Incoming) -> None:
        self._incoming, self._is_chunked = incoming, head.is_chunked
        self._is_open = not head.is_chunked and head.length is None
        self._left = sys.maxsize if self._is_open else head.length or 0
        self.is_over = not (self._is_chunked or self._left)

    def readinto(self, target: memoryview) -> int:
        """Some bytes of it; 0 once it is over, or where ``target`` is empty.

        Raises:
            ConnectionError: the connection ended before the body.
            ResponseParserError: it is not chunked as it says.
        """
        if self._is_chunked and not (self._left or self.is_over):
            self._next_chunk()
        if self.is_over or not target:
            return 0
        count = self._incoming.readinto(target[: self._left])
        if count:
            self._take(count)
        elif self._is_open:
            self.is_over = True
        else:
            raise ConnectionError(f"the answer broke off {self._left} bytes early")
        return count

    def read(self, most_bytes: int) -> bytes:
        """All of it; nothing of what says that it is more, and little more of what does not say so."""
        if self.is_over or (self._left > most_bytes and not self._is_open):
            return b""
        buffer, filled = memoryview(bytearray(RECEIVE_BYTES)), bytearray()
        while len(filled) <= most_bytes and (count := self.readinto(buffer)):
            filled += buffer[:count]
        return bytes(filled)

    def _take(self, count: int) -> None:
        self._left -= count
        if not self._left and self._is_chunked and self._incoming.line():
            raise ResponseParserError("a chunk is longer than it says")
        self.is_over = not (self._left or self._is_chunked)

    def _next_chunk(self) -> None:
        size = _CHUNK.fullmatch(self._incoming.line())
        if size is None:
            raise ResponseParserError("a chunk has no size")
        self._left = int(size[1], 16)
        if not self._left:
            self.is_over = True
            self._pass_trailers()

    def _pass_trailers(self) -> None:
        for _ in range(64):
            if not self._incoming.line():
                return
        raise ResponseParserError("the answer's trailers have no end")
