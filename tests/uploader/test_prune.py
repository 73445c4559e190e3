"""Retention carried out: record first, then objects; a crash anywhere is finished by the next start."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
    node_record,
    objects_of,
    run_file,
    taken,
    uploads,
)

from uploader import layout, manifest, pins, prune
from uploader.errors import OwnershipError
from uploader.generation import Claim
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.prune import Ages
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


async def ages(
    store: MemoryStore, index: Manifest, policy: Retention, keep_superseded_s: float = 1e9
) -> Ages:
    made = Ages(store)
    await made.look(index, policy, keep_superseded_s, NOW)
    return made


async def test_what_is_superfluous(directory: RunDirectory) -> None:
    store = MemoryStore(now=lambda: 1000.0)
    await taken(store, FIRST, SECOND)
    index = committed(store, *(make_step(directory, step) for step in (1, 2, 3, 4)))
    policy = Retention(keep_last=2)
    assert prune.superfluous(index, policy, await ages(store, index, policy)) == ["step_2@g1", "step_1@g1"]
    index = manifest.adopted(index, SECOND)
    assert prune.superfluous(index, policy, await ages(store, index, policy)) == []
    assert prune.why_stays(index, policy, await ages(store, index, policy)) == {
        "step_2@g1": ("newest", "keep_last"),
        "step_1@g1": ("keep_last",),
        "step_4@g1": ("superseded lately",),
        "step_3@g1": ("superseded lately",),
    }
    long_ago = await ages(store, index, policy, 0.0)
    assert sorted(prune.superfluous(index, policy, long_ago)) == ["step_3@g1", "step_4@g1"]


async def test_what_is_pinned_stays_also_when_it_was_left_behind(directory: RunDirectory) -> None:
    store = MemoryStore(now=lambda: 1000.0)
    await taken(store, FIRST, SECOND)
    index = committed(store, *(make_step(directory, step) for step in (1, 2, 3, 4)))
    for step in (1, 3):
        index = pins.marked(index, index.live[f"step_{step}"], pinned=True)
    index = manifest.adopted(index, SECOND)
    policy = Retention(keep_last=1)
    long_ago = await ages(store, index, policy, 0.0)
    assert prune.superfluous(index, policy, long_ago) == ["step_4@g1"]
    everything = [*index.names(), "step_9@g1"]
    assert manifest.deleting(index, everything, SECOND).deleting.keys() == {"step_4@g1"}


@given(st.lists(st.integers(0, 20), unique=True), st.sets(st.integers(0, 20)), st.sets(st.integers(0, 20)))
def test_neither_the_latest_nor_a_pinned_step_is_ever_marked(
    steps: list[int], pinned: set[int], asked: set[int]
) -> None:
    index = Manifest(run="run")
    for step in steps:
        entry = Entry.of(CommitRecord.merge([node_record(step).encode()]), KEYS)
        index = manifest.committed(index, entry, FIRST)
    for step in pinned & {*steps}:
        index = pins.marked(index, index.live[f"step_{step}"], pinned=True)
    marked = manifest.deleting(index, [f"step_{step}@g1" for step in asked], FIRST)
    gone = {entry.step for entry in marked.deleting.values()}
    assert gone == (asked & {*steps}) - pinned - {max(steps, default=-1)}
    assert manifest.deleting(marked, [f"step_{step}@g1" for step in asked], FIRST) == marked


async def test_ages_are_the_stores_and_each_is_asked_for_once(directory: RunDirectory) -> None:
    """The trainer's clock says that every step is years old; the store took them just now."""
    clock = [2e9]
    store = MemoryStore(now=lambda: clock[0])
    await taken(store, FIRST, SECOND)
    index = committed(store, *(make_step(directory, step) for step in (1, 2, 3)))
    plain, policy = Retention(keep_last=1), Retention(keep_last=1, keep_for_s=100.0)
    store.operations.clear()
    assert (await ages(store, index, plain)).now == NOW
    assert store.operations == []
    made = Ages(store)
    for now_s, stays in ((2e9 + 99, 3), (2e9 + 100, 1)):
        clock[0] = now_s
        store._keep(layout.MANIFEST_KEY, index.encode())
        store.operations.clear()
        await made.look(index, policy, 1e9, NOW)
        assert made.now == datetime.fromtimestamp(now_s, UTC)
        assert len(prune.superfluous(index, policy, made)) == 3 - stays
    assert [one.key for one in store.operations] == [layout.MANIFEST_KEY]


async def test_superseded_steps_stay_for_a_while_by_the_stores_clock(directory: RunDirectory) -> None:
    clock = [1000.0]
    store = MemoryStore(now=lambda: clock[0])
    await taken(store, FIRST, SECOND)
    index = committed(store, *(make_step(directory, step) for step in (1, 2, 3)))
    index = manifest.adopted(index, SECOND)
    for now_s, gone in ((1099.0, []), (1100.0, ["step_3@g1"])):
        clock[0] = now_s
        store._keep(layout.MANIFEST_KEY, index.encode())
        made = await ages(store, index, Retention(), 100.0)
        assert prune.superfluous(index, Retention(), made) == gone


async def test_the_record_goes_first(directory: RunDirectory) -> None:
    steps, store = [make_step(directory, step) for step in (1, 2)], MemoryStore()
    index = committed(store, *steps)
    await store.create_upload("step_1/g1/optim.safetensors")
    await store.put("step_1/g10/other", b"another generation's")
    record = "step_1/g1/checkpoint.json"
    seen: list[tuple[str, bool]] = []

    def watching(operation: Operation) -> None:
        if operation.name in ("delete", "abort_upload", "purge"):
            seen.append((operation.key, record in store._objects))

    store.faults = watching
    await prune.remove_objects(store, KEYS, index.live["step_1"], purge=True)
    assert seen[0] == (record, True)
    assert seen[1] == (record, False)  # its versions
    assert seen[2][0] == "step_1/g1/model-rank00000-0001.safetensors"  # a request of its own, afterwards
    assert not any(still_there for _, still_there in seen[1:])
    left = await keys(store, "step_")
    assert left == sorted([*objects_of(steps[1]), "step_1/g10/other"])
    assert await uploads(store) == []


async def test_nothing_to_mark_is_one_read(directory: RunDirectory) -> None:
    store = MemoryStore()
    committed(store, make_step(directory, 1))
    store.operations.clear()
    assert (await prune.mark(store, ManifestFile(store, "run", KEYS), [], FIRST, 60.0, NOW)).deleting == {}
    assert [one.name for one in store.operations] == ["get"]


async def test_a_zombie_marks_nothing(directory: RunDirectory) -> None:
    store = MemoryStore()
    committed(store, make_step(directory, 1), make_step(directory, 2))
    file = ManifestFile(store, "run", KEYS)
    before = await file.update(lambda index: manifest.adopted(index, SECOND))
    with pytest.raises(OwnershipError, match="me@host2"):
        await prune.mark(store, file, ["step_1@g1"], FIRST, 0.0, NOW)
    assert await file.read() == before


async def test_a_grace_counts_from_the_mark_by_the_stores_clock(directory: RunDirectory) -> None:
    clock = [5e8]
    store = MemoryStore(now=lambda: clock[0])
    committed(store, make_step(directory, 1), make_step(directory, 2))
    file, far = ManifestFile(store, "run", KEYS), NOW + timedelta(days=9999)
    clock[0] += 50
    index = await prune.mark(store, file, ["step_1@g1"], FIRST, 60.0, NOW)
    assert index.deleting["step_1@g1"].deleting_since == datetime.fromtimestamp(clock[0], UTC)
    clock[0] += 20
    await file.update(lambda one: manifest.noted(one, far, FIRST))  # what is noted stays
    assert await prune.due_in_s(store, index, 60.0, far) == {"step_1@g1": 40.0}
    clock[0] += 40
    index = await prune.mark(store, file, [], FIRST, 60.0, NOW)
    assert await prune.due_in_s(store, index, 60.0, NOW) == {"step_1@g1": 0.0}
    assert await prune.due_in_s(store, index, 0.0, NOW) == {"step_1@g1": 0.0}
    assert await uploads(store) == []


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
    await prune.remove_objects(store, KEYS, Entry.of(CommitRecord.merge([local.encoded]), KEYS))
    assert [one.name for one in store.operations].count("delete") == 4  # the record; three batches
    assert await keys(store, "step_") == []


async def test_what_a_dead_probe_left_goes_when_no_probe_can_be_at_work(directory: RunDirectory) -> None:
    clock = [1e9]
    store = MemoryStore(now=lambda: clock[0])
    index = committed(store, make_step(directory, 10))
    store._keep(".probe/old", b"")
    await store.create_upload(".probe/old")
    clock[0] += prune.STALE_PROBE_S + 1
    store._keep(".probe/new", b"")
    await store.create_upload(".probe/new")
    assert await prune.sweep(store, index, FIRST, [], Journal(directory), prune.STALE_PROBE_S) == 2
    assert await keys(store, ".probe/") == [".probe/new"]
    assert await uploads(store) == [".probe/new"]
