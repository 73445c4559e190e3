"""No key is used twice, also where the disk keeps steps for longer than the store."""

import os
from dataclasses import dataclass, field

import pytest
from damages import DAMAGES
from steps import FIRST, claim, keys, make_service, make_step, node_record, run_file, taken

from uploader import manifest
from uploader.generation import Claim
from uploader.layout import MANIFEST_KEY, RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.record import CommitRecord
from uploader.retention import Retention
from uploader.run import RunFile
from uploader.store.local import LocalStore
from uploader.store.memory import MemoryStore, Operation
from uploader.used import UsedKeys
from uploader.watch import read_step

pytestmark = pytest.mark.anyio

SHORT, LONG = Retention(keep_last=1), Retention(keep_last=9)


@dataclass
class Watched:
    """A store that tells which keys of steps were written after they had been deleted."""

    store: MemoryStore = field(default_factory=MemoryStore)
    gone: set[str] = field(default_factory=set)
    again: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.store.faults = self._see
        delete = self.store.delete

        async def deleted(keys: list[str]) -> None:
            self.gone |= {*keys}
            await delete(keys)

        self.store.delete = deleted  # type: ignore[assignment, method-assign]

    def _see(self, operation: Operation) -> None:
        if operation.name in ("put", "create_upload") and operation.key in self.gone:
            self.again.add(operation.key)

    def index(self) -> Manifest:
        return Manifest.model_validate_json(self.store._objects[MANIFEST_KEY][1])


def run_of(one: Claim, retention: Retention = SHORT) -> RunFile:
    return run_file(one, retention=retention).model_copy(update={"local_retention": LONG})


@pytest.fixture
async def watched(directory: RunDirectory) -> Watched:
    """Steps 1 to 5 are on the disk; in the store there is the last of them, and there were all."""
    watched = Watched()
    await taken(watched.store, FIRST)
    for step in range(1, 6):
        make_step(directory, step)
        await make_service(directory, watched.store, run_of(FIRST)).round()
    assert watched.index().names() == {"step_5@g1"}
    assert len([*directory.path.glob("step_*")]) == 5
    return watched


async def test_going_back_to_a_step_that_only_the_disk_has_kept(
    directory: RunDirectory, watched: Watched
) -> None:
    """A delete that was lost on its way may arrive any time: it takes nothing that is there."""
    second = claim((1, None), (2, 3))
    await taken(watched.store, second)
    service = make_service(directory, watched.store, run_of(second))
    await service.round()
    assert watched.index().live == {}
    make_step(directory, 7, 2)
    await service.round()
    assert [*watched.index().live] == ["step_7"]
    assert watched.again == set()
    assert {f"step_{step}" for step in (1, 2, 3, 7)} <= {one.name for one in directory.path.iterdir()}


@pytest.mark.parametrize("one", [FIRST, claim((1, None), (2, 5))])
async def test_a_store_that_is_to_keep_more_gets_nothing_back(
    directory: RunDirectory, watched: Watched, one: Claim
) -> None:
    await taken(watched.store, *([one] if one != FIRST else []))
    service = make_service(directory, watched.store, run_of(one, LONG))
    await service.round()
    make_step(directory, 6, one.generation)
    await service.round()
    assert [*watched.index().live] == ["step_6", "step_5"]
    assert watched.again == set()


async def test_an_index_from_a_backup_gets_its_steps_back_and_nothing_is_sent(
    directory: RunDirectory,
) -> None:
    watched = Watched()
    await taken(watched.store, FIRST)
    for step in range(1, 6):
        make_step(directory, step)
        await make_service(directory, watched.store, run_of(FIRST, LONG)).round()
        if step == 3:
            backup = watched.store._objects[MANIFEST_KEY]
    watched.store._objects[MANIFEST_KEY] = backup
    watched.store.operations.clear()
    await make_service(directory, watched.store, run_of(FIRST, LONG)).round()
    assert [*watched.index().live] == [f"step_{step}" for step in (5, 4, 3, 2, 1)]
    sent = {one.key.rpartition("/")[2] for one in watched.store.operations if one.name == "put"}
    assert sent == {"node-0000.json", "checkpoint.json", MANIFEST_KEY}


async def test_a_store_that_lost_everything_gets_everything_there_is(
    directory: RunDirectory, watched: Watched
) -> None:
    watched.store._objects.clear()
    watched.gone.clear()
    await make_service(directory, watched.store, run_of(FIRST, LONG)).round()
    assert [*watched.index().live] == [f"step_{step}" for step in (5, 4, 3, 2, 1)]


async def test_another_store_gets_everything_there_is(directory: RunDirectory, watched: Watched) -> None:
    """Whatever it has of the run: the keys were used in the former one."""
    other = MemoryStore()
    await taken(other, FIRST)
    entry = Entry.of(CommitRecord.merge([node_record(9).encode()]), RunKeys())
    other._keep(MANIFEST_KEY, manifest.committed(Manifest(run="run"), entry, FIRST).encode())
    run = run_of(FIRST, LONG).model_copy(update={"destination": "file:///another/run"})
    await make_service(directory, other, run).round()
    assert "step_1/g1/checkpoint.json" in await keys(other)


async def test_in_place_nothing_is_uploaded_and_nothing_noted(directory: RunDirectory) -> None:
    store = LocalStore(directory.path)
    await taken(store, FIRST)  # type: ignore[arg-type]
    make_step(directory, 1)
    run = run_file(destination=f"file://{directory.path}")
    await make_service(directory, store, run).round()  # type: ignore[arg-type]
    assert not directory.used_file.exists()


def noted(directory: RunDirectory, *steps: int) -> UsedKeys:
    used = UsedKeys(directory, "file:///elsewhere/run")
    local = [make_step(directory, step) for step in steps]
    index = Manifest(run="run")
    for one in local:
        entry = Entry.of(CommitRecord.merge([one.encoded]), RunKeys())
        index = manifest.committed(index, entry, FIRST)
    used.note(local, index)
    return used


def test_what_leaves_the_disk_is_forgotten_and_what_stays_is_written_once(directory: RunDirectory) -> None:
    directory.uploader_directory.mkdir(parents=True)
    used = noted(directory, 1, 2)
    written = os.stat(directory.used_file).st_ino
    again = UsedKeys(directory, "file:///elsewhere/run")
    assert again.names == {"step_1@g1", "step_2@g1"} == used.names
    assert again.pruned == set()
    here = [read_step(directory.step(2)), make_step(directory, 3)]
    again.note([read_step(directory.step(1)), *here], Manifest(run="run"))
    assert os.stat(directory.used_file).st_ino == written
    again.note(here, Manifest(run="run"))
    assert UsedKeys(directory, "file:///elsewhere/run").names == {"step_2@g1"}
    assert UsedKeys(directory, "file:///another/run").names == set()


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_made_anew(
    directory: RunDirectory, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    directory.uploader_directory.mkdir(parents=True)
    noted(directory, 1)
    directory.used_file.write_bytes(DAMAGES[damage](directory.used_file.read_bytes()))
    assert UsedKeys(directory, "file:///elsewhere/run").names == set()
    assert str(directory.used_file) in caplog.text


def test_a_full_disk_is_told_and_stops_nothing(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    directory.uploader_directory.mkdir(parents=True)
    monkeypatch.setattr("uploader.used.files.replace", full)
    assert noted(directory, 1).names == {"step_1@g1"}
    assert "No space left" in caplog.text
