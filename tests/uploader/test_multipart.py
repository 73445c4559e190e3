"""One object: whole parts, bounded memory, every lost answer met, a changed file told from a bad network."""

import os
from pathlib import Path

import anyio
import pytest
from steps import Time, keys, uploads

from uploader import checksum
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import (
    ChecksumMismatch,
    CorruptError,
    DiskError,
    StoreDenied,
    StoreUnavailable,
    UploadMissing,
    WmtpError,
)
from uploader.flow import Flow
from uploader.multipart import upload_file
from uploader.record import FileRecord
from uploader.settings import UploadSettings
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore

pytestmark = pytest.mark.anyio

KEY = "step_1/g1/model.safetensors"
DATA = os.urandom(BLOCK_SIZE_BYTES) + b"s" * BLOCK_SIZE_BYTES + b"tail"  # three parts


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "model.safetensors", DATA)
    return tmp_path / "model.safetensors"


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def remove(path: Path) -> None:
    path.unlink()


def record(data: bytes = DATA) -> FileRecord:
    return FileRecord.of_bytes("model.safetensors", data)


def make_flow() -> Flow:
    """Two parts at once, each of one block."""
    return Flow(UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=2))


async def send(
    store: MemoryStore | RetryingStore, path: Path, data: bytes = DATA, flow: Flow | None = None
) -> int:
    """Upload, and return the bytes of progress."""
    done: list[int] = []
    flow = flow or make_flow()
    await upload_file(store, KEY, path, record(data), flow, done.append)
    return sum(done)


@pytest.mark.parametrize("size_bytes", [0, 1, BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES + 1, 2 * BLOCK_SIZE_BYTES])
async def test_an_object_is_the_file(path: Path, size_bytes: int) -> None:
    store, data = MemoryStore(), DATA[:size_bytes]
    write(path, data)
    assert await send(store, path, data) == size_bytes
    there, info = await store.get(KEY)
    assert there == data
    assert info.crc64nvme == record(data).crc64nvme
    names = {one.name for one in store.operations}
    assert ("put" in names) == (size_bytes <= BLOCK_SIZE_BYTES)
    assert await uploads(store) == []


async def test_no_more_parts_in_memory_than_said(path: Path) -> None:
    both = anyio.Event()

    class Counting(MemoryStore):
        now = most = 0

        async def upload_part(self, *args: object, **kwargs: object) -> str:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.most == 2:
                both.set()
            try:
                await both.wait()  # the first part waits for a second to come
                return await super().upload_part(*args, **kwargs)  # type: ignore[arg-type]
            finally:
                self.now -= 1

    store, flow = Counting(), make_flow()
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(send, store, path, DATA, flow)
    assert store.most == 2


@pytest.mark.parametrize("at", [0, BLOCK_SIZE_BYTES + 3, len(DATA) - 1])
async def test_a_flipped_bit_names_file_and_bytes_and_stores_nothing(path: Path, at: int) -> None:
    damaged = bytearray(DATA)
    damaged[at] ^= 1
    write(path, damaged)
    store = MemoryStore()
    start = at // BLOCK_SIZE_BYTES * BLOCK_SIZE_BYTES
    with pytest.raises(CorruptError, match=f"uploading {path}: bytes {start} to "):
        await send(store, path)
    assert await keys(store) == await uploads(store) == []


async def test_a_file_that_is_too_short_or_missing_is_corrupt(path: Path) -> None:
    store = MemoryStore()
    write(path, DATA[:-1])
    with pytest.raises(CorruptError, match=f"{path}: it ends at byte {len(DATA) - 1}"):
        await send(store, path)
    remove(path)
    with pytest.raises(CorruptError, match=f"{path}: No such file"):
        await send(store, path)
    assert await keys(store) == await uploads(store) == []


async def test_a_file_the_disk_cannot_read_is_corrupt(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(CorruptError, match=f"{path}: Input/output error"):
        await send(MemoryStore(), path)


def times(count: int, name: str, error: WmtpError, when: str = "before"):  # type: ignore[no-untyped-def]
    left = [count]

    def faults(operation: Operation) -> Fault | None:
        if operation.name != name or not left[0]:
            return None
        left[0] -= 1
        return Fault(error, when)  # type: ignore[arg-type]

    return faults


@pytest.mark.parametrize(("size_bytes", "name"), [(len(DATA), "upload_part"), (100, "put")])
async def test_bytes_that_changed_on_their_way_are_sent_again_once(
    path: Path, size_bytes: int, name: str
) -> None:
    write(path, DATA[:size_bytes])
    store = MemoryStore(faults=times(1, name, ChecksumMismatch("BadDigest")))
    assert await send(store, path, DATA[:size_bytes]) == size_bytes
    store = MemoryStore(faults=times(9, name, ChecksumMismatch("BadDigest")))
    with pytest.raises(ChecksumMismatch):
        await send(store, path, DATA[:size_bytes])


@pytest.mark.parametrize("name", ["create_upload", "upload_part", "complete_upload", "abort_upload"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_lost_answers_cost_nothing(path: Path, name: str, when: str) -> None:
    store = MemoryStore(faults=times(2, name, StoreUnavailable("no answer"), when))
    assert await send(RetryingStore(store, Time().clocks.retry), path) == len(DATA)
    assert (await store.get(KEY))[0] == DATA


async def test_an_upload_that_somebody_aborted_is_no_success(path: Path) -> None:
    store = MemoryStore()

    def faults(operation: Operation) -> None:
        if operation.name == "complete_upload":
            store._uploads.clear()

    store.faults = faults
    with pytest.raises(UploadMissing):
        await send(store, path)
    store._keep(KEY, b"x" * len(DATA))  # something else under this key is none either
    with pytest.raises(UploadMissing):
        await send(store, path)


async def test_a_failure_tidies_up_and_is_told_even_where_that_fails(path: Path) -> None:
    store = MemoryStore(faults=times(1, "upload_part", StoreDenied("first")))
    with pytest.raises(StoreDenied, match="first"):
        await send(store, path)
    assert await uploads(store) == []
    refused = {"abort_upload": Fault(StoreDenied("then")), "upload_part": Fault(DiskError("first"))}
    store.faults = lambda one: refused.get(one.name)
    with pytest.raises(DiskError, match="first"):
        await send(store, path)


async def test_a_cancelled_upload_tidies_up(path: Path) -> None:
    store = MemoryStore()
    with anyio.CancelScope() as scope:
        store.faults = lambda one: scope.cancel() if one.name == "upload_part" else None
        await send(store, path)
    assert scope.cancelled_caught
    assert await uploads(store) == await keys(store) == []


def test_the_record_guards_the_bytes() -> None:
    assert checksum.of_bytes(DATA) == record().crc64nvme
