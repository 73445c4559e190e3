"""Heads and answers of HTTP: what is one is read whole, what could be taken for two is refused."""

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from botocore.parsers import ResponseParserError
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import SettingsError
from uploader.store.s3_http import (
    MAX_ERROR_BYTES,
    MAX_HEAD_BYTES,
    AnswerBody,
    Head,
    Incoming,
    parsed_head,
    request_head,
)

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"


class Said:
    """A connection over which ``data`` comes, ``size`` bytes at a time, and then its end."""

    def __init__(self, data: bytes, size: int = 65536) -> None:
        self._data, self._size = data, size

    def recv(self, size: int) -> bytes:
        found = self._data[: min(size, self._size)]
        self._data = self._data[len(found) :]
        return found

    def recv_into(self, target: memoryview) -> int:
        found = self.recv(len(target))
        target[: len(found)] = found
        return len(found)


def incoming(data: bytes, size: int = 65536) -> Incoming:
    return Incoming(Said(data, size))  # type: ignore[arg-type]


def answers(data: bytes, count: int = 1, size: int = 65536) -> list[tuple[Head, bytes, bool]]:
    """Heads and bodies of what is said, and whether nothing came after each."""
    coming, found = incoming(data, size), []
    for _ in range(count):
        head = coming.head()
        body = AnswerBody(head, coming)
        data = body.read(MAX_ERROR_BYTES)
        found.append((head, data, coming.is_clear and body.is_over))
    return found


def test_a_head_is_lines_of_ascii() -> None:
    head = request_head("PUT", "/bucket/a%20b?partNumber=1", {"host": "h:1", "x-amz-tagging": "a=b"})
    assert head == b"PUT /bucket/a%20b?partNumber=1 HTTP/1.1\r\nhost: h:1\r\nx-amz-tagging: a=b\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/a", {"x-amz-storage-class": "COLD\r\nx-amz-acl: public-read"}),
        ("/a", {"x-amz-storage-class": "COLD\nx"}),
        ("/a", {"x-amz-storage-class": "COLD\rx"}),
        ("/a", {"x\r\n": "b"}),
        ("/a", {"x": "nul\0"}),
        ("/a", {"x": "kälte"}),
        ("/a b", {}),
        ("/a HTTP/1.1\r\nx: y", {}),
    ],
)
def test_what_would_be_more_lines_than_headers_is_never_sent(target: str, headers: Mapping[str, str]) -> None:
    with pytest.raises(SettingsError, match="header") as caught:
        request_head("PUT", target, headers)
    assert "public-read" not in str(caught.value)


@given(st.text(st.characters(max_codepoint=300), max_size=20), st.text(max_size=20))
def test_whatever_the_values_are_a_head_has_as_many_lines_as_headers(value: str, target: str) -> None:
    try:
        head = request_head("PUT", f"/{target}", {"a": value, "b": "c"})
    except SettingsError:
        return
    assert head.count(b"\n") == head.count(b"\r") == 4
    assert head.split(b"\r\n")[2] == b"b: c"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 65536])
def test_answers_follow_each_other_however_they_are_cut(size: int) -> None:
    said = (
        b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN + b"ab"
        b'HTTP/1.1 200\r\nETag: "e"\r\nx: 1\r\nX: 2 \r\nContent-Length:0\r\n\r\n'
        b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n0A;ext=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
        b"HTTP/1.1 204 No Content\r\nContent-Length: 7\r\n\r\n"
        b"HTTP/1.0 200 OK\r\n\r\nto the end"
    )
    found = answers(said, 5, size)
    assert [(head.status, body) for head, body, _ in found] == [
        (200, b"ab"),
        (200, b""),
        (404, b"abc0123456789"),
        (204, b""),
        (200, b"to the end"),
    ]
    assert found[1][0].headers == {"etag": '"e"', "x": "1, 2", "content-length": "0"}
    assert [head.keeps for head, _, _ in found] == [True] * 4 + [False]
    assert found[4][2]


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"ICY 200 OK",
        b"HTTP/2 200 OK",
        b"HTTP/1.1 20 OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1 200 OK\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nfolded: a\r\n b",
        b"HTTP/1.1 200 OK\r\nno colon",
        b"HTTP/1.1 200 OK\r\nname : space before the colon",
        b"HTTP/1.1 200 OK\r\nbare: a\rContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nbare: a\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nnul: \0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 5",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x5",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5_0",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999999",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: identity",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    ],
)
def test_what_is_not_exactly_an_answer_is_none(head: bytes) -> None:
    with pytest.raises(ResponseParserError):
        parsed_head(head)


@pytest.mark.parametrize(
    "body",
    [
        b"5\r\nab\r\n0\r\n\r\nmore",
        b"-1\r\n\r\n",
        b"0x2\r\nab\r\n",
        b"\r\nab",
        b"ffffffffffffffffffff\r\n",
        b"2\nab\r\n0\r\n\r\n" + b"x" * 80,
    ],
)
def test_chunks_are_what_they_say(body: bytes) -> None:
    with pytest.raises((ResponseParserError, ConnectionError)):
        answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"\r\n\r\n")


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        PLAIN,
        PLAIN + b"a",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n",
    ],
)
def test_one_that_breaks_off_is_a_broken_connection(said: bytes) -> None:
    with pytest.raises(ConnectionError):
        answers(said)


def test_what_never_ends_is_not_read_for_ever() -> None:
    for said in (
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 2 * MAX_HEAD_BYTES,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + PLAIN,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"t: t\r\n" * 1000,
    ):
        with pytest.raises(ResponseParserError):
            answers(said)
    for said, least in (
        (b"Content-Length: 99999999\r\n\r\n", 0),
        (b"Transfer-Encoding: chunked\r\n\r\n5F5E0FF\r\n", MAX_ERROR_BYTES),
        (b"\r\n", MAX_ERROR_BYTES),
    ):
        coming = incoming(b"HTTP/1.1 500 Oh\r\n" + said + b"a" * 4 * MAX_ERROR_BYTES)
        answer_body = AnswerBody(coming.head(), coming)
        body = answer_body.read(MAX_ERROR_BYTES)
        assert least <= len(body) < 2 * MAX_ERROR_BYTES
        assert not answer_body.is_over


def test_a_second_answer_that_nobody_asked_for_is_noticed() -> None:
    [(head, body, is_clear)] = answers(PLAIN + b"ab" + PLAIN + b"cd")
    assert (head.status, body, is_clear) == (200, b"ab", False)


def test_an_answer_to_head_has_no_body() -> None:
    head = incoming(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n").head(of_head=True)
    assert (head.length, head.keeps) == (0, True)
    assert head.headers["content-length"] == "500"


@pytest.mark.parametrize(
    ("lines", "keeps"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive, close", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive", True),
        (b"HTTP/1.1 200 OK", False),
    ],
)
def test_a_connection_is_kept_where_both_sides_know_where_the_answer_ends(lines: bytes, keeps: bool) -> None:
    assert parsed_head(lines).keeps is keeps


@contextmanager
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@given(data=st.binary(max_size=300), held=st.integers(0, 300), asked=st.integers(0, 300))
def test_what_came_with_the_head_is_not_lost(data: bytes, held: int, asked: int) -> None:
    length = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data)
    with pair() as (server, client):
        coming = Incoming(client)
        server.sendall(length + data[:held])
        head = coming.head()
        body = AnswerBody(head, coming)
        server.sendall(data[held:])
        memory, filled = bytearray(asked), 0
        while count := body.readinto(memoryview(memory)[filled:]):
            filled += count
    assert bytes(memory[:filled]) == data[:asked]
    assert body.is_over == (filled == len(data))
