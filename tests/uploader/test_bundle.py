"""Small files in a row: each once, whole, whatever fails in the middle; and few are not made to wait."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import keys, make_step, no_wait

from uploader.bundle import FILES_AT_MOST, Member, bundled, upload_bundle
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.commit import commit
from uploader.errors import ChecksumMismatch, CorruptError, StoreBusy, WmtpError
from uploader.flow import Flow
from uploader.journal import Journal, Unfinished
from uploader.layout import RunDirectory, RunKeys
from uploader.record import FileRecord
from uploader.retry import RetryPolicy
from uploader.settings import UploadSettings
from uploader.store.base import NewObject
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore

pytestmark = pytest.mark.anyio

MIB = 1024**2
FILES = {f"model-{number:02}.safetensors": b"%d" % number * 1000 for number in range(40)}


@given(
    sizes=st.lists(st.integers(0, 20 * MIB), max_size=80),
    part_size_bytes=st.integers(5, 40).map(lambda mib: mib * MIB),
    at_once=st.integers(1, 16),
)
def test_every_file_is_in_one_bundle_no_larger_than_a_part(
    sizes: list[int], part_size_bytes: int, at_once: int
) -> None:
    files = [
        FileRecord.model_construct(path=str(number), size_bytes=size, crc64nvme="", blocks=[])
        for number, size in enumerate(sizes)
    ]
    bundles = bundled(files, part_size_bytes, at_once)
    assert sorted(int(file.path) for one in bundles for file in one) == [*range(len(sizes))]
    for one in bundles:
        assert 1 <= len(one) <= FILES_AT_MOST
        assert len(one) == 1 or sum(file.size_bytes for file in one) <= part_size_bytes
    small = [file for file in files if file.size_bytes * 4 <= part_size_bytes]
    if any(len(one) > 1 for one in bundles):  # each connection has something to do
        assert len([one for one in bundles if one[0] in small]) >= min(len(small), 2 * at_once)


def test_two_thousand_files_are_sixteen_in_a_row() -> None:
    files = [
        FileRecord.model_construct(path=str(number), size_bytes=MIB, crc64nvme="", blocks=[])
        for number in range(2000)
    ]
    assert {len(one) for one in bundled(files, 16 * MIB, 8)} == {16}
    assert {len(one) for one in bundled(files[:16], 16 * MIB, 8)} == {1}


class InRows(MemoryStore):
    """Takes at most three objects in a row, and notes how many it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    async def put_some(self, objects: Sequence[NewObject]) -> int:
        self.given.append(len(objects))
        count = 0
        for one in objects[:3]:
            try:
                await self.put(one.key, one.body, crc64nvme=one.crc64nvme)
            except WmtpError:
                if not count:
                    raise
                break
            count += 1
        return count


def made(directory: Path, files: dict[str, bytes]) -> list[Member]:
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return [Member(name, directory / name, FileRecord.of_bytes(name, data)) for name, data in files.items()]


async def send(store: MemoryStore | RetryingStore, members: list[Member], directory: Path) -> int:
    """Upload one part at a time, and return the bytes of progress."""
    told: list[int] = []
    flow, journal = Flow(UploadSettings(parts_in_flight=1)), Journal(RunDirectory(directory))
    await upload_bundle(members, store, flow, journal, told.append)
    return sum(told)


async def test_all_are_stored_each_once(tmp_path: Path) -> None:
    store, members = InRows(), made(tmp_path, FILES)
    assert await send(store, members, tmp_path) == sum(map(len, FILES.values()))
    assert {name: (await store.get(name))[0] for name in FILES} == FILES
    assert [one.key for one in store.operations if one.name == "put"] == [*FILES]
    assert store.given == [*range(40, 0, -3)]


async def test_after_a_failure_only_what_is_missing_is_sent_again(tmp_path: Path) -> None:
    store, members = InRows(), made(tmp_path, FILES)
    failed: list[str] = []

    def faults(one: Operation) -> Fault | None:
        if one.name == "put" and one.key.endswith(("05.safetensors", "07.safetensors")) and len(failed) < 4:
            failed.append(one.key)
            return Fault(StoreBusy("SlowDown"))
        return None

    store.faults = faults
    retried: list[WmtpError] = []
    retrying = RetryingStore(
        store, RetryPolicy(sleep=no_wait), lambda error, attempt, wait_s: retried.append(error)
    )
    assert await send(retrying, members, tmp_path) == sum(map(len, FILES.values()))
    puts = [one.key for one in store.operations if one.name == "put"]
    assert sorted(puts) == sorted([*FILES, *failed])
    assert retried


async def test_a_store_that_received_other_bytes_is_asked_once_more(tmp_path: Path) -> None:
    store, members = InRows(), made(tmp_path, FILES)
    garbled = ["model-09.safetensors", "model-10.safetensors"]

    def faults(one: Operation) -> Fault | None:
        if one.name == "put" and one.key in garbled:
            garbled.remove(one.key)
            return Fault(ChecksumMismatch("BadDigest"))
        return None

    store.faults = faults
    assert await send(store, members, tmp_path) == sum(map(len, FILES.values()))
    assert await keys(store) == sorted(FILES)
    assert not garbled


async def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store, members = InRows(), made(tmp_path, FILES)
    members[20].path.write_bytes(b"#" * len(FILES[members[20].key]))
    with pytest.raises(CorruptError, match=r"not those that were written") as caught:
        await send(store, members, tmp_path)
    assert caught.value.subject == str(members[20].path)
    assert await keys(store) == [*FILES][:20]
    members[20].path.unlink()
    with pytest.raises(CorruptError, match=r"model-20\.safetensors"):
        await send(store, members[20:], tmp_path)


async def test_a_step_of_many_files_goes_in_rows_and_what_is_there_stays(directory: RunDirectory) -> None:
    files = {**FILES, "large.safetensors": b"l" * (BLOCK_SIZE_BYTES + 1)}
    local, store = make_step(directory, 7, files=files), InRows()
    flow, journal = (
        Flow(UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=2)),
        Journal(directory),
    )
    first, second = local.record.files[0], local.record.files[1]
    await store.put(f"step_7/g1/{first.path}", files[first.path])
    begun = Unfinished(
        destination=store.uri,
        key=f"step_7/g1/{second.path}",
        upload_id=await store.create_upload(f"step_7/g1/{second.path}"),
        size_bytes=second.size_bytes,
        crc64nvme=second.crc64nvme,
        part_size_bytes=BLOCK_SIZE_BYTES,
    )
    journal.begin(begun)
    store.operations.clear()
    told: list[int] = []
    await commit(local, store, RunKeys(), flow, journal, told.append)
    assert sum(told) == local.record.size_bytes
    puts = [one.key for one in store.operations if one.name == "put"]
    alone = {f"step_7/g1/{one}" for one in (first.path, second.path, "large.safetensors")}
    assert sorted(puts[:-2]) == sorted({f"step_7/g1/{name}" for name in files} - alone)
    assert max(store.given) == 38 // 2 // 2
    for name, data in files.items():
        assert (await store.get(f"step_7/g1/{name}"))[0] == data
    assert journal.all() == []
