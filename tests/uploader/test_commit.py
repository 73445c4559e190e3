"""A step is in the store if and only if its commit record is, wherever the process dies."""

from collections.abc import Sequence

import anyio
import pytest
from steps import (
    FIRST,
    IN_PARTS,
    Crash,
    Time,
    assert_whole,
    keys,
    make_service,
    make_step,
    objects_of,
    taken,
    uploads,
)

from uploader import layout
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.commit import commit, create_once
from uploader.errors import CorruptError, OwnershipError, StoreDenied, StoreUnavailable
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.record import CommitRecord
from uploader.settings import UploadSettings
from uploader.store.base import ObjectStore
from uploader.store.local import LocalStore
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore
from uploader.watch import LocalStep

pytestmark = pytest.mark.anyio


async def push(
    local: LocalStep, store: ObjectStore, *, in_place: bool = False, progress: Sequence[list[int]] = ()
) -> CommitRecord | None:
    done = progress[0] if progress else []
    flow = Flow(UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=4))
    journal = Journal(RunDirectory(local.path.parent))
    return await commit(local, store, RunKeys(in_place=in_place), flow, journal, done.append)


async def test_files_then_node_record_then_commit_record(directory: RunDirectory) -> None:
    local, store, done = make_step(directory, 7, files=IN_PARTS), MemoryStore(), list[int]()
    record = await push(local, store, progress=[done])
    assert record == CommitRecord.merge([local.encoded])
    assert await keys(store) == sorted(objects_of(local))
    assert sum(done) == local.record.size_bytes
    writes = [one.key for one in store.operations if one.name in ("put", "complete_upload")]
    assert writes[-2:] == ["step_7/g1/node-0000.json", "step_7/g1/checkpoint.json"]
    assert {*writes[:-2]} == {f"step_7/g1/{name}" for name in IN_PARTS}
    assert (await store.get("step_7/g1/node-0000.json"))[0] == local.encoded


async def test_what_a_former_attempt_stored_is_kept_if_it_is_whole(directory: RunDirectory) -> None:
    local, store = make_step(directory, 7, files=IN_PARTS), MemoryStore()
    prefix = "step_7/g1/"
    await store.put(prefix + "optim-rank00000-0001.safetensors", IN_PARTS["optim-rank00000-0001.safetensors"])
    await store.put(prefix + "state-rank00000.json", b"[]")  # same size, other bytes
    stale = await store.create_upload(prefix + "model-rank00000-0001.safetensors")
    done: list[int] = []
    await push(local, store, progress=[done])
    await assert_whole(store)
    sent = {one.key.removeprefix(prefix) for one in store.operations if one.name in ("put", "upload_part")}
    assert {*IN_PARTS, "node-0000.json", "checkpoint.json"} == sent
    assert not [one for one in store.operations if one.name == "upload_part"]
    assert stale not in await uploads(store)
    assert await uploads(store) == []
    assert sum(done) == local.record.size_bytes


async def test_committing_twice_is_committing_once(directory: RunDirectory) -> None:
    local, store = make_step(directory, 7), MemoryStore()
    first = await push(local, store)
    before = {key: await store.get(key) for key in await keys(store)}
    assert await push(local, store) == first
    assert {key: (await store.get(key))[0] for key in await keys(store)} == {
        key: data for key, (data, _) in before.items()
    }


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_answer_to_the_commit_record(directory: RunDirectory, when: str) -> None:
    local = make_step(directory, 7)
    lost = [Fault(StoreUnavailable("no answer"), when)]  # type: ignore[arg-type]

    def faults(operation: Operation) -> Fault | None:
        return lost.pop() if lost and operation.key.endswith(layout.COMMIT_RECORD_NAME) else None

    store = MemoryStore(faults=faults)
    assert await push(local, RetryingStore(store, Time().clocks.retry)) is not None
    assert not lost
    await assert_whole(store)


async def test_a_key_that_holds_something_else_has_another_owner(directory: RunDirectory) -> None:
    store = MemoryStore()
    await store.put("step_7/g1/checkpoint.json", b"{}")
    with pytest.raises(OwnershipError, match=r"step_7/g1/checkpoint\.json.*--run-name"):
        await push(make_step(directory, 7), store)
    await create_once(store, "step_7/g1/checkpoint.json", b"{}")


async def test_a_corrupt_file_commits_nothing(directory: RunDirectory) -> None:
    local, store = make_step(directory, 7, files=IN_PARTS), MemoryStore()
    (local.path / "model-rank00000-0001.safetensors").write_bytes(b"wEights" * 100)
    with pytest.raises(CorruptError, match="model-rank00000-0001"):
        await push(local, store)
    assert not {"step_7/g1/node-0000.json", "step_7/g1/checkpoint.json"} & {*await keys(store)}


async def test_uploads_that_nobody_wrote_down_go_but_not_another_nodes(directory: RunDirectory) -> None:
    """The process died between a begin and its journal, or the begin's answer was lost."""
    local, store = make_step(directory, 7, files=IN_PARTS), MemoryStore()
    await store.create_upload("step_7/g1/optim-rank00000-0001.safetensors")
    await store.create_upload("step_7/g1/optim-rank00001-0001.safetensors")
    left = [Fault(StoreUnavailable("no answer"), "after")]
    store.faults = lambda one: left.pop() if left and one.name == "create_upload" else None
    await push(local, RetryingStore(store, Time().clocks.retry))
    assert not left
    assert await uploads(store) == ["step_7/g1/optim-rank00001-0001.safetensors"]
    assert Journal(directory).all() == []


async def test_the_journal_holds_an_upload_until_the_records_are_there(directory: RunDirectory) -> None:
    local, store = make_step(directory, 7, files=IN_PARTS), MemoryStore()
    held: dict[str, int] = {}

    def faults(operation: Operation) -> None:
        held.setdefault(operation.name, len(Journal(directory).all()))

    store.faults = faults
    await push(local, store)
    assert (held["create_upload"], held["upload_part"], held["complete_upload"]) == (0, 1, 1)
    assert Journal(directory).all() == []


async def test_a_commit_that_was_interrupted_goes_on(directory: RunDirectory) -> None:
    local, store = make_step(directory, 7, files=IN_PARTS), MemoryStore()
    died = Fault(StoreDenied("the process died"))
    store.faults = lambda one: died if (one.name, one.number) == ("upload_part", 2) else None
    with pytest.raises(StoreDenied):
        await push(local, store)
    store.faults = None
    store.operations.clear()
    done: list[int] = []
    await push(local, store, progress=[done])
    await assert_whole(store)
    sent = [one.number for one in store.operations if one.name == "upload_part"]
    assert sent == [2]
    assert sum(done) == local.record.size_bytes
    assert await uploads(store) == [] == Journal(directory).all()


async def test_records_never_wait_behind_bulk(directory: RunDirectory) -> None:
    """All slots are taken for ever; what has its files there already is committed all the same."""
    local, store = make_step(directory, 7), MemoryStore()
    await push(local, store)
    await store.delete(["step_7/g1/node-0000.json", "step_7/g1/checkpoint.json"])
    flow = Flow(UploadSettings(parts_in_flight=1))
    async with flow.slot():
        with anyio.fail_after(60):
            record = await commit(local, store, RunKeys(), flow, Journal(directory), lambda _: None)
    assert record == CommitRecord.merge([local.encoded])
    assert await keys(store) == sorted(objects_of(local))


async def test_the_node_that_comes_last_commits(directory: RunDirectory) -> None:
    store = MemoryStore()
    nodes = []
    for node in range(3):
        path = RunDirectory(directory.path / f"node{node}")
        nodes.append(make_step(path, 7, files={f"part-{node}.bin": b"x" * node}, node=node, nodes=3))
    assert await push(nodes[2], store) is None
    assert await push(nodes[0], store) is None
    assert await push(nodes[2], store) is None
    record = await push(nodes[1], store)
    assert record is not None
    assert record == CommitRecord.merge([one.encoded for one in nodes])
    assert record == await push(nodes[0], store)  # whoever looks later sees it done
    await assert_whole(store)


async def test_nodes_that_come_together_commit_one_record(directory: RunDirectory) -> None:
    store, records = MemoryStore(), list[CommitRecord | None]()

    async def serve(node: int) -> None:
        path = RunDirectory(directory.path / f"node{node}")
        local = make_step(path, 7, files={f"part-{node}.bin": b"x"}, node=node, nodes=4)
        records.append(await push(local, store))

    async with anyio.create_task_group() as group:
        for node in range(4):
            group.start_soon(serve, node)
    committed = [record for record in records if record is not None]
    assert committed
    assert all(record == committed[0] for record in committed)
    await assert_whole(store)


async def test_in_place_only_the_record_is_written(directory: RunDirectory) -> None:
    local = make_step(directory, 7)
    store = LocalStore(directory.path)
    before = {path.name: path.stat().st_ino for path in local.path.iterdir()}
    assert await push(local, store, in_place=True) is not None
    after = {path.name: path.stat().st_ino for path in local.path.iterdir()}
    assert after.keys() - before.keys() == {layout.COMMIT_RECORD_NAME}
    assert {**after, **before} == after


@pytest.mark.parametrize("damage", ["missing", "short"])
async def test_in_place_a_damaged_step_is_not_committed(directory: RunDirectory, damage: str) -> None:
    local = make_step(directory, 7)
    file = local.path / "state-rank00000.json"
    file.unlink() if damage == "missing" else file.write_bytes(b"{")
    with pytest.raises(CorruptError, match=r"state-rank00000\.json: (it is missing|1 of 2 bytes)"):
        await push(local, LocalStore(directory.path), in_place=True)
    assert not (local.path / layout.COMMIT_RECORD_NAME).exists()


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_request_is_finished_by_the_next_start(
    directory: RunDirectory, when: str
) -> None:
    at = 0
    while True:
        store, run = MemoryStore(), RunDirectory(directory.path / f"crash-{at}")
        await taken(store, FIRST)
        local = make_step(run, 7, files=IN_PARTS)
        crash = Crash(at, when)  # type: ignore[arg-type]
        store.faults = crash
        await make_service(run, store).round()
        store.faults = None
        index = await assert_whole(store)
        if not crash.struck:
            break
        assert index is None or index.latest in (None, 7)
        await make_service(run, store).round()
        index = await assert_whole(store)
        assert index is not None
        assert index.latest == 7
        others = {layout.generation_key(1), layout.MANIFEST_KEY}
        assert {*await keys(store)} == objects_of(local) | others
        assert await uploads(store) == []
        at += 1
    assert at > 15  # it did strike at each request of a whole round
