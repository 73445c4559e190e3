"""Pruning beside everything else: no commit waits for it, a grace is a time to come back at."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest
from anyio import to_thread
from steps import FIRST, NOW, Time, keys, make_service, make_step, node_record, run_file, taken
from virtual_time import VIRTUAL, at_once

from uploader import layout, queue, upkeep
from uploader.errors import StoreDenied
from uploader.events import RunFinished
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.record import CommitRecord
from uploader.retention import Retention
from uploader.settings import UploadSettings
from uploader.status import Status, read_status
from uploader.store.base import ObjectInfo, UploadInfo
from uploader.store.memory import Fault, MemoryStore, Operation

pytestmark = pytest.mark.anyio

KEEP_ONE = Retention(keep_last=1)


class Clock(Time):
    """The store's clock goes with ours, but tells another time."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore(now=lambda: 7e8 + self.s)


@pytest.fixture
def anyio_backend(monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    monkeypatch.setattr(to_thread, "run_sync", at_once)
    return VIRTUAL


@pytest.fixture
async def clock() -> Clock:
    made = Clock()
    await taken(made.store, FIRST)
    return made


def index_of(store: MemoryStore) -> Manifest:
    return Manifest.model_validate_json(store._objects[layout.MANIFEST_KEY][1])


def status_of(directory: RunDirectory) -> Status:
    status = read_status(directory.status_file)
    assert status is not None
    return status


async def test_a_grace_is_a_time_to_come_back_at(directory: RunDirectory, clock: Clock) -> None:
    run = run_file(retention=KEEP_ONE, upload=UploadSettings(delete_grace_s=60))
    service = make_service(directory, clock.store, run, clock)
    for step in (1, 2):
        make_step(directory, step)
        await service.round()
    assert [*index_of(clock.store).deleting] == ["step_1@g1"]
    for after_s, left in ((59.0, 8), (1.0, 4)):
        clock.s += after_s
        clock.store.operations.clear()
        await service.round()
        assert len(await keys(clock.store, "step_")) == left
    assert index_of(clock.store).names() == {"step_2@g1"}
    clock.store.operations.clear()
    clock.s += 1000
    await service.round()
    assert clock.store.operations == []


async def test_a_grace_holds_up_neither_a_commit_nor_its_wait_from_start_to_start(
    directory: RunDirectory, clock: Clock
) -> None:
    run = run_file(retention=KEEP_ONE, upload=UploadSettings(delete_grace_s=60))
    for step in (1, 2, 3):
        make_step(directory, step)
        await make_service(directory, clock.store, run, clock).round()
        clock.s += 25
    assert [*index_of(clock.store).deleting] == ["step_1@g1", "step_2@g1"]
    clock.s += 10  # 60 since the first mark
    await make_service(directory, clock.store, run, clock).round()
    assert [*index_of(clock.store).deleting] == ["step_2@g1"]
    assert index_of(clock.store).latest == 3


async def test_a_run_that_is_over_stays_until_its_graces_are(directory: RunDirectory, clock: Clock) -> None:
    """Everything is durable by then: whoever waits for that sees ``drained`` at once."""
    run = run_file(retention=KEEP_ONE, upload=UploadSettings(delete_grace_s=60))
    service, states = make_service(directory, clock.store, run, clock), []
    for step in (1, 2):
        make_step(directory, step)
        await service.round()
    queue.put(directory.events(0), RunFinished(step=2, generation=1))
    show = service._status.show

    def seen(**changes: object) -> None:
        show(**changes)
        if changes.get("state") == "drained":
            states.append(sorted(index_of(clock.store).names()))
            clock.s += 61

    service._status.show = seen  # type: ignore[method-assign]
    await service.serve()
    assert states == [["step_1@g1", "step_2@g1"], ["step_2@g1"]]
    assert not directory.event_files()


@pytest.mark.parametrize("stuck", ["delete", "list"])
async def test_a_prune_that_hangs_holds_up_no_commit(
    directory: RunDirectory, clock: Clock, monkeypatch: pytest.MonkeyPatch, stuck: str
) -> None:
    service = make_service(directory, clock.store, run_file(retention=KEEP_ONE), clock)
    make_step(directory, 1)
    await service.round()
    plain, hangs_since_s = clock.store.list, list[float]()

    async def hang(_: object) -> None:
        hangs_since_s.append(anyio.current_time())
        await anyio.sleep_forever()

    async def listed(prefix: str = "") -> AsyncIterator[ObjectInfo]:
        if prefix.startswith("step_1/"):
            await hang(prefix)
        async for info in plain(prefix):
            yield info

    with monkeypatch.context() as patch:
        patch.setattr(clock.store, stuck, hang if stuck == "delete" else listed)
        for step in (2, 3, 4):
            make_step(directory, step)
            await service.round()
            assert index_of(clock.store).latest == step
            assert anyio.current_time() - hangs_since_s[-1] == pytest.approx(upkeep.SLICE_S, rel=0.01)
    assert len(hangs_since_s) > 3  # beside an upload, too
    await service.round()  # nothing new: it is due by itself
    assert index_of(clock.store).names() == {"step_4@g1"}


def refusing(prefix: str) -> Callable[[Operation], Fault | None]:
    denied = Fault(StoreDenied("access denied (AccessDenied)", doing="deleting", subject=prefix))
    return lambda one: denied if one.name == "delete" and one.key.startswith(prefix) else None


async def test_what_the_store_refuses_to_delete_is_told_and_the_others_go(
    directory: RunDirectory, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    clock.store.faults = refusing("step_1/")
    service = make_service(directory, clock.store, run_file(retention=KEEP_ONE), clock)
    for step in (1, 2, 3):
        make_step(directory, step)
        await service.round()
    index = index_of(clock.store)
    assert ([*index.live], [*index.deleting]) == (["step_3"], ["step_1@g1"])
    assert "step_1/g1/checkpoint.json" in await keys(clock.store)  # its record was to go first
    assert len(await keys(clock.store, "step_1/")) == 4
    status = status_of(directory)
    assert status.state == "failed"
    assert status.undeletable.keys() == {"step_1@g1"}
    assert "AccessDenied" in status.undeletable["step_1@g1"] == status.error
    assert [one.message.split(":")[0] for one in caplog.records if one.levelname == "ERROR"] == ["step_1@g1"]


async def test_a_refusal_is_tried_again_later_and_not_in_every_round(
    directory: RunDirectory, clock: Clock
) -> None:
    clock.store.faults = refusing("step_1/")
    service = make_service(directory, clock.store, run_file(retention=KEEP_ONE), clock)

    def tries() -> int:
        return sum(one.name == "delete" and one.key.startswith("step_1/") for one in clock.store.operations)

    for step in range(1, 6):
        make_step(directory, step)
        await service.round()
    assert tries() == 1
    clock.s += upkeep.RETRY_S
    make_step(directory, 6)
    await service.round()
    assert tries() == 2
    clock.store.faults = None
    clock.s += upkeep.RETRY_S
    make_step(directory, 7)
    await service.round()
    assert index_of(clock.store).names() == {"step_7@g1"}
    assert (status_of(directory).undeletable, status_of(directory).error) == ({}, None)


async def test_debris_that_can_not_be_swept_is_tried_again_later(
    directory: RunDirectory, clock: Clock
) -> None:
    run = run_file(retention=Retention(keep_last=9))
    clock.store._keep("step_0/g1/model", b"nothing names it")
    clock.store.faults = refusing("step_0/")
    service = make_service(directory, clock.store, run, clock)
    for step in (1, 2, 3):
        make_step(directory, step)
        await service.round()
    sweeps = [one for one in clock.store.operations if (one.name, one.key) == ("delete", "step_0/g1/model")]
    assert len(sweeps) == 1
    assert status_of(directory).undeletable.keys() == {upkeep.DEBRIS}
    clock.store.faults = None
    clock.s += upkeep.RETRY_S
    make_step(directory, 4)
    await service.round()
    assert "step_0/g1/model" not in await keys(clock.store)
    assert status_of(directory).undeletable == {}


async def test_versions_are_purged_only_where_that_is_wanted(directory: RunDirectory, clock: Clock) -> None:
    for purge in (False, True):
        clock.store.operations.clear()
        run = run_file(retention=KEEP_ONE, upload=UploadSettings(purge_versions=purge))
        service = make_service(directory, clock.store, run, clock)
        for step in (1 + 2 * purge, 2 + 2 * purge):
            make_step(directory, step)
        await service.round()
        purged = [one.key for one in clock.store.operations if one.name == "purge"]
        assert bool(purged) == purge


async def test_age_lets_steps_go_by_the_stores_clock(directory: RunDirectory, clock: Clock) -> None:
    """The records are dated 2026; in the store it is 1992."""
    run = run_file(retention=Retention(keep_last=1, keep_for_s=100))
    service = make_service(directory, clock.store, run, clock)
    assert NOW - timedelta(days=365) > NOW.fromtimestamp(7e8, NOW.tzinfo)
    for step, live in ((1, [1]), (2, [2, 1]), (3, [3, 2])):
        make_step(directory, step)
        await service.round()
        assert [entry.step for entry in index_of(clock.store).live.values()] == live
        clock.s += 60


class Distant(MemoryStore):
    """A store whose every answer takes a while."""

    def __init__(self, latency_s: float) -> None:
        super().__init__()
        self.latency_s = latency_s

    async def get(self, *given: Any) -> Any:
        await anyio.sleep(self.latency_s)
        return await super().get(*given)

    async def put(self, *given: Any, **more: Any) -> Any:
        await anyio.sleep(self.latency_s)
        return await super().put(*given, **more)

    async def delete(self, keys: Any) -> None:
        if keys:
            await anyio.sleep(self.latency_s)
            await super().delete(keys)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        await anyio.sleep(self.latency_s)
        async for info in super().list(prefix):
            yield info

    async def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        await anyio.sleep(self.latency_s)
        async for upload in super().list_uploads(prefix):
            yield upload


async def test_a_distant_store_is_pruned_although_a_slice_is_short(directory: RunDirectory) -> None:
    """What a slice has removed is dropped from the manifest before it is over."""
    distant, time = Distant(0.0), Time()
    time.clocks = replace(time.clocks, monotonic=anyio.current_time)
    await taken(distant, FIRST)
    for step in range(1, 31):
        make_step(directory, step)
    await make_service(directory, distant, run_file(retention=Retention(keep_last=30)), time).round()
    distant.latency_s = 0.4
    service = make_service(directory, distant, run_file(retention=KEEP_ONE), time)
    for _ in range(8):
        before = len(index_of(distant).names())
        await service.round()
        if len(index_of(distant).names()) == 1:
            break
        assert len(index_of(distant).names()) < before
    assert index_of(distant).names() == {"step_30@g1"}
    assert {key.split("/")[0] for key in await keys(distant, "step_")} == {"step_30"}


def test_a_long_manifest_gets_a_longer_slice() -> None:
    def listing(count: int) -> Manifest:
        entries = {}
        for step in range(count):
            record = CommitRecord.merge([node_record(step).encode()])
            entry = Entry.of(record, RunKeys())
            entries[entry.name] = entry
        return Manifest(run="run", superseded=entries)

    assert upkeep.slice_s(listing(0)) == upkeep.SLICE_S
    assert upkeep.slice_s(listing(100)) == pytest.approx(upkeep.SLICE_S + 100 * upkeep.SLICE_OF_ENTRY_S)
