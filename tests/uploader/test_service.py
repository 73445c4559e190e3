"""The uploader of one run, round by round: recovery is an ordinary round, and an idle one costs nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from steps import (
    FIRST,
    SMALL,
    Crash,
    Time,
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

from uploader import discard, files, layout, manifest, queue
from uploader.errors import CorruptError, OwnershipError, StoreDenied, StoreUnavailable
from uploader.events import CheckpointSaved, RunFinished
from uploader.journal import Journal
from uploader.layout import MANIFEST_KEY, RunDirectory, RunKeys
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.retention import Retention
from uploader.run import RunFile
from uploader.service import RunService
from uploader.settings import UploadSettings
from uploader.status import Status, read_status
from uploader.store.local import LocalStore
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.watch import LocalStep

pytestmark = pytest.mark.anyio

KEEP_ALL = Retention(keep_last=100)


@pytest.fixture
async def store() -> MemoryStore:
    store = MemoryStore()
    await taken(store, FIRST)
    return store


def save(directory: RunDirectory, step: int, number: int = 1, **more: object) -> None:
    """What a trainer does for one checkpoint."""
    make_step(directory, step, number, **more)  # type: ignore[arg-type]
    queue.put(directory.events(0), CheckpointSaved(generation=number, step=step))


def finish(directory: RunDirectory, step: int, number: int = 1) -> None:
    queue.put(directory.events(0), RunFinished(generation=number, step=step))


def shown(directory: RunDirectory) -> Status:
    status = read_status(directory.status_file)
    assert status is not None
    return status


async def live(store: MemoryStore) -> list[str]:
    index = await ManifestFile(store, "run", RunKeys()).read()
    return [entry.name for entry in index.live.values()] if index else []


def local(directory: RunDirectory) -> list[str]:
    return sorted(path.name for path in directory.path.glob("step_*"))


async def test_a_saved_step_becomes_durable_and_its_event_goes(
    directory: RunDirectory, store: MemoryStore
) -> None:
    service = make_service(directory, store)
    save(directory, 10)
    assert await service.round() == []
    assert await live(store) == ["step_10@g1"]
    assert not directory.event_files()
    status = shown(directory)
    assert (status.state, status.newest_durable_step, status.durable_total) == ("waiting", 10, 1)
    assert status.durability_lag_steps == 0


async def test_an_idle_round_asks_the_store_nothing(directory: RunDirectory, store: MemoryStore) -> None:
    service = make_service(directory, store)
    await service.round()
    save(directory, 10)
    for _ in range(2):
        await service.round()
    store.operations.clear()
    for _ in range(3):
        await service.round()
    assert store.operations == []


async def test_without_any_event_everything_is_uploaded(directory: RunDirectory, store: MemoryStore) -> None:
    for step in (1, 2, 3):
        save(directory, step)
    for path in directory.event_files():
        path.unlink()
    await make_service(directory, store, run_file(retention=KEEP_ALL)).round()
    assert await live(store) == ["step_3@g1", "step_2@g1", "step_1@g1"]
    await assert_whole(store)


async def test_newest_first_and_what_is_skipped_is_counted(
    directory: RunDirectory, store: MemoryStore
) -> None:
    for step in range(1, 7):
        save(directory, step)
    await make_service(directory, store, run_file(retention=Retention(keep_last=2))).round()
    order = [one.key for one in store.operations if one.key.endswith("checkpoint.json") and one.name == "put"]
    assert order == ["step_6/g1/checkpoint.json", "step_5/g1/checkpoint.json"]
    assert shown(directory).skipped_total == 4
    assert local(directory) == ["step_5", "step_6"]
    assert not directory.event_files()


async def test_retention_follows_in_store_and_disk(directory: RunDirectory, store: MemoryStore) -> None:
    service = make_service(directory, store, run_file(retention=Retention(keep_last=2)))
    for step in range(1, 6):
        save(directory, step)
        await service.round()
        assert layout.step_at(step, 1) in await live(store)
    assert await live(store) == ["step_5@g1", "step_4@g1"]
    assert local(directory) == ["step_4", "step_5"]
    status = shown(directory)
    assert (status.durable_total, status.pruned_remote_total, status.pruned_local_total) == (5, 3, 3)
    kept = objects_of(
        make_step(RunDirectory(directory.path / "x"), 4), make_step(RunDirectory(directory.path / "x"), 5)
    )
    assert {*await keys(store, "step_")} == kept


async def test_a_corrupt_file_fails_its_step_and_not_the_next(
    directory: RunDirectory, store: MemoryStore
) -> None:
    service = make_service(directory, store, run_file(retention=KEEP_ALL))
    for step in (1, 2, 3):
        save(directory, step)
    (directory.step(3) / "state-rank00000.json").write_bytes(b"[]")
    (directory.step(2) / "state-rank00000.json").unlink()
    finish(directory, 3)
    events = await service.round()
    assert await live(store) == ["step_1@g1"]
    assert [type(event) for event in events] == [RunFinished]
    status = shown(directory)
    assert {*status.failed_steps} == {"step_3@g1", "step_2@g1"}
    assert local(directory) == ["step_1", "step_2", "step_3"]
    with pytest.raises(CorruptError, match=r"step_3/state-rank00000\.json"):
        await make_service(directory, store, run_file(retention=KEEP_ALL)).once()
    assert shown(directory).state == "failed"
    assert await uploads(store) == []


async def test_a_record_that_cannot_be_read_fails_its_step_only(
    directory: RunDirectory, store: MemoryStore
) -> None:
    for step in (1, 2):
        save(directory, step)
    record = directory.step(2) / "node-0000.json"
    record.write_bytes(record.read_bytes()[:-30])
    with pytest.raises(CorruptError, match=r"step_2/node-0000\.json"):
        await make_service(directory, store).once()
    assert await live(store) == ["step_1@g1"]


def refusing(word: str) -> Callable[[Operation], Fault | None]:
    """A store that takes nothing under keys with this word in them: a lock, a denied encryption key."""

    def faults(one: Operation) -> Fault | None:
        writes = one.name in ("put", "create_upload", "upload_part")
        return Fault(StoreDenied("access denied", subject=one.key)) if writes and word in one.key else None

    return faults


async def test_a_step_that_the_store_refuses_blocks_no_other(
    directory: RunDirectory, store: MemoryStore
) -> None:
    run = run_file(retention=Retention(keep_last=1))
    service = make_service(directory, store, run)
    store.faults = refusing("step_3/g1/model")
    for step in (1, 2, 3):
        save(directory, step)
    await service.round()
    assert await live(store) == ["step_2@g1"], "the newest that can be durable is"
    status = shown(directory)
    assert (status.state, status.error) == (
        "failed", "step_3/g1/model-rank00000-0001.safetensors: access denied"
    )  # fmt: skip
    assert status.skipped_total == 1
    assert directory.step(3).exists() and directory.event_files()
    store.operations.clear()
    await service.round()
    assert store.operations == [], "and is tried again when something changes, not before"
    save(directory, 4)
    await service.round()
    assert await live(store) == ["step_4@g1"]
    assert "step_3" not in "".join(local(directory)), "retention took it at last"
    assert (shown(directory).state, shown(directory).error) == ("waiting", None)


async def test_a_step_that_was_refused_is_durable_once_the_store_takes_it(
    directory: RunDirectory, store: MemoryStore
) -> None:
    service = make_service(directory, store, run_file(retention=KEEP_ALL))
    store.faults = refusing("step_2/g1")
    for step in (1, 2, 3):
        save(directory, step)
        await service.round()
    assert await live(store) == ["step_3@g1", "step_1@g1"]
    finish(directory, 3)
    with pytest.raises(StoreDenied, match="step_2/g1"):
        await make_service(directory, store, run_file(retention=KEEP_ALL)).serve()
    store.faults = None
    await make_service(directory, store, run_file(retention=KEEP_ALL)).serve()
    assert await live(store) == ["step_3@g1", "step_2@g1", "step_1@g1"]
    assert shown(directory).state == "drained"


IN_TWO = {"model.safetensors": b"m" * (8 * 1024**2 + 1)}
ONE_BY_ONE = UploadSettings(part_size_bytes=8 * 1024**2, parts_in_flight=1)


async def dies_sending(directory: RunDirectory, store: MemoryStore, run: RunFile) -> None:
    """A round of a process that dies when the store has one part of the newest step."""
    dead = False

    def faults(operation: Operation) -> Fault | None:
        nonlocal dead
        dead |= operation.number == 2
        return Fault(StoreDenied("the process died")) if dead else None

    store.faults = faults
    await make_service(directory, store, run).round()
    assert dead
    store.faults = None
    store.operations.clear()


def committed_in_order(store: MemoryStore) -> list[str]:
    puts = [one.key for one in store.operations if one.name == "put"]
    return [key.partition("/")[0] for key in puts if key.endswith("checkpoint.json")]


async def test_what_was_in_flight_is_finished_before_anything_newer(
    directory: RunDirectory, store: MemoryStore
) -> None:
    run = run_file(retention=KEEP_ALL, upload=ONE_BY_ONE)
    for step in (1, 2):
        save(directory, step, files=IN_TWO)
    await dies_sending(directory, store, run)
    save(directory, 3)
    await make_service(directory, store, run).round()
    assert committed_in_order(store) == ["step_2", "step_3", "step_1"]
    assert [
        one.number for one in store.operations if one.key == "step_2/g1/model.safetensors" and one.number
    ] == [2]
    assert await uploads(store) == []


async def test_the_upload_of_a_step_that_is_skipped_is_aborted(
    directory: RunDirectory, store: MemoryStore
) -> None:
    run = run_file(retention=Retention(keep_last=1), upload=ONE_BY_ONE)
    save(directory, 2, files=IN_TWO)
    await dies_sending(directory, store, run)
    assert await uploads(store) == ["step_2/g1/model.safetensors"]
    save(directory, 3)
    service = make_service(directory, store, run)
    for _ in range(3):
        await service.round()
    assert await live(store) == ["step_3@g1"]
    assert await uploads(store) == [] == Journal(directory).all()
    assert shown(directory).skipped_total == 1


async def test_the_upload_of_a_step_that_is_corrupt_is_aborted(
    directory: RunDirectory, store: MemoryStore
) -> None:
    run = run_file(upload=ONE_BY_ONE)
    save(directory, 2, files=IN_TWO)
    await dies_sending(directory, store, run)
    (directory.step(2) / "model.safetensors").write_bytes(IN_TWO["model.safetensors"][:-1] + b"x")
    await make_service(directory, store, run).round()
    assert {*shown(directory).failed_steps} == {"step_2@g1"}
    assert await uploads(store) == await live(store) == [] == Journal(directory).all()
    assert not [key for key in await keys(store) if key.startswith("step_")]


async def test_the_upload_of_a_step_that_a_rewind_left_behind_is_aborted(
    directory: RunDirectory, store: MemoryStore
) -> None:
    save(directory, 1)
    run = run_file(upload=ONE_BY_ONE)
    await make_service(directory, store, run).round()
    save(directory, 2, files=IN_TWO)
    await dies_sending(directory, store, run)
    second = claim((1, None), (2, 1))
    await taken(store, second)
    await make_service(directory, store, run_file(second, upload=ONE_BY_ONE)).round()
    assert await uploads(store) == [] == Journal(directory).all()


async def test_an_upload_nobody_goes_on_with_is_aborted_when_it_is_stale(directory: RunDirectory) -> None:
    clock = [1000.0]
    store = MemoryStore(now=lambda: clock[0])
    await taken(store, FIRST)
    await store.create_upload("step_9/g1/another-nodes")
    for now_s, left in ((1000.0 + 7 * 86_400, 1), (1001.0 + 7 * 86_400, 0)):
        clock[0] = now_s
        await make_service(directory, store).round()
        assert len(await uploads(store)) == left


async def test_a_refusal_is_shown_and_tried_again_at_the_next_change(
    directory: RunDirectory, store: MemoryStore
) -> None:
    service = make_service(directory, store)
    store.faults = lambda one: Fault(StoreDenied("access denied", subject=one.key))
    save(directory, 1)
    await service.round()
    status = shown(directory)
    assert (status.state, status.error) == ("failed", "manifest.json: access denied")
    assert directory.event_files()  # not acknowledged
    asked = len(store.operations)
    await service.round()
    assert len(store.operations) == asked
    store.faults = None
    save(directory, 2)
    await service.round()
    assert await live(store) == ["step_2@g1", "step_1@g1"]
    assert (shown(directory).state, shown(directory).error) == ("waiting", None)
    assert not directory.event_files()


async def test_a_refusal_at_the_end_is_the_exits_error(directory: RunDirectory, store: MemoryStore) -> None:
    store.faults = lambda one: Fault(StoreDenied("access denied", subject=one.key))
    save(directory, 1)
    finish(directory, 1)
    with pytest.raises(StoreDenied):
        await make_service(directory, store).serve()
    assert directory.event_files()
    store.faults = None
    await make_service(directory, store).serve()  # started again: the events are heard again
    assert await live(store) == ["step_1@g1"]
    assert not directory.event_files()


async def test_an_outage_is_waited_out(directory: RunDirectory, store: MemoryStore) -> None:
    seen: list[Operation] = []

    def faults(operation: Operation) -> Fault | None:
        """Each request is refused once, then its answer is lost once."""
        seen.append(operation)
        times = seen.count(operation)
        return (
            Fault(StoreUnavailable("no answer"), "after" if times == 2 else "before") if times < 3 else None
        )

    store.faults = faults
    save(directory, 1)
    await make_service(directory, store).round()
    assert await live(store) == ["step_1@g1"]
    status = shown(directory)
    assert (status.retries_total > 20, status.error) == (True, None)
    await assert_whole(store)


async def test_a_store_that_refuses_to_delete_holds_up_nothing(
    directory: RunDirectory, store: MemoryStore
) -> None:
    store.faults = lambda one: Fault(StoreDenied("no delete")) if one.name == "delete" else None
    service = make_service(directory, store, run_file(retention=Retention(keep_last=2)))
    for step in (1, 2):
        save(directory, step)
    await service.round()
    for step in (3, 4):
        save(directory, step)
    await service.round()
    assert await live(store) == ["step_4@g1", "step_3@g1"]
    assert local(directory) == ["step_3", "step_4"]  # the disk does not fill up
    assert (shown(directory).state, shown(directory).error) == ("failed", "no delete")


async def test_a_finished_run_ends_the_service(directory: RunDirectory, store: MemoryStore) -> None:
    held = files.lock(directory.trainer_lock)  # the trainer waits for its last checkpoint
    assert held is not None
    save(directory, 1)
    finish(directory, 1)
    await make_service(directory, store).serve()
    os.close(held)
    assert await live(store) == ["step_1@g1"]
    assert shown(directory).state == "drained"
    assert not directory.event_files()


@pytest.mark.parametrize("when", ["commit", "prune", "sweep"])
async def test_a_last_step_that_comes_at_any_moment_is_not_forgotten(
    directory: RunDirectory, store: MemoryStore, when: str
) -> None:
    trigger = {
        "commit": ("put", "checkpoint.json"),
        "prune": ("put", MANIFEST_KEY),
        "sweep": ("list", "step_"),
    }
    name, ending = trigger[when]
    came = [False]

    def faults(operation: Operation) -> None:
        if not came[0] and operation.name == name and operation.key.endswith(ending):
            came[0] = True
            save(directory, 2)
            finish(directory, 2)

    save(directory, 1)
    store.faults = faults
    service = make_service(directory, store, run_file(retention=KEEP_ALL))
    assert await service.round() == []  # the end that came meanwhile is for the next round
    assert came[0]
    assert [type(event) for event in await service.round()] == [RunFinished]
    assert await live(store) == ["step_2@g1", "step_1@g1"]


async def test_a_step_that_comes_while_the_disk_is_pruned_is_not_forgotten(
    directory: RunDirectory, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    discard_local = discard.discard_local

    async def discard_then(place: RunDirectory, steps: list[LocalStep]) -> list[int]:
        if not directory.step(1).exists():
            save(directory, 1)
        return await discard_local(place, steps)

    monkeypatch.setattr(discard, "discard_local", discard_then)
    service = make_service(directory, store)
    for _ in range(2):
        await service.round()
    assert await live(store) == ["step_1@g1"]


async def test_the_end_of_a_former_generation_ends_nothing(
    directory: RunDirectory, store: MemoryStore
) -> None:
    second = claim((1, None), (2, 1))
    await taken(store, second)
    save(directory, 1)
    finish(directory, 1)
    run_file(second).write(directory)
    service = make_service(directory, store, run_file(second))
    assert await service.round() == []
    assert not directory.event_files()


async def test_a_trainer_that_is_gone_for_a_while_ends_it(
    directory: RunDirectory, store: MemoryStore
) -> None:
    time = Time()
    service = make_service(directory, store, run_file(upload=UploadSettings(idle_exit_s=5)), time)
    held = files.lock(directory.trainer_lock)
    assert held is not None
    save(directory, 1)
    await service.round()
    time.s += 3600
    assert not service._is_over([])
    os.close(held)
    for s, over in ((0, False), (4.9, False), (0.2, True)):
        time.s += s
        assert service._is_over([]) == over
    save(directory, 2)  # its last words
    assert not service._is_over([])
    await service.round()
    assert service._is_over([])
    assert await live(store) == ["step_2@g1", "step_1@g1"]


async def test_it_serves_to_the_end_of_a_crashed_run(directory: RunDirectory, store: MemoryStore) -> None:
    save(directory, 1)
    await make_service(directory, store, run_file(upload=UploadSettings(idle_exit_s=0))).serve()
    assert await live(store) == ["step_1@g1"]
    assert shown(directory).state == "drained"


async def test_a_new_generation_is_adopted(directory: RunDirectory, store: MemoryStore) -> None:
    run_file(FIRST).write(directory)
    service = make_service(directory, store, run_file(FIRST))
    for step in (1, 2, 3):
        save(directory, step)
    await service.round()
    second = claim((1, None), (2, 2))
    await taken(store, second)
    run_file(second).write(directory)
    files.move_to_trash(directory.step(3), directory.trash)
    save(directory, 3, 2)
    await service.once()
    index = await assert_whole(store)
    assert index is not None
    assert {*index.live} == {"step_1", "step_2", "step_3"}
    assert index.live["step_3"].generation == 2
    assert [*index.superseded] == ["step_3@g1"]
    assert (index.generation, index.owner) == (2, second.owner)
    assert shown(directory).generation == 2


async def test_a_rewind_under_a_running_upload_is_followed_not_fought(
    directory: RunDirectory, store: MemoryStore
) -> None:
    """The next trainer takes the run, supersedes and rewrites a step while the old one is being uploaded."""
    second = claim((1, None), (2, 1))
    run_file(FIRST).write(directory)
    service = make_service(directory, store, run_file(FIRST))
    save(directory, 1)
    await service.round()
    save(directory, 2)
    rewound = [False]

    def faults(operation: Operation) -> None:
        if operation.key == "step_2/g1/checkpoint.json" and not rewound[0]:
            rewound[0] = True
            index = Manifest.model_validate_json(store._objects[MANIFEST_KEY][1])
            store._keep(layout.generation_key(2), b"taken")
            store._keep(MANIFEST_KEY, manifest.adopted(index, second).encode())
            run_file(second).write(directory)
            files.move_to_trash(directory.step(2), directory.trash)
            save(directory, 2, 2)

    store.faults = faults
    await service.once()
    assert rewound[0]
    assert await live(store) == ["step_2@g2", "step_1@g1"]
    assert local(directory) == ["step_1", "step_2"]


async def test_a_step_that_a_rewind_took_away_has_not_failed(
    directory: RunDirectory, store: MemoryStore
) -> None:
    def faults(operation: Operation) -> None:
        if operation.name == "list_uploads" and directory.step(1).exists():
            files.move_to_trash(directory.step(1), directory.trash)

    save(directory, 1)
    store.faults = faults
    await make_service(directory, store).once()
    assert shown(directory).failed_steps == {}


async def test_an_older_generation_stops_and_says_who_owns_the_run(
    directory: RunDirectory, store: MemoryStore
) -> None:
    service = make_service(directory, store)
    save(directory, 1)
    await service.round()
    second = claim((1, None), (2, 1))
    await ManifestFile(store, "run", RunKeys()).update(lambda index: manifest.adopted(index, second))
    before = await keys(store)
    save(directory, 2)
    with pytest.raises(OwnershipError, match=r"generation 2 of me@host2 \(process 2\) owns it"):
        await service.serve()
    assert await keys(store) == before  # not even a file


async def test_a_branch_that_no_manifest_knows_yet_is_not_taken_for_old(
    directory: RunDirectory, store: MemoryStore
) -> None:
    """The trainer died between taking a generation and superseding: the uploader must not skip its steps."""
    await make_service(directory, store, run_file(retention=KEEP_ALL)).round()
    for step in (5, 6, 7):
        save(directory, step)
    await make_service(directory, store, run_file(retention=KEEP_ALL)).round()
    second = claim((1, None), (2, 5))
    await taken(store, second)
    for step in (6, 7):
        files.move_to_trash(directory.step(step), directory.trash)
    save(directory, 6, 2)
    await make_service(directory, store, run_file(second, retention=Retention(keep_last=1))).round()
    assert await live(store) == ["step_6@g2"]
    assert local(directory) == ["step_6"]


async def test_a_corrupt_manifest_is_told_with_its_remedy(
    directory: RunDirectory, store: MemoryStore
) -> None:
    await store.put(MANIFEST_KEY, b'{"run":')
    save(directory, 1)
    with pytest.raises(CorruptError, match="wmtp checkpoints rebuild memory://"):
        await make_service(directory, store).once()
    await ManifestFile(store, "run", RunKeys()).rebuild()
    await make_service(directory, store).once()
    assert await live(store) == ["step_1@g1"]


async def test_a_lost_manifest_is_made_from_the_records(directory: RunDirectory, store: MemoryStore) -> None:
    save(directory, 1)
    await make_service(directory, store).once()
    await store.delete([MANIFEST_KEY])
    await make_service(directory, store).once()
    assert await live(store) == ["step_1@g1"]


async def test_what_might_be_gone_on_from_is_swept_once_something_newer_is_there(
    directory: RunDirectory, store: MemoryStore
) -> None:
    """Seed 13313: a late duplicate of a request for a step that was pruned; nothing was listed any more."""
    second = claim((1, None), (2, 5))
    await taken(store, second)
    await store.put("step_5/g1/node-0000.json", b"late")
    service = make_service(directory, store, run_file(second))
    await service.round()
    assert await keys(store, "step_5") == ["step_5/g1/node-0000.json"]
    save(directory, 7, 2)
    await service.round()
    assert await keys(store, "step_5") == []


async def test_debris_of_former_generations_is_swept_twice(
    directory: RunDirectory, store: MemoryStore
) -> None:
    save(directory, 5)
    second = claim((1, None), (2, 5))
    await taken(store, second)
    await store.put("step_6/g1/model", b"never committed")
    await store.create_upload("step_6/g1/optim")
    service = make_service(directory, store, run_file(second))
    await service.round()
    assert await keys(store, "step_6") == await uploads(store) == []
    store.operations.clear()
    for step, sweeps in ((7, 1), (8, 0)):
        save(directory, step, 2)
        await service.round()
        assert [one.key for one in store.operations if one.name == "list"].count("step_") == sweeps
        store.operations.clear()


async def test_a_run_with_another_destination_takes_another_service(
    directory: RunDirectory, store: MemoryStore
) -> None:
    run_file(destination="file:///another").write(directory)
    service = make_service(directory, store)
    save(directory, 1)
    await service.serve()
    assert await live(store) == []
    run_file(upload=UploadSettings(parts_in_flight=1)).write(directory)
    await service.serve()
    assert await live(store) == []
    run_file(retention=Retention(keep_last=7), upload=UploadSettings(idle_exit_s=0)).write(directory)
    fresh = run_file(upload=UploadSettings(idle_exit_s=0))
    await make_service(directory, store, fresh).serve()
    assert await live(store) == ["step_1@g1"]


async def test_a_node_hands_in_its_files_once_and_the_last_one_commits(
    tmp_path: Path, store: MemoryStore
) -> None:
    services = []
    for node in (0, 1):
        directory = RunDirectory(tmp_path / f"node{node}")
        save(directory, 3, files={f"part-{node}.bin": b"x"}, node=node, nodes=2)
        services.append(make_service(directory, store, run_file(node=node, nodes=2)))
    await services[0].round()
    assert await live(store) == []
    store.operations.clear()
    await services[0].round()
    assert store.operations == []
    await services[1].round()
    assert await live(store) == ["step_3@g1"]
    await assert_whole(store)


async def in_place(directory: RunDirectory, keep_last: int = 2) -> Callable[[], RunService]:
    store = LocalStore(directory.path)
    run = run_file(destination=str(directory.path), retention=Retention(keep_last=keep_last))
    await taken(store, FIRST)  # type: ignore[arg-type]
    return lambda: make_service(directory, store, run)  # type: ignore[arg-type]


async def test_in_place_steps_are_committed_indexed_and_pruned_without_a_copy(
    directory: RunDirectory,
) -> None:
    made = await in_place(directory)
    service, inodes = made(), set[int]()
    for step in (1, 2, 3):
        save(directory, step)
        inodes.add((directory.step(step) / "state-rank00000.json").stat().st_ino)
        await service.round()
    index = await ManifestFile(LocalStore(directory.path), "run", RunKeys(in_place=True)).read()
    assert index is not None
    assert [*index.live] == ["step_3", "step_2"]
    assert index.live["step_3"].record == "step_3/checkpoint.json"
    assert local(directory) == ["step_2", "step_3"]
    assert {(directory.step(step) / "state-rank00000.json").stat().st_ino for step in (2, 3)} < inodes
    names = {path.name for path in directory.step(3).iterdir()}
    assert names == {*SMALL, "node-0000.json", "checkpoint.json"}
    assert shown(directory).pruned_remote_total == 1
    assert list(directory.trash.iterdir()) == []


async def test_in_place_what_was_never_listed_goes_too(directory: RunDirectory) -> None:
    for step in range(1, 6):
        save(directory, step)
    made = await in_place(directory)
    await made().round()
    assert local(directory) == ["step_4", "step_5"]
    assert shown(directory).skipped_total == 3


async def test_in_place_a_step_that_is_loaded_waits(directory: RunDirectory) -> None:
    made = await in_place(directory, keep_last=1)
    service = made()
    save(directory, 1)
    await service.round()
    with files.held_for_reading(directory.step(1)):
        save(directory, 2)
        await service.round()
        assert local(directory) == ["step_1", "step_2"]
    await made().round()
    assert local(directory) == ["step_2"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_request_of_a_rewind_is_finished_by_the_next_start(
    directory: RunDirectory, when: str
) -> None:
    second, at = claim((1, None), (2, 2)), 0
    while True:
        store, place = MemoryStore(), RunDirectory(directory.path / f"crash-{at}")
        await taken(store, FIRST)
        for step in (1, 2, 3):
            save(place, step)
        await make_service(place, store, run_file(FIRST)).round()
        await taken(store, second)
        files.move_to_trash(place.step(3), place.trash)
        save(place, 3, 2)
        save(place, 4, 2)
        run = run_file(second, retention=Retention(keep_last=2), upload=UploadSettings(keep_superseded_s=0))
        crash = Crash(at, when)  # type: ignore[arg-type]
        store.faults = crash
        await make_service(place, store, run).round()
        store.faults = None
        index = await assert_whole(store)
        if not crash.struck:
            break
        assert index is not None
        assert index.latest is not None
        assert index.live[f"step_{index.latest}"].generation in (1, 2)
        await make_service(place, store, run).round()
        index = await assert_whole(store)
        assert index is not None
        assert index.names() == {"step_4@g2", "step_3@g2"}
        assert {key.rpartition("/")[0] for key in await keys(store, "step_")} == {"step_3/g2", "step_4/g2"}
        assert local(place) == ["step_3", "step_4"]
        at += 1
    assert at > 25


async def test_a_foreign_trainer_without_generations(directory: RunDirectory) -> None:
    store = MemoryStore()
    run = RunFile(run="run", destination="file:///elsewhere/run")
    make_step(directory, 1, 0)
    make_step(directory, 2, 0)
    await make_service(directory, store, run).once()
    assert await live(store) == ["step_2@g0", "step_1@g0"]


async def test_an_index_without_room_is_told_and_pruned_and_takes_the_step_then(
    directory: RunDirectory, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save(directory, step)
    await make_service(directory, store, run_file(retention=KEEP_ALL)).round()
    monkeypatch.setattr("uploader.manifest_file.MAX_GROWN_BYTES", len(store._objects[MANIFEST_KEY][1]))
    service = make_service(directory, store, run_file(retention=KEEP_ALL))
    save(directory, 4)
    await service.round()
    assert await live(store) == ["step_3@g1", "step_2@g1", "step_1@g1"]
    status = shown(directory)
    assert status.state == "failed" and "no room for another one" in (status.error or "")
    assert directory.step(4).exists()
    service = make_service(directory, store, run_file(retention=Retention(keep_last=2)))
    await service.round()
    save(directory, 5)
    await service.round()
    assert await live(store) == ["step_5@g1", "step_4@g1"]
    assert shown(directory).error is None
