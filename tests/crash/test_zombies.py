"""A former owner that goes on, stopped anywhere and continued after a take-over, touches nothing that counts.

Machine A is stopped at one request, before it reaches the store or before its answer comes back, as a virtual
machine is paused. Machine B takes the run over, trains, commits, prunes and sweeps. Then A goes on.
"""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from steps import (
    IN_PARTS,
    Time,
    assert_whole,
    keys,
    make_service,
    make_step,
    no_wait,
    uploads,
)

from uploader import layout, manifest, queue
from uploader.errors import OwnershipError, StartRefused
from uploader.events import RunFinished
from uploader.files import lock
from uploader.layout import MANIFEST_KEY, RunDirectory, RunKeys
from uploader.lease import Lease
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.record import NodeRecord
from uploader.retention import Retention
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.settings import UploadSettings
from uploader.status import read_status
from uploader.store.memory import MemoryStore
from uploader.store.retrying import RetryingStore
from wmtp.checkpoint.fetch import Fetch
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.settings.resume import Resume

pytestmark = pytest.mark.anyio

KEEP_TWO = Retention(keep_last=2)
IN_BLOCKS = UploadSettings(part_size_bytes=8 * 1024**2, parts_in_flight=1, keep_superseded_s=0)


class Stoppable:
    """The store as one machine reaches it. At request ``at`` (from 0) the machine is stopped.

    Attributes:
        stopped: set when it is.
        go_on: set to continue it.
    """

    uri = "memory://"

    def __init__(self, store: MemoryStore, at: int = -1, when: str = "before") -> None:
        self._store, self._at, self._when = store, at, when
        self.stopped, self.go_on = anyio.Event(), anyio.Event()
        self.seen = 0

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)
        return partial(self._list if name in ("list", "list_uploads") else self._call, method)

    async def _call(self, method: Callable[..., Awaitable[Any]], *args: Any, **more: Any) -> Any:
        number = self._next()
        await self._stop(number, "before")
        try:
            return await method(*args, **more)
        finally:
            await self._stop(number, "after")

    async def _list(self, method: Callable[..., AsyncIterator[Any]], prefix: str = "") -> AsyncIterator[Any]:
        number = self._next()
        await self._stop(number, "before")
        found = [one async for one in method(prefix)]
        await self._stop(number, "after")
        for one in found:
            yield one

    def _next(self) -> int:
        self.seen += 1
        return self.seen - 1

    async def _stop(self, number: int, when: str) -> None:
        if (number, when) == (self._at, self._when):
            self.stopped.set()
        if self.stopped.is_set():  # the whole machine
            await self.go_on.wait()


@dataclass
class Machine:
    """One machine with its own disk and its own clock."""

    path: Path
    store: MemoryStore
    time: Time = field(default_factory=Time)
    watched_s: float = 0.0
    said: list[str] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)
    during_load: Callable[[], None] = lambda: None
    held: int | None = None

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        self.directory = RunDirectory(self.path)

    def die(self) -> None:
        """Its trainer is gone."""
        assert self.held is not None
        os.close(self.held)
        self.held = None

    async def start(self, what: str = "latest", *, forced: bool = False, fresh: bool = False) -> Started:
        """A trainer's start; it lives from then on."""
        if self.held is None:
            self.held = lock(self.directory.trainer_lock)

        def load(_: Path, record: NodeRecord) -> None:
            self.during_load()
            self.loaded.append(record.step)

        run = RunFile(run="run", destination="file:///elsewhere/run", retention=KEEP_TWO, upload=IN_BLOCKS)
        store = RetryingStore(self.store, RetryPolicy(sleep=no_wait))
        lease = Lease(forced=forced, sleep=self._watch, clock=lambda: self.watched_s)
        takeover = Takeover(self.directory, run, store, load, self.said.append, lease=lease)
        resume = None if fresh else Resume.parse(what, self.path)
        return await takeover.start(resume, fresh=fresh)

    async def _watch(self, delay_s: float) -> None:
        self.watched_s += delay_s
        await no_wait(delay_s)

    @property
    def run(self) -> RunFile:
        found = RunFile.read(self.directory)
        assert found is not None
        return found

    def save(self, *steps: int, files: dict[str, bytes] | None = None) -> None:
        for step in steps:
            make_step(self.directory, step, self.run.generation, files=files or {"a": b"%d" % step})

    async def upload(self, store: Any = None) -> None:
        """Rounds of its uploader until nothing is left to do."""
        service = make_service(self.directory, store or self.store, self.run, self.time)
        await service.once()

    async def train(self, *steps: int) -> None:
        for step in steps:
            self.save(step)
            await self.upload()


async def index_of(store: MemoryStore) -> Manifest:
    found = await ManifestFile(store, "run", RunKeys()).read()
    assert found is not None
    return found


async def assert_intact(store: MemoryStore) -> Manifest:
    """Every file of every live step is there, whole."""
    index = await index_of(store)
    for entry in index.live.values():
        record = manifest.CommitRecord.model_validate_json((await store.get(entry.record))[0])
        for file in record.files:
            info = await store.head(entry.record.removesuffix(layout.COMMIT_RECORD_NAME) + file.path)
            assert (info.size_bytes, info.crc64nvme) == (file.size_bytes, file.crc64nvme)
    return index


async def stopped_and_continued(tmp_path: Path, at: int, when: str) -> bool:
    """The whole story; whether A was stopped at all."""
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    await a.train(1, 2)
    a.save(3)
    a.save(4, files=IN_PARTS)  # to be uploaded in parts; step 1, 2 and perhaps 3 are to be pruned
    way = Stoppable(store, at, when)
    ended: list[OwnershipError | None] = []

    async def zombie() -> None:
        try:
            await a.upload(way)
            ended.append(None)
        except OwnershipError as error:
            ended.append(error)

    async with anyio.create_task_group() as group:
        group.start_soon(zombie)
        while not way.stopped.is_set() and not ended:
            await anyio.lowlevel.checkpoint()
        if not way.stopped.is_set():
            return False
        started = await b.start("latest")
        assert started.step == max(b.loaded) and b.watched_s >= 60
        await b.train(started.step + 5, started.step + 10, started.step + 15)
        before = await assert_intact(store)
        assert before.generation == started.run.generation == 2
        manifest_before = (await store.get(MANIFEST_KEY))[0]
        way.go_on.set()
    assert (await store.get(MANIFEST_KEY))[0] == manifest_before, "nothing a zombie does is seen"
    assert await assert_intact(store) == before
    if ended[0] is not None:
        assert f"generation 2 of {before.owner} owns it since" in str(ended[0])
        assert str(before.owner and before.owner.pid) in str(ended[0])
    a.save(5)
    with pytest.raises(OwnershipError):
        await a.upload()

    await b.start("latest")  # whatever the zombie left is swept in the next generation
    await b.train(started.step + 20)
    index = await assert_whole(store)
    assert index is not None and not index.deleting
    a.die(), b.die()
    there = {key.rpartition("/")[0] for key in await keys(store, "step_")}
    assert there == {entry.record.rpartition("/")[0] for entry in [*index.live.values()]}
    assert await uploads(store) == []
    return True


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_machine_stopped_at_any_request_and_continued_after_the_takeover(
    tmp_path: Path, when: str
) -> None:
    at = 0
    while await stopped_and_continued(tmp_path / str(at), at, when):
        at += 1
    assert at > 40


async def test_a_late_completion_of_an_upload_lands_where_nobody_looks(tmp_path: Path) -> None:
    """The last request of an upload is under way for longer than its owner lives."""
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    await a.train(1)
    a.save(2, files=IN_PARTS)
    way, key = Stoppable(store), "step_2/g1/optim-rank00000-0001.safetensors"
    late: list[Callable[[], Awaitable[str]]] = []

    async def complete(*args: Any, **more: Any) -> None:
        late.append(partial(store.complete_upload, *args, **more))
        await anyio.sleep_forever()

    way.complete_upload = complete
    async with anyio.create_task_group() as group:
        group.start_soon(a.upload, way)
        while not late:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert (await b.start("latest")).step == 1
    b.save(2, files=IN_PARTS)
    await late[0]()
    assert key in await keys(store)
    await b.upload()
    assert key not in await keys(store)
    index = await assert_whole(store)
    assert index is not None and index.live["step_2"].generation == 2
    assert not index.superseded


async def test_two_uploaders_of_one_run_on_two_machines(tmp_path: Path) -> None:
    """Both work all the time; the one that was taken from ends with the other's name."""
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    await a.train(10)
    await b.start("latest", forced=True)
    outcomes: dict[str, OwnershipError | None] = {}

    async def work(name: str, machine: Machine) -> None:
        try:
            for step in range(11, 20):
                await machine.train(step)
            outcomes[name] = None
        except OwnershipError as error:
            outcomes[name] = error

    async with anyio.create_task_group() as group:
        group.start_soon(work, "a", a)
        group.start_soon(work, "b", b)
    assert outcomes["b"] is None
    assert "generation 2 of" in str(outcomes["a"])
    index = await assert_whole(store)
    assert index is not None
    assert [one.name for one in index.live.values()] == ["step_19@g2", "step_18@g2"]


# --- an owner that comes back while its successor starts ---------------------------------------------------


async def test_an_owner_that_was_taken_for_dead_and_commits_keeps_its_run(tmp_path: Path) -> None:
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    await a.train(10)
    before: list[bytes] = []

    async def wake(fetch: Any, *args: Any) -> str:
        source: str = await fetch(*args)
        await a.train(20)
        before.append((await store.get(MANIFEST_KEY))[0])
        return source

    with pytest.MonkeyPatch.context() as patched:
        real = Fetch.load
        patched.setattr(Fetch, "load", lambda self, *args: wake(partial(real, self), *args))
        with pytest.raises(OwnershipError, match="was taken for dead, but has committed step_20@g1"):
            await b.start("latest")
    assert (await store.get(MANIFEST_KEY))[0] == before[0]
    assert RunFile.read(b.directory) is None
    await a.train(30)
    assert (await b.start("latest", forced=True)).step == 30


async def test_a_step_that_is_pruned_while_it_is_loaded_is_passed_over(tmp_path: Path) -> None:
    """Taken by force from an owner that lives: it prunes what its successor was about to go on from."""
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    await a.train(10)
    woken: list[int] = []

    async def wake(fetch: Any, *args: Any) -> str:
        source: str = await fetch(*args)
        if not woken:
            woken.append(1)
            await a.train(20, 30, 40)
        return source

    with pytest.MonkeyPatch.context() as patched:
        real = Fetch.load
        patched.setattr(Fetch, "load", lambda self, *args: wake(partial(real, self), *args))
        started = await b.start("latest", forced=True)
    assert started.step == 40
    index = await assert_intact(store)
    assert index.latest == 40 and index.generation == started.run.generation
    with pytest.raises(OwnershipError):
        await a.train(50)
    assert await index_of(store) == index


# --- heartbeats of a service -------------------------------------------------------------------------------


async def test_a_service_that_lost_the_run_ends_at_its_next_beat(tmp_path: Path) -> None:
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    await a.train(10)
    beats = anyio.Event()

    async def sleep(_: float) -> None:
        await beats.wait()

    a.time.clocks = replace(a.time.clocks, sleep=sleep)
    service = make_service(a.directory, store, a.run, a.time)

    async def next_beat() -> None:
        await anyio.wait_all_tasks_blocked()
        await b.start("latest")
        beats.set()

    with pytest.raises(OwnershipError, match="generation 2 of"):
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(next_beat)
                await service.serve()
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
    index = await index_of(store)
    assert index.generation == 2


async def test_a_run_that_has_ended_is_taken_over_at_once(tmp_path: Path) -> None:
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    a.save(10)
    queue.put(a.directory.events(0), RunFinished(generation=1, step=10))
    await make_service(a.directory, store, a.run, a.time).serve()
    status = read_status(a.directory.status_file)
    assert status is not None and status.state == "drained"
    assert (await b.start("latest")).step == 10
    assert (b.watched_s, b.said) == (0.0, ["downloading step_10, 0.0 MB"])


async def test_a_failed_start_stands_in_nobodys_way(tmp_path: Path) -> None:
    store = MemoryStore()
    a, b = Machine(tmp_path / "a" / "run", store), Machine(tmp_path / "b" / "run", store)
    await a.start("auto")
    await a.train(10)

    a.die()
    await a.upload()

    def refuse() -> None:
        raise StartRefused("it does not fit")

    b.during_load = refuse
    with pytest.raises(StartRefused, match="it does not fit"):
        await b.start("latest")
    c = Machine(tmp_path / "c" / "run", store)
    await c.start("latest")
    assert c.watched_s == b.watched_s == 0, "A has ended, and B has said that its start failed"


async def test_the_same_directory_needs_no_waiting_whoever_died_on_it(tmp_path: Path) -> None:
    store = MemoryStore()
    a = Machine(tmp_path / "a" / "run", store)
    await a.start("auto")
    a.save(10)

    def die() -> None:
        raise KeyboardInterrupt

    a.during_load = die
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("uploader.heartbeat.Heart.release", no_release)
        with pytest.raises(KeyboardInterrupt):
            await a.start("latest")
    a.during_load = lambda: None
    assert (await a.start("latest")).step == 10
    assert a.watched_s == 0


async def no_release(*_: object) -> None:
    """As a process that was killed."""


async def test_a_copy_of_the_directory_is_another_machine(tmp_path: Path) -> None:
    store = MemoryStore()
    a = Machine(tmp_path / "a" / "run", store)
    await a.start("auto")
    a.save(10)
    shutil.copytree(a.path, tmp_path / "copy" / "run")
    (tmp_path / "copy" / "run" / "run.json").unlink()
    b = Machine(tmp_path / "copy" / "run", store)
    await b.start("auto")
    assert b.watched_s >= 60
