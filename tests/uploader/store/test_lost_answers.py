"""Answers of a real S3 server that are lost or garbled on their way: each is met, nothing is done twice."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from gate import Asked, Gate, Instead
from steps import no_wait

from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.commit import create_once
from uploader.errors import CorruptError, OwnershipError
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.multipart import upload_file
from uploader.record import FileRecord
from uploader.retry import RetryPolicy
from uploader.settings import StorageSettings, UploadSettings
from uploader.store import ObjectStore, open_store
from uploader.store.retrying import RetryingStore

pytestmark = pytest.mark.anyio

KEY = "step_1/g1/model.safetensors"
DATA = os.urandom(BLOCK_SIZE_BYTES) + b"tail"
SMALL = b"{}"


def error(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>m</Message></Error>".encode()


@dataclass
class Behind:
    """A store behind a gate, and how often each kind of answer was replaced."""

    gate: Gate
    location: Location
    storage: StorageSettings

    @asynccontextmanager
    async def store(self) -> AsyncIterator[ObjectStore]:
        async with open_store(self.location, self.storage) as store:
            yield RetryingStore(store, RetryPolicy(sleep=no_wait))

    def answers(self, wanted: Callable[[Asked], bool], *instead: Instead) -> list[Instead]:
        """The next requests of this kind get these answers; returns those still to be given."""
        left = [*instead]
        self.gate.decide = lambda asked: left.pop(0) if left and wanted(asked) else "pass"
        return left


@pytest.fixture
def behind(s3_place: tuple[Location, StorageSettings]) -> Iterator[Behind]:
    location, storage = s3_place
    server = urlsplit(storage.endpoint_url or "")
    with Gate(server.hostname or "", server.port or 0).open() as gate:
        yield Behind(gate, location, storage.model_copy(update={"endpoint_url": gate.url}))


async def send(store: ObjectStore, path: Path, data: bytes = DATA) -> None:
    record = FileRecord.of_bytes("model.safetensors", data)
    flow = Flow(UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=1))
    await upload_file(store, KEY, path, record, flow, Journal(RunDirectory(path.parent)), lambda _: None)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(DATA)
    return tmp_path / "model.safetensors"


async def whole(store: ObjectStore) -> bool:
    """The object is the file, and nothing unfinished is left."""
    data, _ = await store.get(KEY)
    return data == DATA and not [one async for one in store.list_uploads("step_")]


def completes(asked: Asked) -> bool:
    return asked.method == "POST" and "uploadId" in asked.query and asked.key.endswith(KEY)


@pytest.mark.parametrize("passes", [True, False])
@pytest.mark.parametrize(
    ("status", "body"), [(500, b""), (503, error("SlowDown")), (200, error("InternalError"))]
)
async def test_complete(behind: Behind, path: Path, passes: bool, status: int, body: bytes) -> None:
    """An error in a 200, too: S3 begins to answer before it knows."""
    async with behind.store() as store:
        left = behind.answers(completes, Instead(status, body, passes))
        await send(store, path)
        assert not left
        assert behind.gate.parts(KEY) == [1, 2]
        assert await whole(store)


async def test_complete_of_what_is_complete(behind: Behind, path: Path) -> None:
    async with behind.store() as store:
        left = behind.answers(completes, Instead(503), Instead(404, error("NoSuchUpload"), passes=False))
        await send(store, path)
        assert not left
        assert behind.gate.parts(KEY) == [1, 2]
        assert await whole(store)


async def test_begin(behind: Behind, path: Path) -> None:
    async with behind.store() as store:
        begins = lambda asked: asked.method == "POST" and "uploads" in asked.query  # noqa: E731
        left = behind.answers(begins, Instead(500))
        await send(store, path)
        assert not left
        assert (await store.get(KEY))[0] == DATA


async def test_a_part(behind: Behind, path: Path) -> None:
    async with behind.store() as store:
        left = behind.answers(lambda asked: asked.part == 1 and asked.key.endswith(KEY), Instead(500))
        await send(store, path)
        assert not left
        assert behind.gate.parts(KEY) == [1, 1, 2]
        assert await whole(store)


async def test_bytes_that_changed_on_their_way(behind: Behind, path: Path) -> None:
    async with behind.store() as store:
        refused = Instead(400, error("BadDigest"), passes=False)
        left = behind.answers(lambda asked: asked.part == 2 and asked.key.endswith(KEY), refused)
        await send(store, path)
        assert not left
        assert behind.gate.parts(KEY) == [1, 2, 2]
        assert await whole(store)


@pytest.fixture
def damaged(path: Path) -> Path:
    path.write_bytes(DATA[:-1] + b"L")
    return path


async def test_bytes_that_changed_on_disk(behind: Behind, damaged: Path) -> None:
    async with behind.store() as store:
        with pytest.raises(CorruptError, match=f"bytes {BLOCK_SIZE_BYTES} to {len(DATA)} are not those"):
            await send(store, damaged)
        assert behind.gate.parts(KEY) == [1, 2]


async def test_create(behind: Behind) -> None:
    """The record was made, the answer lost; the second try finds it there, and it is ours."""
    async with behind.store() as store:
        left = behind.answers(
            lambda asked: asked.method == "PUT" and asked.key.endswith("/r.json"), Instead(500)
        )
        await create_once(store, "step_1/g1/r.json", SMALL)
        assert not left
        assert (await store.get("step_1/g1/r.json"))[0] == SMALL
        with pytest.raises(OwnershipError, match=r"step_1/g1/r\.json"):
            await create_once(store, "step_1/g1/r.json", b"[]")
