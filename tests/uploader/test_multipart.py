"""One object: whole parts, bounded memory, every lost answer met, a changed file told from a bad network.

And nothing is sent twice: what was interrupted goes on.
"""

import os
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from steps import Time, keys, uploads

from uploader import checksum
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import (
    ChecksumMismatch,
    CorruptError,
    StoreDenied,
    StoreUnavailable,
    UploadMissing,
    WmtpError,
)
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import RunDirectory
from uploader.multipart import upload_file
from uploader.record import FileRecord
from uploader.settings import UploadSettings
from uploader.store.base import PartInfo
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
    await upload_file(store, KEY, path, record(data), flow or make_flow(), journal(path), done.append)
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
    assert await keys(store) == []


async def test_a_file_that_is_too_short_or_missing_is_corrupt(path: Path) -> None:
    store = MemoryStore()
    write(path, DATA[:-1])
    with pytest.raises(CorruptError, match=f"{path}: it ends at byte {len(DATA) - 1}"):
        await send(store, path)
    remove(path)
    with pytest.raises(CorruptError, match=f"{path}: No such file"):
        await send(store, path)
    assert await keys(store) == []


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


async def test_an_upload_that_somebody_aborted_is_begun_anew_once(path: Path) -> None:
    store, aborted = MemoryStore(), 0

    def faults(operation: Operation) -> None:
        nonlocal aborted
        if operation.name == "complete_upload" and aborted < most:
            aborted += 1
            store._uploads.clear()

    store.faults, most = faults, 1
    assert await send(store, path) == len(DATA)
    assert (await store.get(KEY))[0] == DATA
    journal(path).forget(KEY)
    store, aborted, most = MemoryStore(faults=faults), 0, 9
    store._keep(KEY, b"x" * len(DATA))  # something else under this key is no success
    with pytest.raises(UploadMissing):
        await send(store, path)
    assert aborted == 2
    assert journal(path).all() == []


async def test_parts_that_make_something_else_are_sent_anew(path: Path) -> None:
    store = MemoryStore(faults=times(1, "complete_upload", ChecksumMismatch("BadDigest")))
    assert await send(store, path) == len(DATA)
    assert (await store.get(KEY))[0] == DATA
    assert parts_sent(store) == [1, 1, 2, 2, 3, 3]
    assert await uploads(store) == []
    store = MemoryStore(faults=times(9, "complete_upload", ChecksumMismatch("BadDigest")))
    with pytest.raises(UploadMissing, match="BadDigest; its upload was aborted"):
        await send(store, path)
    assert await uploads(store) == []


def journal(path: Path) -> Journal:
    return Journal(RunDirectory(path.parent))


def parts_sent(store: MemoryStore) -> list[int]:
    return sorted(one.number for one in store.operations if one.name == "upload_part")


class Taciturn(MemoryStore):
    """A store that tells no checksum of parts, as SeaweedFS."""

    async def list_parts(self, key: str, upload_id: str) -> list[PartInfo]:
        return [replace(part, crc64nvme=None) for part in await super().list_parts(key, upload_id)]


async def interrupted(store: MemoryStore, path: Path, after: int = 2) -> None:
    """The process dies when the store has taken so many parts."""
    left = [after]

    def faults(operation: Operation) -> Fault | None:
        if operation.name == "upload_part":
            left[0] -= 1
        return Fault(StoreDenied("the process died")) if left[0] < 0 else None

    store.faults = faults
    with pytest.raises(StoreDenied):
        await send(store, path, flow=one_by_one())
    store.faults = None
    store.operations.clear()


def one_by_one() -> Flow:
    return Flow(UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=1))


@pytest.mark.parametrize("kind", [MemoryStore, Taciturn])
async def test_what_was_interrupted_goes_on_with_the_parts_that_are_missing(
    path: Path, kind: type[MemoryStore]
) -> None:
    store = kind()
    await interrupted(store, path)
    larger = Flow(UploadSettings(part_size_bytes=2 * BLOCK_SIZE_BYTES))  # the parts there keep their bounds
    assert await send(store, path, flow=larger) == len(DATA)
    assert parts_sent(store) == [3]
    assert (await store.get(KEY))[0] == DATA
    assert await uploads(store) == []


async def test_a_cancelled_upload_goes_on(path: Path) -> None:
    store = MemoryStore()
    with anyio.CancelScope() as scope:
        store.faults = lambda one: scope.cancel() if one.number == 2 else None
        await send(store, path, flow=one_by_one())
    assert scope.cancelled_caught
    store.faults = None
    store.operations.clear()
    assert await send(store, path) == len(DATA)
    assert 1 not in parts_sent(store)
    assert (await store.get(KEY))[0] == DATA


async def test_without_checksums_a_part_counts_only_if_the_journal_has_it(path: Path) -> None:
    store = Taciturn()
    await interrupted(store, path)
    (file,) = journal(path)._path.glob("*.jsonl")
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-1]) + lines[-1][:10])  # the machine died before that was on disk
    assert await send(store, path) == len(DATA)
    assert parts_sent(store) == [2, 3]
    assert (await store.get(KEY))[0] == DATA


async def test_a_part_that_changed_in_the_store_is_sent_again(path: Path) -> None:
    store = MemoryStore()
    await interrupted(store, path)
    (upload,) = store._uploads.values()
    upload.parts[1] = PartInfo(1, BLOCK_SIZE_BYTES, "other", checksum.of_bytes(b"")), b""
    await send(store, path)
    assert parts_sent(store) == [1, 3]
    assert (await store.get(KEY))[0] == DATA


async def test_another_file_is_sent_anew_and_what_was_there_of_the_former_goes(path: Path) -> None:
    store = MemoryStore()
    await interrupted(store, path)
    changed = b"c" * BLOCK_SIZE_BYTES + DATA[BLOCK_SIZE_BYTES:]
    write(path, changed)
    await send(store, path, changed)
    assert parts_sent(store) == [1, 2, 3]
    assert (await store.get(KEY))[0] == changed
    assert await uploads(store) == []


async def test_another_destination_is_another_upload(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, other = MemoryStore(), MemoryStore(uri="memory://other")
    await interrupted(store, path)
    await send(other, path)
    assert (await other.get(KEY))[0] == DATA
    assert await uploads(store) == [KEY]
    assert f"memory:///{KEY}: an unfinished upload is left there (upload-1)" in caplog.text


async def test_a_completed_upload_of_which_nobody_heard_is_done(path: Path) -> None:
    died = Fault(StoreDenied("died"), "after")
    store = MemoryStore(faults=lambda one: died if one.name == "complete_upload" else None)
    with pytest.raises(StoreDenied):
        await send(store, path)
    store.faults = None
    store.operations.clear()
    assert await send(store, path) == len(DATA)
    assert [one.name for one in store.operations] == ["list_parts", "head"]


async def test_an_upload_the_store_has_lost_is_begun_anew(path: Path) -> None:
    store = MemoryStore()
    await interrupted(store, path)
    store._uploads.clear()
    assert await send(store, path) == len(DATA)
    assert parts_sent(store) == [1, 2, 3]
    assert (await store.get(KEY))[0] == DATA


async def test_a_part_is_in_the_journal_before_another_takes_its_place(path: Path) -> None:
    """So a crash costs no more than what may be in flight."""
    store, seen = Taciturn(), []

    def faults(operation: Operation) -> None:
        if operation.name == "upload_part":
            found = journal(path).find(KEY)
            seen.append((operation.number, sorted(found.etags) if found else None))

    store.faults = faults
    await send(store, path, flow=one_by_one())
    assert seen == [(1, []), (2, [1]), (3, [1, 2])]


async def test_bytes_that_the_file_is_to_blame_for_are_not_sent_twice(path: Path) -> None:
    write(path, b"x" + DATA[1:])
    store = MemoryStore()
    with pytest.raises(CorruptError):
        await send(store, path, flow=one_by_one())
    assert parts_sent(store).count(1) == 1


def test_the_record_guards_the_bytes() -> None:
    assert checksum.of_bytes(DATA) == record().crc64nvme
