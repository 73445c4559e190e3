"""What S3 adds to the protocol: credentials, clocks, pages, and connections that break or hang."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import checksum
from uploader.errors import CorruptError, SettingsError, StoreDenied, StoreUnavailable
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.s3 import S3Store
from uploader.store.s3_body import SLICE_BYTES, RequestBody
from uploader.store.s3_delete import DELETE_BATCH

pytestmark = pytest.mark.anyio

Place = tuple[Location, StorageSettings]
Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def speaking_to(talk: Talk, directory: Path) -> AsyncIterator[S3Store]:
    """A store whose endpoint is ``talk``; once it is closed, it has left no task of its own behind."""
    credentials = directory / "credentials"
    credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    before, talks = asyncio.all_tasks(), set[asyncio.Task[None]]()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        talks.add(task)
        try:
            await talk(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    storage = StorageSettings(
        endpoint_url=f"http://127.0.0.1:{port}",
        credentials_file=str(credentials),
        addressing_style="path",
        read_timeout_s=0.2,
    )
    async with server, S3Store.open(Location("bucket", "run"), storage) as store:
        yield store
    await anyio.wait_all_tasks_blocked()
    assert asyncio.all_tasks() - talks <= before
    for task in talks:
        task.cancel()
    await asyncio.gather(*talks, return_exceptions=True)


async def test_more_objects_than_a_page_or_a_batch(s3_place: Place) -> None:
    names = [f"n/{number:05}" for number in range(DELETE_BATCH + 5)]
    async with S3Store.open(*s3_place) as store:
        limit = anyio.CapacityLimiter(16)

        async def put(name: str) -> None:
            async with limit:
                await store.put(name, b"")

        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(put, name)
        assert [info.key async for info in store.list("n/")] == names
        await store.delete(names)
        assert [info async for info in store.list()] == []


async def test_unfinished_uploads_are_listed_page_after_page(
    s3_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with S3Store.open(*s3_place) as store:
        begun = {(key, await store.create_upload(key)) for key in ("u0", "u1", "u1", "u2", "u3")}
        whole = store._client.list_multipart_uploads
        pages: list[int] = []

        async def in_twos(**fields: object) -> object:
            pages.append(1)
            return await whole(**fields, MaxUploads=2)

        monkeypatch.setattr(store._client, "list_multipart_uploads", in_twos, raising=False)
        listed = [(upload.key, upload.upload_id) async for upload in store.list_uploads("u")]
    assert sorted(listed) == sorted(begun)
    assert len(pages) >= 3


async def test_two_prefixes_do_not_see_each_other(s3_place: Place) -> None:
    location, storage = s3_place
    async with (
        S3Store.open(location.join("run1"), storage) as one,
        S3Store.open(location.join("run10"), storage) as ten,
    ):
        await one.put("key", b"1")
        await ten.put("key", b"10")
        assert [info.key async for info in one.list()] == ["key"]
        assert (await ten.get("key"))[0] == b"10"


async def test_a_named_credentials_file_outranks_the_environment(
    s3_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    async with S3Store.open(*s3_place) as store:
        await store.put("key", b"x")
        assert (await store.head("key")).size_bytes == 1


async def test_without_a_file_the_environment_counts(
    s3_place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    location, storage = s3_place
    text = await anyio.Path(str(storage.credentials_file)).read_text()
    _, key, secret = (line.partition("=")[2].strip() for line in text.splitlines())
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    async with S3Store.open(location, storage.model_copy(update={"credentials_file": None})) as store:
        await store.put("key", b"x")
        assert (await store.get("key"))[0] == b"x"


async def test_settings_that_name_nothing_are_refused_by_their_field(tmp_path: Path) -> None:
    location, missing = Location("bucket", ""), str(tmp_path / "missing")
    for field in ("credentials_file", "ca_bundle"):
        with pytest.raises(SettingsError, match=f"storage.{field}"):
            async with S3Store.open(location, StorageSettings.model_validate({field: missing})):
                pass
    with pytest.raises(StoreDenied, match=r"storage\.profile"):
        async with S3Store.open(location, StorageSettings(profile="no-such-profile")):
            pass


async def test_a_silent_store_is_unavailable_after_the_read_timeout(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client gives up

    async with speaking_to(silent, tmp_path) as store:
        with pytest.raises(StoreUnavailable, match="no answer in time"):
            await store.get("key")


async def test_a_broken_answer_is_unavailable_not_corrupt(tmp_path: Path) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 100\r\nETag: x\r\n\r\nonly this")
        await writer.drain()

    async with speaking_to(half, tmp_path) as store:
        with pytest.raises(StoreUnavailable):
            await store.get_range("key", 0, memoryview(bytearray(100)))
        with pytest.raises(StoreUnavailable):
            await store.get("key")


async def test_a_cancelled_part_leaves_no_task_behind(tmp_path: Path) -> None:
    body = bytes(32 * 1024 * 1024)
    arrived = anyio.Event()

    async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()  # and never read on: the sender's buffers fill up
        await anyio.sleep_forever()

    async with speaking_to(stuck, tmp_path) as store, anyio.create_task_group() as tasks:
        tasks.start_soon(store.upload_part, "key", "upload", 1, body, checksum.of_bytes(body))
        await arrived.wait()
        tasks.cancel_scope.cancel()


@given(size_bytes=st.integers(0, 3 * SLICE_BYTES), at=st.integers(0, 3 * SLICE_BYTES))
def test_a_body_is_what_the_memory_holds(size_bytes: int, at: int) -> None:
    data = bytes(index % 251 for index in range(size_bytes))
    body = RequestBody(memoryview(data))

    async def sent() -> bytes:
        return b"".join([bytes(piece) async for piece in body])

    assert (len(body), bool(body), body.tell()) == (size_bytes, True, 0)
    assert anyio.run(sent) == data
    assert body.tell() == size_bytes
    body.seek(0)
    assert anyio.run(sent) == data  # a redirect sends it again
    assert body.seek(0, 2) == size_bytes
    body.seek(min(at, size_bytes))
    assert body.read(10) + body.read() == data[at:]


@pytest.mark.parametrize("sent", ["length", "chunked"])
async def test_an_answer_of_any_framing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: str
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # the client hangs up
            while await reader.readuntil(b"\r\n\r\n"):
                framing = b"Content-Length: 5" if sent == "length" else b"Transfer-Encoding: chunked"
                writer.write(b"HTTP/1.1 200 OK\r\nETag: e\r\n" + framing + b"\r\n\r\n")
                writer.write(b"hello" if sent == "length" else b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")

    async with speaking_to(talk, tmp_path) as store:
        for _ in range(2):  # by aiohttp, then by the wire
            data, info = await store.get("key")
            assert (data, info.size_bytes, info.etag) == (b"hello", 5, "e")
        monkeypatch.setattr("uploader.below.MAX_SMALL_BYTES", 4)
        with pytest.raises(CorruptError, match="s3://bucket/run/key"):
            await store.get("key")
    async with speaking_to(talk, tmp_path) as store:
        with pytest.raises(CorruptError, match="s3://bucket/run/key"):
            await store.get("key")
