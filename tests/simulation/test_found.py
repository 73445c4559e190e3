"""What the simulation found in the code, each as a test of its own, without the simulation."""

from collections.abc import Callable
from pathlib import Path

import pytest
from steps import (
    FIRST,
    assert_whole,
    claim,
    keys,
    make_service,
    make_step,
    no_wait,
    node_record,
    run_file,
    taken,
)

from uploader import files, manifest, prune
from uploader.errors import StoreDenied
from uploader.journal import Journal
from uploader.layout import MANIFEST_KEY, RunDirectory, RunKeys
from uploader.lease import Lease
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.record import CommitRecord, NodeRecord
from uploader.retention import Retention
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore
from uploader.watch import LocalSteps
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.settings.resume import Resume

pytestmark = pytest.mark.anyio


class Died(BaseException):
    """The process is gone."""


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    path = tmp_path / "run"
    path.mkdir()
    return RunDirectory(path)


def die() -> None:
    raise Died


async def start(
    directory: RunDirectory,
    store: MemoryStore,
    what: str | None,
    *,
    fresh: bool = False,
    meanwhile: Callable[[], object] = lambda: None,
) -> Started:
    """A start of a trainer; something may happen while it loads."""

    def load(_: Path, __: NodeRecord) -> None:
        meanwhile()

    retrying = RetryingStore(store, RetryPolicy(sleep=no_wait))
    run = run_file(claim((1, None))).model_copy(update={"generation": 0})
    takeover = Takeover(directory, run, retrying, load, lambda _: None, lease=Lease(forced=True))
    return await takeover.start(Resume.parse(what, directory.path) if what else None, fresh=fresh)


async def upload(directory: RunDirectory, store: MemoryStore, retention: Retention | None = None) -> None:
    run = RunFile.read(directory)
    assert run is not None
    if retention is not None:
        run = run.model_copy(update={"retention": retention})
        files.replace(directory.run_file, run.encode())
    await make_service(directory, store, run).once()


async def test_going_back_leaves_the_only_copy_of_a_namesake_alone(directory: RunDirectory) -> None:
    """Seed 2279: ``step_20@g1`` was downloaded over ``step_20@g2``, which was not durable; then it died."""
    store = MemoryStore()
    await start(directory, store, None)
    make_step(directory, 20, 1)
    await upload(directory, store)
    await start(directory, store, None, fresh=True)
    files.remove_tree(directory.step(20))
    make_step(directory, 20, 2)
    with pytest.raises(Died):
        await start(directory, store, "step_20@g1", meanwhile=die)
    [local], _ = LocalSteps(directory).scan()
    assert local.generation == 2
    assert (await start(directory, store, "step_20@g1")).step == 20
    assert not [path.name for path in directory.path.iterdir() if path.name.startswith(".fork")]


async def test_what_was_half_sent_and_then_skipped_goes_with_the_next_start(directory: RunDirectory) -> None:
    """Seeds 25 and 30: objects of a step that leads to now, but that nobody will ever list."""
    store, index = MemoryStore(), Manifest(run="run")
    for step in (20, 30):
        index = manifest.committed(index, Entry.of(commit_record(step), RunKeys()), FIRST)
    for key in ("step_25/g1/model", "step_25/g1/checkpoint.json"):
        store._keep(key, b"by an owner that died before it was listed")
    journal = Journal(directory)
    assert await prune.sweep(store, index, FIRST, [], journal, 60.0) == 0, "its owner may be at work on it"
    second = claim((1, None), (2, 30))
    assert await prune.sweep(store, manifest.adopted(index, second), second, [], journal, 60.0) == 2
    assert await keys(store) == []


async def test_a_record_that_came_late_is_no_step_to_go_on_from() -> None:
    """Seed 992: a request to create the record of a step that was pruned meanwhile."""
    store = MemoryStore()
    file = ManifestFile(store, "run", RunKeys())
    await taken(store, FIRST)
    for step in (10, 30, 40):
        record = commit_record(step)
        store._keep(RunKeys().commit_record(step, 1), record.encode())
        for one in record.files if step == 30 else ():  # of the others the files are gone
            store._keep(RunKeys().step_prefix(step, 1) + one.path, bytes(one.size_bytes))
    listed = Entry.of(commit_record(20), RunKeys())
    index = manifest.committed(Manifest(run="run"), listed, FIRST)
    entries, errors = await file.unlisted(index, FIRST)
    assert [entry.step for entry in entries] == [30]
    assert [error.subject for error in errors] == ["memory:///step_40/g1/checkpoint.json"]


async def test_a_fetched_copy_is_not_sent_again_when_its_owner_has_pruned_it(tmp_path: Path) -> None:
    """Seed 4434: another machine had fetched ``step_20@g1``, and died; the owner pruned it."""
    store = MemoryStore()
    owner, other = (RunDirectory(tmp_path / machine / "run") for machine in "ab")
    for one in (owner, other):
        one.path.mkdir(parents=True)
    await start(owner, store, None)
    make_step(owner, 20, 1)
    await upload(owner, store)
    with pytest.raises(Died):
        await start(other, store, "latest", meanwhile=die)
    make_step(owner, 30, 1)
    await upload(owner, store, Retention(keep_last=1))
    assert "step_20/g1/checkpoint.json" not in await keys(store)
    assert (await start(other, store, "step_20")).step == 20
    await upload(other, store)
    assert not [key for key in await keys(store) if key.startswith("step_20/")]
    store._objects.clear()  # of a store that has lost everything, no key is used
    await upload(other, store)
    assert "step_20/g1/checkpoint.json" in await keys(store)


async def two_machines(tmp_path: Path, store: MemoryStore) -> tuple[RunDirectory, RunDirectory]:
    """An owner's, with a run that has begun, and another one."""
    owner, other = (RunDirectory(tmp_path / machine / "run") for machine in "ab")
    for one in (owner, other):
        one.path.mkdir(parents=True)
    await start(owner, store, None)
    return owner, other


async def test_what_was_pruned_since_it_was_found_is_not_listed_again(tmp_path: Path) -> None:
    """Seeds 16717 and 20509: found by a start elsewhere when no manifest knew it, then listed and pruned."""
    store = MemoryStore()
    owner, other = await two_machines(tmp_path, store)
    unaware = store._objects[MANIFEST_KEY]
    make_step(owner, 10)
    await upload(owner, store)
    both = dict(store._objects)
    make_step(owner, 30)
    await upload(owner, store, Retention(keep_last=1))
    pruned = dict(store._objects)
    store._objects = {**both, **pruned, MANIFEST_KEY: unaware}

    def owner_goes_on() -> None:
        for key in both.keys() - pruned.keys():
            del store._objects[key]
        store._objects[MANIFEST_KEY] = pruned[MANIFEST_KEY]

    assert (await start(other, store, "latest", meanwhile=owner_goes_on)).step == 30
    index = await assert_whole(store)
    assert index is not None
    assert index.names() == {"step_30@g1"}


async def test_what_nobody_lived_to_list_outlives_a_start_from_scratch(tmp_path: Path) -> None:
    """Seeds 18844, 24563 and 31834: the uploader knew the start before the manifest knew the step."""
    store = MemoryStore()
    owner, other = await two_machines(tmp_path, store)
    unaware = store._objects[MANIFEST_KEY]
    make_step(owner, 40)
    await upload(owner, store)
    store._objects[MANIFEST_KEY] = unaware

    def dies_as_it_adopts(operation: Operation) -> Fault | None:
        adopts = operation == Operation("put", MANIFEST_KEY) and other.run_file.exists()
        return Fault(StoreDenied("the process died")) if adopts else None

    store.faults = dies_as_it_adopts
    with pytest.raises(StoreDenied):
        await start(other, store, None, fresh=True)
    store.faults = None
    await upload(other, store)
    index = await assert_whole(store)
    assert index is not None
    assert {*index.superseded} == {"step_40@g1"}


async def test_what_a_start_elsewhere_may_go_on_from_is_not_swept(directory: RunDirectory) -> None:
    """Seed 16717: the owner took for debris what its predecessor had committed and nobody had listed."""
    store = MemoryStore()
    index = manifest.committed(Manifest(run="run"), Entry.of(commit_record(20), RunKeys()), FIRST)
    second = claim((1, None), (2, 50))
    index = manifest.adopted(index, second)
    for step in (10, 20, 40, 60):
        store._keep(f"step_{step}/g1/checkpoint.json", b"")
    await prune.sweep(store, index, second, [], Journal(directory), 60.0)
    assert await keys(store) == ["step_20/g1/checkpoint.json", "step_40/g1/checkpoint.json"]


def commit_record(step: int) -> CommitRecord:
    return CommitRecord.merge([node_record(step).encode()])
