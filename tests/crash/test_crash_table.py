"""Each row of ARCHITECTURE.md's table «dies after … on restart …», with the real code on a store in memory.

A death is simulated where it hurts: file operations stop after the one named, or no request reaches the
store after the one named. The restart is a new trainer's takeover, a new uploader's round, or both.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from steps import NOW, assert_whole, keys, make_service, no_wait, uploads

from uploader import files, layout
from uploader.errors import StoreDenied, WmtpError
from uploader.events import CheckpointSaved, RunFinished
from uploader.journal import Journal
from uploader.layout import MANIFEST_KEY, RunDirectory
from uploader.queue import EventQueue, put
from uploader.record import NodeRecord
from uploader.retention import Retention
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.settings import UploadSettings
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore
from uploader.watch import LocalSteps
from wmtp.checkpoint.disk import Announce, Answer, Disk, FileSource, Rename, Write
from wmtp.checkpoint.disk import Operation as FileOperation
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.checkpoint.session import trainer_lock
from wmtp.checkpoint.writer import Description, write_checkpoint
from wmtp.settings.resume import Resume

pytestmark = pytest.mark.anyio

BIG = b"w" * (17 * 1024**2)
"""Three parts of 8 MiB."""


class Died(BaseException):
    """The process is gone: nobody catches this."""


@dataclass
class World:
    """One run directory, one store, and the processes that come and go."""

    directory: RunDirectory
    store: MemoryStore = field(default_factory=MemoryStore)
    loaded: list[int] = field(default_factory=list)

    async def start_trainer(self, what: str = "auto", load: Callable[[], None] | None = None) -> Started:
        """A start of the trainer, up to its first step."""

        def loads(path: Path, record: NodeRecord) -> None:
            if load is not None:
                load()
            self.loaded.append(record.step)

        run = RunFile(
            run="run",
            destination="file:///elsewhere/run",
            retention=Retention(keep_last=2),
            upload=UploadSettings(part_size_bytes=8 * 1024**2),
        )
        store = RetryingStore(self.store, RetryPolicy(sleep=no_wait))
        with trainer_lock(self.directory):
            return await Takeover(self.directory, run, store, loads, lambda _: None).start(
                Resume.parse(what, self.directory.path)
            )

    def save(self, step: int, started: Started, *, dies_after: Callable[[FileOperation], bool]) -> None:
        """A save of the trainer that dies after the file operation chosen."""
        what = Description("run", step, started.run.generation, NOW, {}, {})
        sources = [
            FileSource("model-rank00000-0001.safetensors", memoryview(BIG)),
            FileSource("state-rank00000.json", memoryview(b"{}")),
        ]

        class Dying(Disk):
            files_at_once = 1

            def perform(self, operation: FileOperation) -> Answer:
                answer = super().perform(operation)
                if dies_after(operation):
                    raise Died
                return answer

        with contextlib.suppress(Died):
            Dying().run(write_checkpoint(self.directory, sources, what))

    def saved(self, step: int, started: Started) -> None:
        self.save(step, started, dies_after=lambda _: False)

    async def upload(self) -> None:
        """A round of an uploader that lives."""
        run = RunFile.read(self.directory)
        assert run is not None
        self.store.faults = None
        await make_service(self.directory, self.store, run).once()

    async def upload_dies(self, at: Callable[[Operation], bool], when: str = "after") -> None:
        """A round of an uploader of which nothing reaches the store after the request chosen."""
        run, dead = RunFile.read(self.directory), False
        assert run is not None

        def faults(operation: Operation) -> Fault | None:
            nonlocal dead
            if dead:
                return Fault(StoreDenied("the process died"))
            dead = at(operation)
            return Fault(StoreDenied("the process died"), when) if dead else None  # type: ignore[arg-type]

        self.store.faults = faults
        with pytest.raises(WmtpError):
            await make_service(self.directory, self.store, run).once()
        assert dead, "the request never came"
        self.store.faults = None

    async def live(self) -> list[int]:
        """The steps a foreign reader finds, newest first, after a look that nothing is half there."""
        index = await assert_whole(self.store)
        return [] if index is None else [entry.step for entry in index.live.values()]

    def local(self) -> list[int]:
        return [one.step for one in LocalSteps(self.directory).scan()[0]]


@pytest.fixture
def world(directory: RunDirectory) -> World:
    return World(directory)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)


async def a_durable_step(world: World) -> Started:
    """The usual beginning: step 10 is durable and step 20 is being made."""
    started = await world.start_trainer()
    world.saved(10, started)
    await world.upload()
    assert await world.live() == [10]
    return started


def writes(name: str) -> Callable[[FileOperation], bool]:
    return lambda operation: isinstance(operation, Write) and operation.path.name == name


def is_request(name: str, key: str) -> Callable[[Operation], bool]:
    return lambda operation: operation.name == name and re.search(key, operation.key) is not None


async def expect_resumed_from(world: World, step: int) -> Started:
    """The next trainer goes on after ``step``, and no half-written directory is left."""
    started = await world.start_trainer()
    assert started.step == step
    assert not [path for path in world.directory.path.iterdir() if path.name.endswith(".tmp")]
    return started


async def expect_durable(world: World, *steps: int) -> None:
    """The next uploader makes exactly these steps durable and leaves no debris."""
    await world.upload()
    assert await world.live() == sorted(steps, reverse=True)
    assert await uploads(world.store) == []


async def test_writing_shards(world: World) -> None:
    started = await a_durable_step(world)
    world.save(20, started, dies_after=writes("model-rank00000-0001.safetensors"))
    assert world.local() == [10]
    await expect_resumed_from(world, 10)
    await expect_durable(world, 10)


async def test_some_shards_sent_ahead(world: World) -> None:
    started = await a_durable_step(world)
    world.save(20, started, dies_after=lambda operation: isinstance(operation, Announce))
    await world.upload()
    assert await keys(world.store, "step_20/") == ["step_20/g1/model-rank00000-0001.safetensors"]
    assert await world.live() == [10]
    await expect_resumed_from(world, 10)
    await expect_durable(world, 10)
    assert await keys(world.store, "step_20/") == [], "nothing will ever name it"


async def test_node_record_before_rename(world: World) -> None:
    started = await a_durable_step(world)
    world.save(20, started, dies_after=writes(layout.node_record(0)))
    assert world.local() == [10]
    await expect_resumed_from(world, 10)
    await expect_durable(world, 10)


async def test_rename_before_event(world: World) -> None:
    started = await a_durable_step(world)
    world.save(20, started, dies_after=lambda operation: isinstance(operation, Rename))
    await expect_durable(world, 10, 20)
    await expect_resumed_from(world, 20)


async def test_event_before_upload(world: World) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    queue = EventQueue(world.directory.events(0))
    assert queue.receive()[-1] == CheckpointSaved(generation=1, step=20)
    await expect_durable(world, 10, 20)
    assert queue.receive() == []


def parts_sent(store: MemoryStore) -> list[int]:
    return sorted(one.number for one in store.operations if one.name == "upload_part")


async def test_upload_begun_before_journal(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)

    def die(*_: object) -> None:
        raise Died

    run = RunFile.read(world.directory)
    with monkeypatch.context() as patched, pytest.raises(BaseExceptionGroup) as died:
        patched.setattr(Journal, "begin", die)
        await make_service(world.directory, world.store, run).once()
    assert died.group_contains(Died)
    assert len(await uploads(world.store)) == 1
    assert Journal(world.directory).all() == []
    await expect_durable(world, 10, 20)


async def test_some_parts_uploaded(world: World) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload_dies(lambda one: one.number == 1)
    assert await world.live() == [10]
    assert await uploads(world.store) == ["step_20/g1/model-rank00000-0001.safetensors"]
    world.store.operations.clear()
    await expect_durable(world, 10, 20)
    assert parts_sent(world.store) == [2, 3]
    assert Journal(world.directory).all() == []


async def test_file_completed_before_its_answer(world: World) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload_dies(is_request("complete_upload", "step_20/g1/model"))
    assert await world.live() == [10]
    assert Journal(world.directory).find("step_20/g1/model-rank00000-0001.safetensors") is not None
    world.store.operations.clear()
    await expect_durable(world, 10, 20)
    assert parts_sent(world.store) == []
    assert Journal(world.directory).all() == []


async def test_files_before_commit_record(world: World) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload_dies(is_request("put", "step_20/g1/checkpoint.json"), when="before")
    assert await world.live() == [10]
    world.store.operations.clear()
    await expect_durable(world, 10, 20)
    assert not [one for one in world.store.operations if one.name == "upload_part"], "sent twice"


async def test_commit_record_before_manifest(world: World) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload_dies(is_request("put", MANIFEST_KEY), when="before")
    assert "step_20/g1/checkpoint.json" in await keys(world.store)
    assert await world.live() == [10]
    await expect_durable(world, 10, 20)


async def test_manifest_before_acknowledge(world: World) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload()
    put(world.directory.events(0), CheckpointSaved(generation=1, step=20))  # never acknowledged
    put(world.directory.events(0), RunFinished(generation=1, step=20))
    world.store.operations.clear()
    await expect_durable(world, 10, 20)
    assert not [one for one in world.store.operations if one.name in ("put", "upload_part")]
    assert EventQueue(world.directory.events(0)).receive() == []


async def three_steps(world: World) -> Started:
    """Retention keeps two: step 10 is to go when step 30 is durable."""
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload()
    world.saved(30, started)
    return started


async def expect_pruned(world: World) -> None:
    await expect_durable(world, 20, 30)
    assert not [key for key in await keys(world.store) if key.startswith("step_10/")]
    assert world.local() == [30, 20]
    assert b"step_10@" not in (await world.store.get(MANIFEST_KEY))[0]


async def test_marked_deleting(world: World) -> None:
    await three_steps(world)
    await world.upload_dies(is_request("delete", "step_10/g1/checkpoint.json"), when="before")
    assert b"step_10@g1" in (await world.store.get(MANIFEST_KEY))[0]
    assert await world.live() == [30, 20]
    await expect_pruned(world)


async def test_commit_record_deleted(world: World) -> None:
    await three_steps(world)
    await world.upload_dies(is_request("delete", "step_10/g1/checkpoint.json"))
    left = await keys(world.store, "step_10/")
    assert left and "step_10/g1/checkpoint.json" not in left
    await expect_pruned(world)


async def test_objects_deleted_before_drop(world: World) -> None:
    await three_steps(world)
    await world.upload_dies(is_request("delete", "step_10/g1/model"))
    assert await keys(world.store, "step_10/") == []
    assert b"step_10@g1" in (await world.store.get(MANIFEST_KEY))[0]
    await expect_pruned(world)


async def test_moved_to_trash(world: World) -> None:
    await three_steps(world)
    files.move_to_trash(world.directory.step(10), world.directory.trash)
    await expect_pruned(world)
    assert not world.directory.trash.exists() or not any(world.directory.trash.iterdir())


async def test_generation_taken(world: World) -> None:
    await a_durable_step(world)

    def die() -> None:
        raise Died

    with pytest.raises(Died):
        await world.start_trainer(load=die)
    assert layout.generation_key(2) in await keys(world.store)
    assert await world.live() == [10]
    started = await expect_resumed_from(world, 10)
    assert started.run.generation == 3


async def test_loaded_before_adoption(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload()

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(RunFile, "write", die)
        with pytest.raises(Died):
            await world.start_trainer("step_10")
    assert world.loaded[-1] == 10
    assert await world.live() == [20, 10], "nothing may be superseded by a start that did not happen"
    await expect_resumed_from(world, 20)


async def test_run_file_before_adoption(world: World) -> None:
    started = await a_durable_step(world)
    world.saved(20, started)
    await world.upload()

    def faults(operation: Operation) -> Fault | None:
        dies = operation.name == "put" and operation.key == MANIFEST_KEY
        return Fault(StoreDenied("the process died")) if dies else None

    world.store.faults = faults
    with pytest.raises(StoreDenied):
        await world.start_trainer("step_10")
    run = RunFile.read(world.directory)
    assert run is not None and run.generation == 2
    assert await world.live() == [20, 10]
    await expect_durable(world, 10)
    await expect_resumed_from(world, 10)


async def test_half_restored(world: World) -> None:
    await a_durable_step(world)
    files.remove_tree(world.directory.step(10))

    def faults(operation: Operation) -> Fault | None:
        dies = operation.name == "get_range" and operation.key.endswith("node-0000.json")
        return Fault(StoreDenied("the process died")) if dies else None

    world.store.faults = faults
    with pytest.raises(StoreDenied):
        await world.start_trainer()
    world.store.faults = None
    assert world.local() == []
    await expect_resumed_from(world, 10)
    assert world.local() == [10]
    await expect_durable(world, 10)


def test_the_table_in_the_architecture_names_these_tests() -> None:
    text = (Path(__file__).parents[2] / "ARCHITECTURE.md").read_text()
    table = text[text.index("| dies after | on restart |") :].split("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    tests = [name.removeprefix("test_") for name in globals() if name.startswith("test_")]
    tests.remove("the_table_in_the_architecture_names_these_tests")
    assert rows == tests
