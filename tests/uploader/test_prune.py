"""Retention carried out: record first, then objects; a crash anywhere is finished by the next start."""

import os
from datetime import UTC, datetime

import pytest
from steps import (
    FIRST,
    NOW,
    SMALL,
    Crash,
    assert_whole,
    claim,
    keys,
    make_service,
    make_step,
    objects_of,
    run_file,
    taken,
    uploads,
)

from uploader import files, layout, manifest, prune
from uploader.errors import OwnershipError
from uploader.generation import Claim
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.record import CommitRecord
from uploader.retention import Retention
from uploader.store.memory import MemoryStore, Operation
from uploader.watch import LocalStep

pytestmark = pytest.mark.anyio

KEYS = RunKeys()
SECOND = claim((1, None), (2, 2))


def committed(store: MemoryStore, *steps: LocalStep, by: Claim = FIRST) -> Manifest:
    """Steps as they lie in the store after their commit."""
    index = Manifest(run="run")
    for one in steps:
        prefix = KEYS.step_prefix(one.step, one.generation)
        record = CommitRecord.merge([one.encoded])
        records = {layout.node_record(0): one.encoded, layout.COMMIT_RECORD_NAME: record.encode()}
        for name, data in {**SMALL, **records}.items():
            store._keep(prefix + name, data)
        index = manifest.committed(index, Entry.of(record, KEYS), by)
    store._keep(layout.MANIFEST_KEY, index.encode())
    return index


def test_what_is_superfluous(directory: RunDirectory) -> None:
    index = Manifest(run="run")
    for step in (1, 2, 3, 4):
        entry = Entry.of(CommitRecord.merge([make_step(directory, step).encoded]), KEYS)
        index = manifest.committed(index, entry, FIRST)
    policy = Retention(keep_last=2)
    assert prune.superfluous(index, policy, now=NOW) == ["step_2@g1", "step_1@g1"]
    index = manifest.adopted(index, SECOND)
    assert prune.superfluous(index, policy, now=NOW) == []
    assert sorted(prune.superfluous(index, policy, now=NOW, long_ago={2})) == ["step_3@g1", "step_4@g1"]


async def test_the_record_goes_first_and_the_entry_last(directory: RunDirectory) -> None:
    steps, store = [make_step(directory, step) for step in (1, 2)], MemoryStore()
    committed(store, *steps)
    await store.create_upload("step_1/g1/optim.safetensors")
    await store.put("step_1/g10/other", b"another generation's")
    record = "step_1/g1/checkpoint.json"
    seen: list[tuple[str, bool]] = []

    def watching(operation: Operation) -> None:
        index = Manifest.model_validate_json(store._objects[layout.MANIFEST_KEY][1])
        if operation.name in ("delete", "abort_upload"):
            assert "step_1@g1" in index.deleting
            seen.append((operation.key, record in store._objects))

    store.faults = watching

    async def remove(entry: Entry) -> bool:
        return await prune.remove_objects(store, KEYS, entry)

    file = ManifestFile(store, "run", KEYS)
    gone = await prune.prune_store(file, ["step_1@g1"], FIRST, remove, 0.0)
    assert [entry.step for entry in gone] == [1]
    assert seen[0] == (record, True)
    assert seen[1][0] == "step_1/g1/model-rank00000-0001.safetensors"  # a request of its own, afterwards
    assert not any(still_there for _, still_there in seen[1:])
    left = await keys(store, "step_")
    assert left == sorted([*objects_of(steps[1]), "step_1/g10/other"])
    assert await uploads(store) == []
    index = await file.read()
    assert index is not None
    assert index.names() == {"step_2@g1"}


async def test_nothing_to_do_is_one_read(directory: RunDirectory) -> None:
    store = MemoryStore()
    committed(store, make_step(directory, 1))
    store.operations.clear()

    async def remove(entry: Entry) -> bool:
        raise AssertionError(entry)

    assert await prune.prune_store(ManifestFile(store, "run", KEYS), [], FIRST, remove, 60.0) == []
    assert [one.name for one in store.operations] == ["get"]


async def test_a_zombie_deletes_nothing(directory: RunDirectory) -> None:
    store = MemoryStore()
    committed(store, make_step(directory, 1), make_step(directory, 2))
    file = ManifestFile(store, "run", KEYS)
    await file.update(lambda index: manifest.adopted(index, SECOND))
    before = await keys(store)

    async def remove(entry: Entry) -> bool:
        raise AssertionError(entry)

    with pytest.raises(OwnershipError, match="me@host2"):
        await prune.prune_store(file, ["step_1@g1"], FIRST, remove, 0.0)
    assert await keys(store) == before


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_request_is_finished_by_the_next_start(
    directory: RunDirectory, when: str
) -> None:
    at, run = 0, run_file(retention=Retention(keep_last=1))
    while True:
        store, place = MemoryStore(), RunDirectory(directory.path / f"crash-{at}")
        await taken(store, FIRST)
        steps = [make_step(place, step) for step in (1, 2, 3)]
        committed(store, *steps)
        crash = Crash(at, when)  # type: ignore[arg-type]
        store.faults = crash
        await make_service(place, store, run).round()
        store.faults = None
        index = await assert_whole(store)
        assert index is not None
        assert index.latest == 3
        if not crash.struck:
            break
        await make_service(place, store, run).round()
        index = await assert_whole(store)
        assert index is not None
        assert index.names() == {"step_3@g1"}
        others = {layout.generation_key(1), layout.MANIFEST_KEY}
        assert {*await keys(store)} == objects_of(steps[2]) | others
        assert [path.name for path in place.path.glob("step_*")] == ["step_3"]
        at += 1
    assert at > 8


async def test_times_are_the_stores(directory: RunDirectory) -> None:
    clock = [1000.0]
    store = MemoryStore(now=lambda: clock[0])
    await taken(store, FIRST, SECOND)
    index = committed(store, *(make_step(directory, step) for step in (1, 2, 3)))
    policy = Retention()
    store.operations.clear()
    assert await prune.store_times(store, index, policy, 100.0, NOW) == (NOW, set())
    assert store.operations == []
    file = ManifestFile(store, "run", KEYS)
    for now_s, long_ago in ((1099.0, set()), (1100.0, {2})):
        clock[0] = now_s
        index = await file.update(lambda one: manifest.adopted(one, SECOND))
        store._keep(layout.MANIFEST_KEY, index.encode())
        present = datetime.fromtimestamp(now_s, UTC)
        assert await prune.store_times(store, index, policy, 100.0, NOW) == (present, long_ago)


async def test_a_step_that_is_loaded_waits(directory: RunDirectory) -> None:
    steps = [make_step(directory, step) for step in (1, 2)]
    with files.held_for_reading(steps[0].path):
        assert await prune.discard_local(directory, steps) == [2]
    assert steps[0].path.exists()
    assert await prune.discard_local(directory, steps) == [1]
    assert list(directory.trash.iterdir()) == []


async def test_a_step_that_a_rewind_wrote_anew_is_not_the_one_to_discard(directory: RunDirectory) -> None:
    old = make_step(directory, 7, 1)
    files.move_to_trash(old.path, directory.trash)
    make_step(directory, 7, 2)
    assert await prune.discard_local(directory, [old]) == []
    assert directory.step(7).exists()
    entry = Entry.of(CommitRecord.merge([old.encoded]), RunKeys(in_place=True))
    assert await prune.remove_directory(directory, [make_step(directory, 8, 2)], entry)
    assert directory.step(7).exists()


async def test_what_a_crash_left_in_the_trash_goes(directory: RunDirectory) -> None:
    (directory.trash / "step_1.0").mkdir(parents=True)
    (directory.trash / "step_1.0" / "model").write_bytes(b"x")
    await prune.discard_local(directory, [])
    assert os.listdir(directory.trash) == []


async def test_the_sweep_takes_what_nothing_will_ever_name(directory: RunDirectory) -> None:
    store = MemoryStore()
    index = committed(store, make_step(directory, 10), make_step(directory, 11))
    index = manifest.adopted(index, claim((1, None), (2, 11)))
    second = claim((1, None), (2, 11))
    pending = make_step(directory, 9)
    stays = ["step_9/g1/file", "step_12/g2/file", "step_12/g3/file", "step_5/g3/file", "step_11/g1/extra"]
    goes = ["step_8/g1/file", "step_12/g1/file", "step_13/g1/checkpoint.json", "step_13/g1/a"]
    foreign = ["step_x/g1/file", "notes", "step_4/file"]
    for key in stays + goes + foreign:
        store._keep(key, b"")
        await store.create_upload(key)
    there = {*await keys(store)}
    store.operations.clear()
    assert await prune.sweep(store, index, second, [pending], Journal(directory), 3600.0) == 2 * len(goes)
    assert {*await keys(store)} == there - {*goes}
    assert sorted(await uploads(store)) == sorted(stays + foreign)
    deleted = [one.key for one in store.operations if one.name == "delete"]
    assert deleted[0] == "step_13/g1/checkpoint.json"


async def test_the_sweep_of_a_zombie_leaves_its_successor_alone(directory: RunDirectory) -> None:
    store = MemoryStore()
    index = committed(store, make_step(directory, 10))
    store._keep("step_11/g2/model", b"being uploaded")
    store._keep("step_3/g2/model", b"being uploaded")
    assert await prune.sweep(store, index, FIRST, [], Journal(directory), 3600.0) == 0


async def test_more_than_one_page(directory: RunDirectory) -> None:
    store = MemoryStore()
    local = make_step(directory, 1)
    committed(store, local)
    for number in range(2500):
        store._keep(f"step_1/g1/shard-{number}", b"")
    assert await prune.remove_objects(store, KEYS, Entry.of(CommitRecord.merge([local.encoded]), KEYS))
    assert await keys(store, "step_") == []
