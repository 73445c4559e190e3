"""From a record to verified files; damage is named by file and bytes, and nothing half restored is seen."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import anyio.lowlevel
import pytest
from steps import IN_PARTS, make_step, node_record

from uploader import files, layout
from uploader.buffers import PartBuffers
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.commit import commit
from uploader.errors import CorruptError, DiskError, StoreDenied
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry
from uploader.record import CommitRecord
from uploader.restore import check, check_stored, damage, read_commit_record, restore
from uploader.settings import UploadSettings
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.watch import LocalSteps, read_step

pytestmark = pytest.mark.anyio

PREFIX = "step_7/g1/"
MODEL, OPTIM = "model-rank00000-0001.safetensors", "optim-rank00000-0001.safetensors"


def overwrite(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


class Place:
    """A store that holds one checkpoint, and an empty run directory to restore it to."""

    def __init__(self, tmp_path: Path) -> None:
        self.store, self.source = MemoryStore(), RunDirectory(tmp_path / "source")
        self.target = RunDirectory(tmp_path / "target")
        self.done: list[int] = []

    async def filled(self) -> "Place":
        local = make_step(self.source, 7, files=IN_PARTS)
        flow = Flow(UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=2))
        record = await commit(local, self.store, RunKeys(), flow, Journal(self.source), lambda _: None)
        assert record is not None
        self.record, self.entry = record, Entry.of(record, RunKeys())
        return self

    async def restore(self, record: CommitRecord | None = None, *, trash: bool = True) -> int:
        buffers = PartBuffers(BLOCK_SIZE_BYTES, 2)
        temporary, target = self.target.temporary(7, 2), self.target.step(7)
        return await restore(
            self.store,
            PREFIX,
            record or self.record,
            temporary,
            target,
            self.target.trash if trash else None,
            buffers,
            self.done.append,
        )

    def change(self, name: str, how: Callable[[bytearray], object]) -> None:
        data = bytearray(self.store._objects[PREFIX + name][1])
        how(data)
        self.store._keep(PREFIX + name, bytes(data))


@pytest.fixture
async def place(tmp_path: Path) -> Place:
    return await Place(tmp_path).filled()


async def test_what_is_restored_is_a_committed_step(place: Place) -> None:
    await place.restore()
    local = read_step(place.target.step(7))
    assert local.record == read_step(place.source.step(7)).record
    check(local.path, place.record.files)
    assert sum(place.done) == place.record.size_bytes
    assert [path.name for path in place.target.path.iterdir()] == ["step_7"]


async def test_a_damaged_local_copy_gives_way_once_the_new_one_is_whole(place: Place) -> None:
    make_step(place.target, 7, 1)
    (place.target.step(7) / MODEL).write_bytes(b"damaged")
    await place.restore()
    check(place.target.step(7), place.record.files)
    assert list(place.target.trash.iterdir()) == []


def reads(place: Place) -> list[tuple[str, int]]:
    """The ranged reads: which file, and how many of it."""
    keys = [one.key.removeprefix(PREFIX) for one in place.store.operations if one.name == "get_range"]
    return sorted((key, keys.count(key)) for key in {*keys})


async def test_an_interrupted_restore_goes_on_with_what_is_right(place: Place) -> None:
    """Of what it finds: a right block and a wrong one, a short file, another's files, and a directory."""
    temporary, whole = place.target.temporary(7, 2), place.source.step(7)
    temporary.mkdir(parents=True)
    (temporary / OPTIM).write_bytes((whole / OPTIM).read_bytes()[:BLOCK_SIZE_BYTES] + b"wrong")
    (temporary / MODEL).write_bytes(b"half")
    (temporary / "another-model.safetensors").write_bytes(b"of another checkpoint")
    (temporary / "state-rank00000.json").mkdir()
    (temporary / "state-rank00000.json" / "deep").write_bytes(b"")
    place.store.operations.clear()
    assert await place.restore() == BLOCK_SIZE_BYTES
    check(place.target.step(7), place.record.files)
    assert {path.name for path in place.target.step(7).iterdir()} == {one.path for one in place.record.files}
    assert reads(place) == [(MODEL, 1), ("node-0000.json", 1), (OPTIM, 1), ("state-rank00000.json", 1)]
    assert sum(place.done) == place.record.size_bytes


async def test_a_restore_that_is_killed_anywhere_goes_on_and_fetches_nothing_twice(place: Place) -> None:
    place.store.operations.clear()
    at, kept_bytes = 0, 0
    while True:
        left = [at]

        def die(_: Operation, left: list[int] = left) -> Fault | None:
            left[0] -= 1
            return Fault(StoreDenied("killed")) if left[0] < 0 else None

        place.store.faults = die
        try:
            kept_bytes = await place.restore()
        except StoreDenied:
            at += 1
            assert LocalSteps(place.target).scan() == ([], [])
            continue
        break
    check(place.target.step(7), place.record.files)
    assert at >= 2
    assert 0 < kept_bytes <= place.record.size_bytes


async def test_a_file_that_is_too_long_is_cut(place: Place) -> None:
    temporary = place.target.temporary(7, 2)
    temporary.mkdir(parents=True)
    (temporary / MODEL).write_bytes((place.source.step(7) / MODEL).read_bytes() + b"and more")
    assert await place.restore() == 700
    check(place.target.step(7), place.record.files)


async def test_a_hard_link_is_not_written_to(place: Place, tmp_path: Path) -> None:
    temporary, precious = place.target.temporary(7, 2), tmp_path / "precious"
    temporary.mkdir(parents=True)
    precious.write_bytes(b"precious")
    (temporary / MODEL).hardlink_to(precious)
    await place.restore()
    assert precious.read_bytes() == b"precious"
    check(place.target.step(7), place.record.files)


async def test_two_restores_to_one_place_do_not_mix(place: Place) -> None:
    temporary = place.target.temporary(7, 2)
    temporary.mkdir(parents=True)
    other = os.open(temporary, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(DiskError, match="another process restores to the same place"):
        await place.restore()
    os.close(other)
    await place.restore()


async def test_without_a_trash_nothing_gives_way(place: Place) -> None:
    target = place.target.step(7)
    target.mkdir(parents=True)
    (target / "mine").write_bytes(b"mine")
    with pytest.raises(DiskError, match="step_7"):
        await place.restore(trash=False)
    assert (target / "mine").read_bytes() == b"mine"
    (target / "mine").unlink()
    assert await place.restore(trash=False) == place.record.size_bytes  # all of it was there
    check(target, place.record.files)


async def test_what_is_in_flight_is_bounded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, flying, most = place.store.get_range, [0], [0]

    async def counted(key: str, start: int, into: memoryview) -> None:
        assert len(into) <= BLOCK_SIZE_BYTES
        flying[0] += 1
        for _ in range(50):  # time for all others that may
            await anyio.lowlevel.checkpoint()
            most[0] = max(most[0], flying[0])
        await plain(key, start, into)
        flying[0] -= 1

    monkeypatch.setattr(place.store, "get_range", counted)
    await place.restore()
    assert most[0] == 2


@pytest.mark.parametrize("at", [0, 100, BLOCK_SIZE_BYTES + 2])
async def test_a_flipped_bit_names_the_object_and_its_bytes(place: Place, at: int) -> None:
    def flip(data: bytearray) -> None:
        data[at] ^= 8

    place.change(OPTIM, flip)
    number = at // BLOCK_SIZE_BYTES
    start, end = number * BLOCK_SIZE_BYTES, min((number + 1) * BLOCK_SIZE_BYTES, BLOCK_SIZE_BYTES + 5)
    words = rf"memory:///{PREFIX}{OPTIM}: bytes {start} to {end} \(part {number + 1}\) differ"
    with pytest.raises(CorruptError, match=words):
        await place.restore()
    assert LocalSteps(place.target).scan() == ([], [])
    seen = [one for one in place.store.operations if one == Operation("get_range", PREFIX + OPTIM)]
    assert len(seen) in (2, 3)  # the bad part is read twice


async def test_bytes_that_were_wrong_once_are_read_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_range, bad = place.store.get_range, [True]

    async def unlucky(key: str, start: int, into: memoryview) -> None:
        await get_range(key, start, into)
        if key.endswith(MODEL) and bad:
            bad.pop()
            into[0] ^= 1

    monkeypatch.setattr(place.store, "get_range", unlucky)
    await place.restore()
    check(place.target.step(7), place.record.files)


async def test_a_truncated_object_is_named(place: Place) -> None:
    place.change(OPTIM, lambda data: data.pop())
    with pytest.raises(CorruptError, match=rf"{OPTIM}: .*{BLOCK_SIZE_BYTES + 4} bytes"):
        await place.restore()
    assert LocalSteps(place.target).scan() == ([], [])


async def test_a_missing_object_is_named(place: Place) -> None:
    await place.store.delete([PREFIX + OPTIM])
    with pytest.raises(CorruptError, match=rf"memory:///{PREFIX}{OPTIM}: the object is missing"):
        await place.restore()
    assert LocalSteps(place.target).scan() == ([], [])


async def test_a_disk_that_fills_up_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(DiskError, match=r"step_7\.g2\.tmp/.*No space left on device; free some space"):
        await place.restore()
    assert LocalSteps(place.target).scan() == ([], [])


async def test_files_in_directories_come_back(place: Place) -> None:
    nested = node_record(7, files={"a/b/c.bin": b"deep"})
    place.store._keep(PREFIX + "a/b/c.bin", b"deep")
    place.store._keep(PREFIX + layout.node_record(0), nested.encode())
    await place.restore(CommitRecord.merge([nested.encode()]))
    assert (place.target.step(7) / "a/b/c.bin").read_bytes() == b"deep"


async def test_a_commit_record_is_the_entrys_or_corrupt(place: Place) -> None:
    assert await read_commit_record(place.store, place.entry) == place.record
    other = place.entry.model_copy(update={"generation": 2})
    with pytest.raises(CorruptError, match="it is the record of step 7"):
        await read_commit_record(place.store, other)
    with pytest.raises(CorruptError, match="could leave the run"):
        away = place.entry.model_copy(update={"record": "../step_7/g1/checkpoint.json"})
        await read_commit_record(place.store, away)
    place.change(layout.COMMIT_RECORD_NAME, lambda data: data.pop(50))
    with pytest.raises(CorruptError, match=rf"memory:///{PREFIX}checkpoint\.json"):
        await read_commit_record(place.store, place.entry)
    await place.store.delete([place.entry.record])
    with pytest.raises(CorruptError, match="the commit record is missing"):
        await read_commit_record(place.store, place.entry)


async def test_the_check_of_a_local_copy_names_everything(place: Place) -> None:
    path = place.source.step(7)
    assert list(damage(path, place.record.files)) == []
    overwrite(path / OPTIM, BLOCK_SIZE_BYTES + 1, b"X")
    (path / MODEL).write_bytes(b"short")
    (path / "empty.bin").unlink()
    found = [str(error) for error in damage(path, place.record.files)]
    assert found == [
        f"verifying {path / 'empty.bin'}: the file is missing",
        f"verifying {path / MODEL}: it has 5 bytes, its record says 700",
        f"verifying {path / OPTIM}: bytes {BLOCK_SIZE_BYTES} to {BLOCK_SIZE_BYTES + 5} (block 1) differ from "
        "the record",
    ]
    assert len(list(damage(path, place.record.files, deep=False))) == 2
    with pytest.raises(CorruptError, match=r"empty\.bin"):
        check(path, place.record.files)


async def test_the_check_of_the_store_names_everything(place: Place) -> None:
    errors: list[CorruptError] = []
    await check_stored(place.store, PREFIX, place.record, errors.append)
    assert errors == []

    def flip(data: bytearray) -> None:
        data[0] ^= 1

    place.change(OPTIM, flip)
    place.change(MODEL, lambda data: data.pop())
    await place.store.delete([PREFIX + "empty.bin"])
    await check_stored(place.store, PREFIX, place.record, errors.append)
    found = sorted(str(error).removeprefix(f"verifying memory:///{PREFIX}") for error in errors)
    assert found[0] == "empty.bin: the object is missing"
    assert found[1] == f"{MODEL}: it has 699 bytes, its record says 700"
    assert found[2].startswith(f"{OPTIM}: its checksum is ")


async def test_a_step_that_is_read_is_not_pruned_meanwhile(place: Place) -> None:
    await place.restore()
    with files.held_for_reading(place.target.step(7)):
        assert not files.discard_unless_read(place.target.step(7), place.target.trash)
