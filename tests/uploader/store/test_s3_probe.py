"""The probe finds out what a store really does; the store makes up for what it lacks."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fake_s3 import serving
from quirky_s3 import ALL_SUMS, QuirkyS3, crc32c_of, md5_of

from uploader import checksum
from uploader.errors import (
    ChecksumMismatch,
    ObjectMissing,
    PreconditionFailed,
    StoreDenied,
    StoreUnavailable,
)
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.status import Status, StatusFile, read_status
from uploader.store import open_store
from uploader.store.base import PartInfo
from uploader.store.capabilities import ALL, Capabilities
from uploader.store.s3 import S3Store
from wmtp.cli.status import status

pytestmark = pytest.mark.anyio

MD5 = frozenset({"content-md5"})
CRC32C = frozenset({"x-amz-checksum-crc32c", "content-md5"})
BODY = b"some bytes of a checkpoint"
CRC = checksum.of_bytes(BODY)


@asynccontextmanager
async def opened(server: QuirkyS3, directory: Path, **settings: object) -> AsyncIterator[S3Store]:
    with serving(server.talk) as at:
        async with S3Store.open(Location("bucket", "run"), at.storage(directory, **settings)) as store:
            yield store


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (QuirkyS3(), ALL),
        (
            QuirkyS3(complete_if_none_match="ignored"),
            Capabilities("crc64nvme", full_object=True, create_once=True, compare_and_swap=True),
        ),
        (
            QuirkyS3(full_object=False),
            Capabilities("crc64nvme", full_object=False, create_once=True, compare_and_swap=True),
        ),
        (
            QuirkyS3(verifies=CRC32C, if_match="quoted"),
            Capabilities(
                "crc32c",
                full_object=False,
                create_once=True,
                compare_and_swap=True,
                quoted_etags=True,
                complete_once=True,
            ),
        ),
        (
            QuirkyS3(verifies=MD5, if_match="bare", complete_if_none_match="ignored"),
            Capabilities("md5", full_object=False, create_once=True, compare_and_swap=True),
        ),
        (
            QuirkyS3(
                verifies=frozenset(),
                if_match="ignored",
                if_none_match="ignored",
                complete_if_none_match="ignored",
            ),
            Capabilities("etag", full_object=False, create_once=False, compare_and_swap=False),
        ),
        (
            QuirkyS3(
                verifies=frozenset(),
                md5_etags=False,
                if_match="501",
                if_none_match="501",
                complete_if_none_match="501",
            ),
            Capabilities("none", full_object=False, create_once=False, compare_and_swap=False),
        ),
    ],
)
async def test_what_a_store_does_is_found_and_nothing_is_left(
    server: QuirkyS3, expected: Capabilities, tmp_path: Path
) -> None:
    async with opened(server, tmp_path) as store:
        assert await store.capabilities() == expected
        assert (server.objects, server.parts) == ({}, {})
        asked = len(server.requests)
        assert asked <= 12
        assert {request.path.rpartition("/")[0] for request in server.requests} == {"/bucket/run/.probe"}
        await store.capabilities()
        await store.put("key", BODY)
    assert len(server.requests) == asked + 1


async def test_one_destination_is_asked_once_in_a_process(tmp_path: Path) -> None:
    server = QuirkyS3()
    with serving(server.talk) as at:
        storage = at.storage(tmp_path)
        told: list[Capabilities] = []
        for run in ("one", "two"):
            async with S3Store.open(Location("bucket", run), storage, tell=told.append) as store:
                await store.put("key", BODY)
                await store.put("key", BODY)
    assert told == [ALL, ALL]
    assert {request.path.rpartition("/")[0] for request in server.requests[-3:]} == {
        "/bucket/one",
        "/bucket/two",
    }


async def test_who_only_reads_writes_nothing(tmp_path: Path) -> None:
    server = QuirkyS3()
    async with opened(server, tmp_path) as store:
        with pytest.raises(ObjectMissing):
            await store.get("key")
        with pytest.raises(ObjectMissing):
            await store.head("key")
    assert {request.method for request in server.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize("number", range(1, 10))
@pytest.mark.parametrize(
    ("status", "error"), [("503 Busy", StoreUnavailable), ("403 Forbidden", StoreDenied)]
)
async def test_a_probe_that_fails_halfway_leaves_nothing_and_is_repeated(
    number: int, status: str, error: type[Exception], tmp_path: Path
) -> None:
    server = QuirkyS3(fails={number: status})
    async with opened(server, tmp_path) as store:
        with pytest.raises(error):
            await store.put("key", BODY)
        assert (server.objects, server.parts) == ({}, {})
        await store.put("key", BODY)
        assert await store.capabilities() == ALL


@pytest.mark.parametrize(
    ("verifies", "header", "value"),
    [
        (ALL_SUMS, "x-amz-checksum-crc64nvme", CRC),
        (
            CRC32C,
            "x-amz-checksum-crc32c",
            crc32c_of(BODY),
        ),
        (MD5, "content-md5", md5_of(BODY)),
        (frozenset(), "content-md5", None),
    ],
)
async def test_the_strongest_checksum_goes_with_objects_and_parts(
    verifies: frozenset[str], header: str, value: str | None, tmp_path: Path
) -> None:
    server = QuirkyS3(verifies=verifies)
    sums = ALL_SUMS if verifies else frozenset()
    async with opened(server, tmp_path) as store:
        await store.put("key", BODY, crc64nvme=CRC)
        upload_id = await store.create_upload("big", crc64nvme=CRC)
        etag = await store.upload_part("big", upload_id, 1, BODY, CRC)
        put, _, part = server.requests[-3:]
        for request in (put, part):
            assert request.headers.get(header) == value
            assert sums & request.headers.keys() == ({header} & sums)
        parts = [PartInfo(1, len(BODY), etag, CRC)]
        await store.complete_upload("big", upload_id, parts, size_bytes=len(BODY), crc64nvme=CRC)
        assert (await store.head("key")).crc64nvme == CRC
        if verifies is not ALL_SUMS:  # of parts this server tells what was noted
            assert (await store.head("big")).crc64nvme == CRC
            assert server.objects["/bucket/run/big"][1]["x-amz-meta-crc64nvme"] == CRC


@pytest.mark.parametrize("verifies", [CRC32C, MD5, frozenset()])
async def test_bytes_that_are_not_the_records_are_never_sent(
    verifies: frozenset[str], tmp_path: Path
) -> None:
    server = QuirkyS3(verifies=verifies)
    async with opened(server, tmp_path) as store:
        upload_id = await store.create_upload("big")
        before = len(server.requests)
        with pytest.raises(ChecksumMismatch, match="s3://bucket/run/key"):
            await store.put("key", b"changed on disk", crc64nvme=CRC)
        with pytest.raises(ChecksumMismatch):
            await store.upload_part("big", upload_id, 1, b"changed on disk", CRC)
        assert len(server.requests) == before


async def test_an_etag_that_is_not_the_md5_tells_of_other_bytes(tmp_path: Path) -> None:
    server = QuirkyS3(verifies=frozenset())
    async with opened(server, tmp_path) as store:
        upload_id = await store.create_upload("big")
        server.spoils = True
        with pytest.raises(ChecksumMismatch, match="other bytes"):
            await store.put("key", BODY, crc64nvme=CRC)
        with pytest.raises(ChecksumMismatch, match="other bytes"):
            await store.upload_part("big", upload_id, 1, BODY, CRC)
    assert server.objects == {}


@pytest.mark.parametrize("manner", ["ignored", "501"])
async def test_conditions_a_store_does_not_know_are_looked_at_before(manner: str, tmp_path: Path) -> None:
    server = QuirkyS3(if_match=manner, if_none_match=manner, complete_if_none_match=manner)
    async with opened(server, tmp_path) as store:
        first = await store.put("key", b"1", if_absent=True)
        with pytest.raises(PreconditionFailed):
            await store.put("key", b"2", if_absent=True)
        second = await store.put("key", b"3", if_match=first)
        with pytest.raises(PreconditionFailed):
            await store.put("key", b"4", if_match=first)
        with pytest.raises(PreconditionFailed):
            await store.put("absent", b"5", if_match=first)
        assert (await store.head("key")).etag == second
    assert [server.objects[path][0] for path in server.objects] == [b"3"]


@pytest.mark.parametrize("manner", ["honoured", "bare", "quoted"])
async def test_an_etag_is_quoted_only_where_it_must_be(manner: str, tmp_path: Path) -> None:
    server = QuirkyS3(if_match=manner)
    async with opened(server, tmp_path) as store:
        etag = await store.put("key", b"1")
        await store.put("key", b"2", if_match=etag)
        expected = f'"{etag}"' if manner == "quoted" else etag
        assert server.requests[-1].headers["if-match"] == expected
        with pytest.raises(PreconditionFailed):
            await store.put("key", b"3", if_match=etag)


async def test_without_deleteobjects_objects_are_deleted_one_by_one(tmp_path: Path) -> None:
    server = QuirkyS3(batch_deletes=False)
    async with opened(server, tmp_path) as store:
        for name in ("a", "b", "c"):
            await store.put(name, BODY)
        before = len(server.requests)
        await store.delete(["a", "b", "never there"])
        await store.delete(["c"])
    assert server.objects == {}
    methods = [request.method for request in server.requests[before:]]
    assert methods == ["POST", "DELETE", "DELETE", "DELETE", "DELETE"]


async def test_google_is_not_even_asked_for_deleteobjects(tmp_path: Path) -> None:
    server = QuirkyS3(batch_deletes=False)
    async with opened(server, tmp_path, preset="gcs") as store:
        await store.delete(["a", "b"])
    assert [request.method for request in server.requests] == ["DELETE", "DELETE"]


@pytest.mark.parametrize(
    ("capabilities", "words"),
    [
        (ALL, "checksums: CRC64-NVME; conditional writes"),
        (
            Capabilities("md5", full_object=False, create_once=False, compare_and_swap=False),
            "checksums: MD5 only; no conditional writes: "
            "one uploader at a time is protected by the owner's lease alone",
        ),
        (
            Capabilities("crc64nvme", full_object=False, create_once=True, compare_and_swap=False),
            "checksums: CRC64-NVME; none for objects made of parts; creates once, but does not compare and "
            "swap: one uploader at a time is protected by the owner's lease alone",
        ),
    ],
)
def test_what_a_store_does_is_said_in_words(capabilities: Capabilities, words: str) -> None:
    assert str(capabilities) == words


def test_the_status_says_what_the_store_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = Capabilities("md5", full_object=False, create_once=True, compare_and_swap=True)
    directory = RunDirectory(tmp_path)
    directory.status_file.parent.mkdir()
    now = datetime(2026, 1, 2, tzinfo=UTC)
    first = Status(run="run", destination="s3://bucket/run", pid=1, updated_at=now)
    StatusFile(directory, lambda: now, first).knows(found)
    read = read_status(directory.status_file)
    assert read is not None
    assert read.store == found
    (tmp_path / "run.json").touch()
    status(tmp_path)
    assert "checksums: MD5 only; conditional writes" in capsys.readouterr().out


async def test_a_directory_is_known_at_once(tmp_path: Path) -> None:
    told: list[Capabilities] = []
    async with open_store(Location("", str(tmp_path)), StorageSettings(), tell=told.append):
        assert told == [ALL]
