"""The fast transport against servers that behave well, badly and not at all, over HTTP and over TLS."""

import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from fake_s3 import OK, FakeServer, Request, Talk, answer, refusal, serving
from steps import no_wait

from uploader import checksum
from uploader.errors import CorruptError, SettingsError, StoreBusy, StoreError, StoreUnavailable, WmtpError
from uploader.location import Location
from uploader.retry import RetryPolicy
from uploader.store import FileSlice, NewObject
from uploader.store.capabilities import ALL
from uploader.store.retrying import RetryingStore
from uploader.store.s3 import S3Store

pytestmark = pytest.mark.anyio

Certificates = tuple[Path, Path, Path]
Start = Callable[[Callable[[Talk], None]], FakeServer]
SIZE = 3 * 1024 * 1024 + 17
CRC = checksum.of_bytes(b"")
"""Of no interest to these servers."""


@pytest.fixture(params=["http", "tls"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Starts a server."""
    with ExitStack() as stack:

        def serve(talk: Callable[[Talk], None]) -> FakeServer:
            certificates = request.getfixturevalue("certificates") if request.param == "tls" else None
            return stack.enter_context(serving(talk, certificates))

        yield serve


@asynccontextmanager
async def reaching(server: FakeServer, directory: Path, **settings: object) -> AsyncIterator[S3Store]:
    storage = server.storage(directory, **settings)
    async with S3Store.open(Location("bucket", "run"), storage, capabilities=ALL) as store:
        yield store


@contextmanager
def sliced(path: Path, start: int = 0, size_bytes: int = SIZE, *, written: int = SIZE) -> Iterator[FileSlice]:
    """A slice of a file of ``written`` bytes."""
    path.write_bytes(bytes(index % 251 for index in range(256)) * (written // 256 + 1))
    os.truncate(path, written)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield FileSlice(descriptor, start, size_bytes, str(path))
    finally:
        os.close(descriptor)


async def send(store: S3Store, body: FileSlice) -> str:
    return await store.upload_part("key", "upload", 1, body, CRC)


def assert_placed(error: WmtpError, server: FakeServer) -> None:
    """It says where and what to do, and nothing of the query, the headers or the credentials."""
    assert error.subject == "s3://bucket/run/key"
    assert error.problem.endswith(f" at {server.endpoint_url}")
    assert "check the network" in error.hint
    for secret in ("upload?", "uploadId", "partNumber", "?", "Signature", "AWS4", "Credential", CRC):
        assert secret not in str(error)


async def test_a_slice_arrives_byte_for_byte_and_the_connection_is_kept(start: Start, tmp_path: Path) -> None:
    got: list[Request] = []

    def talk(one: Talk) -> None:
        while request := one.request():
            got.append(request)
            one.say(OK)

    server = start(talk)
    with sliced(tmp_path / "file", 1000, SIZE - 2000) as body:
        async with reaching(server, tmp_path) as store:
            for _ in range(3):
                assert await send(store, body) == "e"
    whole = (tmp_path / "file").read_bytes()
    assert [request.body for request in got] == [whole[1000:-1000]] * 3
    assert {request.headers["x-amz-checksum-crc64nvme"] for request in got} == {CRC}
    assert {request.headers["x-amz-content-sha256"] for request in got} == {"UNSIGNED-PAYLOAD"}
    assert got[0].query == {"uploadId": "upload", "partNumber": "1"}
    assert len(server.connections) == 1


async def test_a_refusal_in_the_middle_of_the_body_is_s3s_error(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        assert one.head()
        one.say(refusal("503 Slow Down", "SlowDown"))
        one.socket.shutdown(socket.SHUT_WR)  # what is still unread becomes a reset when it is closed

    server = start(talk)
    with sliced(tmp_path / "file", size_bytes=64 * 1024 * 1024, written=64 * 1024 * 1024) as body:
        async with reaching(server, tmp_path) as store:
            with pytest.raises(StoreUnavailable) as caught:
                await send(store, body)
    # Where the reset overtakes the answer, a broken connection is all that can be known.
    assert "SlowDown" in str(caught.value) or "the connection broke" in str(caught.value)


async def test_a_refusal_after_which_the_server_reads_on_is_s3s_error(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        while request := one.head():
            one.say(refusal("503 Slow Down", "SlowDown"))
            one.incoming.read(int(request.headers["content-length"]))

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            for _ in range(2):
                with pytest.raises(StoreBusy, match="SlowDown"):
                    await send(store, body)
    assert len(server.connections) == 1


async def test_a_connection_closed_while_idle_is_replaced(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        assert one.request()
        one.say(OK)  # and hang up, though nothing was said of that

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            for _ in range(3):
                server.ended.clear()
                assert await send(store, body) == "e"
                await to_thread.run_sync(server.ended.wait)
    assert len(server.connections) == 3


async def test_a_connection_that_is_not_to_be_kept_is_closed(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        while one.request():
            one.say(answer("200 OK", ETag='"e"', Connection="close"))

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            await send(store, body)
            await send(store, body)
    assert len(server.connections) == 2


async def test_a_body_that_is_not_taken_is_given_up(start: Start, tmp_path: Path) -> None:
    over = threading.Event()

    def talk(one: Talk) -> None:
        assert one.head()
        over.wait()

    server = start(talk)
    with sliced(tmp_path / "file", size_bytes=64 * 1024 * 1024, written=64 * 1024 * 1024) as body:
        try:
            async with reaching(server, tmp_path, read_timeout_s=0.2) as store:
                with pytest.raises(StoreBusy, match="no answer in time") as caught:
                    await send(store, body)
        finally:
            over.set()
    assert_placed(caught.value, server)


async def test_an_answer_that_does_not_come_is_given_up(start: Start, tmp_path: Path) -> None:
    over = threading.Event()

    def talk(one: Talk) -> None:
        assert one.request()
        one.say(b"HTTP/1.1 200 OK\r\n")
        over.wait()

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        try:
            async with reaching(server, tmp_path, read_timeout_s=0.2) as store:
                with pytest.raises(StoreBusy, match="no answer in time") as caught:
                    await send(store, body)
                assert_placed(caught.value, server)
                with pytest.raises(StoreBusy, match="no answer in time") as caught:
                    await store.get_range("key", 0, memoryview(bytearray(100)))
                assert_placed(caught.value, server)
        finally:
            over.set()


def silent(one: Talk, over: threading.Event) -> None:
    """Takes the body and never answers."""
    assert one.request()
    over.wait()


def sipping(one: Talk, over: threading.Event) -> None:
    """Takes the body a byte at a time."""
    assert one.head()
    while not over.wait(0.01) and one.socket.recv(1):
        pass


def dripping(one: Talk, over: threading.Event) -> None:
    """Answers a byte at a time."""
    assert one.request()
    for byte in answer("200 OK", X_Long="x" * 10_000):
        one.say(bytes([byte]))
        if over.wait(0.01):
            return


@pytest.mark.parametrize("hanging", [silent, sipping, dripping])
async def test_a_part_that_comes_to_no_end_is_abandoned_and_sent_again(
    start: Start, tmp_path: Path, hanging: Callable[[Talk, threading.Event], None]
) -> None:
    """Though a byte may move now and then, so that no timeout of the connection strikes."""
    over, told, size_bytes = threading.Event(), list[WmtpError](), 16 * 1024 * 1024

    def talk(one: Talk) -> None:
        if len(server.connections) == 1:
            hanging(one, over)
        elif one.request():
            one.say(OK)

    server = start(talk)
    policy = RetryPolicy(request_timeout_s=0.5, slowest_bytes_per_s=lambda: float("inf"), sleep=no_wait)
    with sliced(tmp_path / "file", size_bytes=size_bytes, written=0) as body:
        os.truncate(tmp_path / "file", size_bytes)
        try:
            async with reaching(server, tmp_path, read_timeout_s=60) as store:
                patient = RetryingStore(store, policy, lambda error, attempt, wait_s: told.append(error))
                assert await patient.upload_part("key", "upload", 1, body, CRC) == "e"
        finally:
            over.set()
    assert {type(error) for error in told} == {StoreBusy}
    assert "no end of it within" in told[0].problem
    assert len(server.connections) == len(told) + 1


async def test_a_connection_that_breaks_is_named_by_its_place(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        assert one.request()  # and hang up

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            for attempt in (send(store, body), store.get_range("key", 0, memoryview(bytearray(9)))):
                with pytest.raises(StoreUnavailable, match="the connection broke") as caught:
                    await attempt
                assert_placed(caught.value, server)


async def test_where_nobody_listens_is_named_too(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    server = start(lambda one: None)
    endpoint_url = f"{server.endpoint_url.rpartition(':')[0]}:{port}"
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path, endpoint_url=endpoint_url) as store:
            with pytest.raises(StoreUnavailable, match=f"no connection at {endpoint_url}") as caught:
                await send(store, body)
    assert "storage.endpoint_url" in caught.value.hint


async def test_an_answer_that_nobody_asked_for_is_no_answer(start: Start, tmp_path: Path) -> None:
    """Two answers to one request: the second is not taken for the next request's."""

    def talk(one: Talk) -> None:
        while one.request():
            one.say(OK + answer("200 OK", ETag='"another"'))

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            assert [await send(store, body) for _ in range(3)] == ["e"] * 3
    assert len(server.connections) == 3


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nETag: a\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_what_is_no_answer_is_told_and_ends_the_connection(
    start: Start, tmp_path: Path, said: bytes
) -> None:
    def talk(one: Talk) -> None:
        while one.request():
            one.say(said)

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            for _ in range(2):
                with pytest.raises(StoreUnavailable, match=f"not S3's at {server.endpoint_url}"):
                    await send(store, body)
    assert len(server.connections) == 2


async def test_a_setting_with_a_line_break_is_no_header(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        while one.request():
            one.say(OK)

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path, storage_class="COLD\r\nx-amz-acl: public-read") as store:
            with pytest.raises(SettingsError, match="line break"):
                await store.put("key", body, crc64nvme=CRC)


async def test_a_chunked_answer_is_read_and_its_connection_kept(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        while request := one.request():
            if "range" in request.headers:
                head = b"HTTP/1.1 206 Partial\r\nETag: e\r\nTransfer-Encoding: chunked\r\n\r\n"
                one.say(head + b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n")
            else:
                body = b"<Error><Code>SlowDown</Code></Error>"
                head = b"HTTP/1.1 503 Slow\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % len(body)
                one.say(head + body + b"\r\n0\r\n\r\n")

    server = start(talk)
    memory = bytearray(7)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            with pytest.raises(StoreBusy, match="SlowDown"):
                await send(store, body)
            await store.get_range("key", 0, memoryview(memory))
            with pytest.raises(StoreError, match="ignores ranges"):
                await store.get_range("key", 0, memoryview(memory)[:5])
            with pytest.raises(CorruptError, match="ends 2 bytes early"):
                await store.get_range("key", 0, memoryview(bytearray(9)))
    assert bytes(memory) == b"abcdefg"
    assert len(server.connections) == 2  # of the answer that did not fit the rest was not read


async def test_a_cancelled_part_ends_its_thread_and_its_connection(start: Start, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()
    received: list[int] = []

    def talk(one: Talk) -> None:
        request = one.head()
        assert request
        begun.set()
        go_on.wait()  # meanwhile the sender's buffers are full
        received.append(len(one.incoming.read(int(request.headers["content-length"]))))

    server = start(talk)
    size_bytes = 64 * 1024 * 1024
    with sliced(tmp_path / "file", size_bytes=size_bytes, written=size_bytes) as body:
        async with reaching(server, tmp_path) as store:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send, store, body)
                await to_thread.run_sync(begun.wait)
                tasks.cancel_scope.cancel()
            # The connection is still open if the thread is still sending, and then all of it arrives.
            go_on.set()
            await to_thread.run_sync(server.ended.wait)
    assert sum(received) < size_bytes


async def test_a_file_that_is_shorter_than_its_slice_is_corrupt(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        while one.request():
            one.say(OK)

    server = start(talk)
    with sliced(tmp_path / "file", 1000, SIZE) as body:
        async with reaching(server, tmp_path) as store:
            with pytest.raises(CorruptError, match=f"it ends at byte {SIZE}") as caught:
                await send(store, body)
    assert caught.value.subject == str(tmp_path / "file")


@pytest.mark.parametrize("said", [b"", b"only this"])
async def test_an_answer_that_breaks_off_is_unavailable(start: Start, tmp_path: Path, said: bytes) -> None:
    def talk(one: Talk) -> None:
        assert one.request()
        one.say(answer("206 Partial Content", said, ETag='"e"', Content_Length="100"))

    server = start(talk)
    async with reaching(server, tmp_path) as store:
        with pytest.raises(StoreUnavailable):
            await store.get_range("key", 0, memoryview(bytearray(100)))


async def test_a_refusal_that_breaks_off_is_unavailable(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        assert one.request()
        one.say(answer("503 Slow Down", b"<Error>", Content_Length="100"))

    server = start(talk)
    with sliced(tmp_path / "file") as body:
        async with reaching(server, tmp_path) as store:
            with pytest.raises(StoreUnavailable):
                await send(store, body)


async def test_more_than_was_asked_for_is_refused_and_spoils_no_later_answer(
    start: Start, tmp_path: Path
) -> None:
    def talk(one: Talk) -> None:
        while request := one.request():
            whole = bytes(range(200))
            if request.headers["range"] == "bytes=0-99":
                one.say(answer("200 OK", whole, ETag='"e"'))
            else:
                one.say(answer("206 Partial Content", whole[50:60], ETag='"e"'))

    server = start(talk)
    async with reaching(server, tmp_path) as store:
        with pytest.raises(StoreError, match="ignores ranges"):
            await store.get_range("key", 0, memoryview(bytearray(100)))
        memory = bytearray(10)
        await store.get_range("key", 50, memoryview(memory))
    assert bytes(memory) == bytes(range(50, 60))


async def test_what_is_paced_waits_for_every_byte(start: Start, tmp_path: Path) -> None:
    def talk(one: Talk) -> None:
        while one.request():
            one.say(OK)

    asked: list[int] = []

    def pace(size_bytes: int) -> float:
        asked.append(size_bytes)
        return 1e-9

    server = start(talk)
    storage = server.storage(tmp_path)
    with sliced(tmp_path / "file") as body:
        async with S3Store.open(Location("bucket", ""), storage, pace=pace, capabilities=ALL) as store:
            await send(store, body)
    assert sum(asked) >= SIZE
    assert max(asked) <= 1024 * 1024


async def test_behind_a_proxy_the_reference_client_carries_the_bytes_at_the_same_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[Request] = []
    paced: list[int] = []

    def talk(one: Talk) -> None:
        while request := one.request():
            got.append(request)
            one.say(OK)

    def pace(size_bytes: int) -> float:
        paced.append(size_bytes)
        return 0.25 if len(paced) > 1 else 0.0

    waits: list[float] = []

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)

    monkeypatch.setattr("uploader.store.s3_body.anyio.sleep", sleep)
    async with AsyncExitStack() as stack:
        proxy = stack.enter_context(serving(talk))
        monkeypatch.setenv("http_proxy", proxy.endpoint_url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        body = stack.enter_context(sliced(tmp_path / "file"))
        storage = proxy.storage(tmp_path, endpoint_url="http://store.invalid")
        store = await stack.enter_async_context(
            S3Store.open(Location("bucket", "run"), storage, pace=pace, capabilities=ALL)
        )
        assert await store.put("record.json", b"{}", crc64nvme=checksum.of_bytes(b"{}")) == "e"
        assert paced == []  # records wait for nothing
        assert await send(store, body) == "e"
        assert await store.put_some([NewObject("key", body, CRC)]) == 1
    assert {request.headers["host"] for request in got} == {"store.invalid"}  # nobody else knows that name
    assert [request.body for request in got[1:]] == [(tmp_path / "file").read_bytes()] * 2
    assert sum(paced) == 2 * SIZE
    assert waits == [0.25] * (len(paced) - 1)
