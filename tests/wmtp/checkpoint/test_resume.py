"""Where a run goes on, and who owns it then: one answer, whatever is damaged, lost or simultaneous."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import AUTO, LATEST, Machine, index_of, live, said, step_named
from toys import NOW, claim, damage, keys_of, make_step, take, upload

from uploader import generation, layout, manifest
from uploader.errors import (
    CorruptError,
    DiskError,
    NothingToResume,
    OwnershipError,
    StartRefused,
    StoreDenied,
    StoreUnavailable,
)
from uploader.generation import Claim
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest import Entry, Manifest
from uploader.record import NodeRecord
from uploader.run import RunFile
from uploader.store.local import LocalStore
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.watch import LocalStep
from wmtp.checkpoint.candidates import Candidate, Found, decide, own_step
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.settings.resume import Resume

pytestmark = pytest.mark.anyio


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def here(tmp_path: Path, store: MemoryStore) -> Machine:
    return Machine(tmp_path / "here" / "run", store)


@pytest.fixture
def there(tmp_path: Path, store: MemoryStore) -> Machine:
    return Machine(tmp_path / "there" / "run", store)


# --- decide ------------------------------------------------------------------------------------------------


def entry(step: int, number: int) -> Entry:
    record = RunKeys().commit_record(step, number)
    return Entry(step=step, generation=number, record=record, size_bytes=1, created_at=NOW)


def local_step(step: int, number: int) -> LocalStep:
    record = NodeRecord(
        run="run", step=step, generation=number, world_size=1, created_at=NOW, files=[], node=0, nodes=1,
        ranks=[0],
    )  # fmt: skip
    return LocalStep(Path(f"/run/step_{step}"), record, b"")


def found_by(
    owner: Claim, *, local: Iterable[tuple[int, int]] = (), stored: Iterable[tuple[int, int]] = ()
) -> Found:
    index = Manifest(run="run")
    for key in stored:
        index = manifest.committed(index, entry(*key), owner)
    return Found("s3://bucket/run", index, [local_step(*key) for key in local], owner)


FIRST = claim((1, None))
REWOUND = claim((1, None), (2, 10))
"""Generation 2 went on after step 10, so what generation 1 did after that leads nowhere."""


def names(candidates: list[Candidate]) -> list[str]:
    return [layout.step_at(one.step, one.generation) for one in candidates]


@pytest.mark.parametrize("resume", [LATEST, AUTO])
def test_latest_and_auto_try_the_newest_first(resume: Resume) -> None:
    found = found_by(FIRST, local=[(20, 1), (30, 1)], stored=[(10, 1), (20, 1)])
    newest, both, stored = decide(found, resume, fresh=False)
    assert names([newest, both, stored]) == ["step_30@g1", "step_20@g1", "step_10@g1"]
    assert (newest.local is not None, newest.entry is not None) == (True, False)
    assert (both.local is not None, both.entry is not None) == (True, True)
    assert (stored.local is not None, stored.entry is not None) == (False, True)


def test_latest_needs_something_and_auto_does_not() -> None:
    with pytest.raises(NothingToResume, match=r"there is no checkpoint; .*--resume auto"):
        decide(found_by(Claim()), LATEST, fresh=False)
    assert decide(found_by(Claim()), AUTO, fresh=False) == []


def test_a_step_is_that_step_only() -> None:
    found = found_by(FIRST, stored=[(10, 1), (20, 1)])
    assert names(decide(found, step_named(10), fresh=False)) == ["step_10@g1"]
    with pytest.raises(NothingToResume, match="there is no step_11; there are: step_20, step_10"):
        decide(found, step_named(11), fresh=False)


def test_a_superseded_step_is_found_by_its_generation() -> None:
    found = found_by(REWOUND, local=[(30, 1)], stored=[(10, 1), (20, 1), (20, 2)])
    assert names(decide(found, LATEST, fresh=False)) == ["step_20@g2", "step_10@g1"]
    assert names(decide(found, step_named(20), fresh=False)) == ["step_20@g2"]
    assert names(decide(found, step_named(20, 1), fresh=False)) == ["step_20@g1"]
    assert names(decide(found, step_named(30, 1), fresh=False)) == ["step_30@g1"]
    assert names(decide(found, step_named(10, 1), fresh=False)) == ["step_10@g1"]
    with pytest.raises(NothingToResume):
        decide(found, step_named(30), fresh=False)


ELSEWHERE = Resume("s3://other/run", "location", location=Location("other", "run"))


@pytest.mark.parametrize("resume", [None, ELSEWHERE])
def test_a_start_from_scratch_leaves_nothing_behind_unasked(resume: Resume | None) -> None:
    assert decide(found_by(Claim()), resume, fresh=False) == []
    for found in (found_by(FIRST, local=[(5, 1)]), found_by(FIRST, stored=[(5, 1)])):
        with pytest.raises(StartRefused, match=r"step_5.*--resume latest.*--run-name.*--fresh"):
            decide(found, resume, fresh=False)
        assert decide(found, resume, fresh=True) == []


def test_superseded_steps_alone_are_named_too() -> None:
    found = found_by(REWOUND, local=[(30, 1)])
    assert found.live() == []
    with pytest.raises(StartRefused, match=r"step_30@g1"):
        decide(found, None, fresh=False)
    with pytest.raises(NothingToResume):
        decide(found, LATEST, fresh=False)


keys = st.tuples(st.integers(0, 40), st.integers(1, 3))


@given(st.sets(keys), st.sets(keys), st.integers(0, 40), st.integers(0, 40))
def test_latest_is_the_newest_that_leads_to_now(
    local: set[tuple[int, int]], stored: set[tuple[int, int]], second: int, third: int
) -> None:
    owner = claim((1, None), (2, second), (3, max(second, third)))
    by_step = {step: (step, number) for step, number in sorted(local)}  # a directory holds a step once
    found = found_by(owner, local=by_step.values(), stored=stored)
    leading = {key for key in {*by_step.values(), *stored} if owner.is_live(*key)}
    if not leading:
        with pytest.raises(NothingToResume, match="the run went on after step"):
            decide(found, AUTO, fresh=False)
        return
    candidates = decide(found, AUTO, fresh=False)
    steps = [one.step for one in candidates]
    assert steps == sorted(steps, reverse=True)
    assert {(one.step, one.generation) for one in candidates} <= leading
    assert max(steps, default=None) == max((step for step, _ in leading), default=None)
    both = [*candidates, *found.superseded()]
    assert sorted((one.step, one.generation) for one in both) == sorted({*by_step.values(), *stored})


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("s3://bucket/runs/run", LATEST),
        ("s3://bucket/runs/run/", LATEST),
        ("/disk/run", LATEST),
        ("s3://bucket/runs/run/step_7", step_named(7)),
        ("/disk/run/step_7", step_named(7)),
        ("s3://bucket/runs/run10", None),
        ("s3://bucket/runs/run/other", None),
        ("/disk/run10/step_7", None),
    ],
)
def test_a_path_inside_the_run_is_no_fork(text: str, meant: Resume | None) -> None:
    run = Location.parse("s3://bucket/runs/run")
    assert own_step(Location.parse(text), run, RunDirectory(Path("/disk/run"))) == meant


# --- takeover ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("resume", [None, AUTO])
async def test_from_scratch(here: Machine, store: MemoryStore, resume: Resume | None) -> None:
    started = await here.start(resume)
    assert (started.step, started.source, started.skipped, here.loaded) == (0, "", [], [])
    assert started.run == here.owner
    assert started.run.generation == 1
    assert (await index_of(store)).generation == 1
    taken = ["generations/0001.heartbeat.json", "generations/0001.json"]
    assert await keys_of(store) == [*taken, "manifest.json"]
    assert (await generation.read(store, 1)).lineage == started.run.lineage


async def test_latest_of_nothing_takes_nothing(here: Machine, store: MemoryStore) -> None:
    with pytest.raises(NothingToResume):
        await here.start(LATEST)
    assert await keys_of(store) == []
    assert RunFile.read(here.directory) is None


async def test_latest_on_this_disk_is_not_downloaded(here: Machine, store: MemoryStore) -> None:
    await here.trained(10)
    here.save(20)
    store.operations.clear()
    started = await here.start(LATEST)
    assert (started.step, started.source) == (20, str(here.directory.step(20)))
    assert here.loaded == [said(20)]
    assert not any(one.name == "get_range" for one in store.operations)
    assert started.run.generation == 2
    assert started.run.lineage == claim((1, None), (2, 20)).lineage
    assert await live(store) == ["step_10@g1"]


async def test_latest_in_the_store_is_downloaded(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    here.forget()
    started = await here.start(LATEST)
    assert (started.step, started.source) == (20, "memory:///step_20/g1")
    assert here.loaded == [said(20)]
    assert here.local() == ["step_20@g1"]
    assert await live(store) == ["step_20@g1", "step_10@g1"]
    assert any("downloading step_20" in line for line in here.said)


async def test_a_damaged_local_copy_gives_way_to_the_stored_one(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    damage(here.directory.step(20) / "data.bin")
    started = await here.start(LATEST)
    assert (started.step, started.source) == (20, "memory:///step_20/g1")
    assert here.loaded == [said(20)]
    assert any("differ from the record; using the copy in the store" in line for line in here.said)
    assert (here.directory.step(20) / "data.bin").read_text() == said(20)


async def test_a_local_record_that_is_damaged_gives_way_too(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    (here.directory.step(20) / "node-0000.json").write_bytes(b"{")
    started = await here.start(LATEST)
    assert (started.step, started.source) == (20, "memory:///step_20/g1")
    assert any("passed over" in line and "node-0000.json" in line for line in here.said)


async def test_a_local_copy_that_was_just_pruned_gives_way_too(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    takeover = here.takeover()
    found = await takeover.look()
    shutil.rmtree(here.directory.step(20))

    async def look() -> Found:
        return found

    takeover.look = look  # type: ignore[method-assign]
    started = await takeover.start(LATEST)
    assert (started.step, started.source) == (20, "memory:///step_20/g1")


async def damage_stored(store: MemoryStore, step: int, number: int = 1) -> None:
    key = f"step_{step}/g{number}/data.bin"
    data, _ = await store.get(key)
    await store.put(key, bytes([data[0] ^ 1]) + data[1:])


async def test_where_both_copies_are_damaged_the_step_before_is_used(
    here: Machine, store: MemoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    await here.trained(10, 20)
    damage(here.directory.step(20) / "data.bin")
    await damage_stored(store, 20)
    started = await here.start(LATEST)
    assert (started.step, here.loaded) == (10, [said(10)])
    assert len(started.skipped) == 1
    assert "differ from the record" in started.skipped[0]
    assert "step_20 is passed over" in caplog.text
    assert started.run.lineage.branches[-1].after_step == 10
    assert await live(store) == ["step_10@g1"]
    assert [*(await index_of(store)).superseded] == ["step_20@g1"]
    assert started.run.generation == await generation.newest(store)


async def test_where_nothing_is_intact_nothing_is_changed(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    before = await index_of(store), here.owner
    for step in (10, 20):
        damage(here.directory.step(step) / "data.bin")
        await damage_stored(store, step)
    with pytest.raises(CorruptError, match=r"no checkpoint is intact.*--fresh"):
        await here.start(AUTO)
    assert (await index_of(store), here.owner) == before


async def test_a_damaged_step_that_was_asked_for_is_an_error(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    damage(here.directory.step(20) / "data.bin")
    await damage_stored(store, 20)
    with pytest.raises(CorruptError, match="differ from the record"):
        await here.start(step_named(20))
    assert here.loaded == []
    assert await live(store) == ["step_20@g1", "step_10@g1"]


async def test_an_unreadable_record_is_no_proof_that_there_is_nothing(here: Machine) -> None:
    await here.start(None)
    here.save(10)
    (here.directory.step(10) / "node-0000.json").write_bytes(b"{")
    for resume in (AUTO, LATEST, None):
        with pytest.raises(CorruptError, match=r"node-0000\.json"):
            await here.start(resume)
    started = await here.start(None, fresh=True)
    assert started.step == 0


async def test_a_store_that_cannot_be_reached_is_never_taken_for_absence(
    here: Machine, store: MemoryStore
) -> None:
    await here.trained(10, 20)
    here.forget()
    store.faults = lambda one: Fault(StoreDenied("403", subject=one.key)) if one.name == "get_range" else None
    with pytest.raises(StoreDenied):
        await here.start(AUTO)
    store.faults = lambda one: Fault(StoreDenied("403", subject=one.key)) if one.name == "get" else None
    with pytest.raises(StoreDenied):
        await here.start(AUTO)
    store.faults = None
    assert await live(store) == ["step_20@g1", "step_10@g1"]
    assert (await here.start(AUTO)).step == 20


async def test_a_lost_manifest_is_made_again_from_the_records(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    await store.delete(["manifest.json"])
    with pytest.raises(StartRefused):
        await here.start(None)
    started = await here.start(LATEST)
    assert started.step == 20
    assert await live(store) == ["step_20@g1", "step_10@g1"]


async def test_steps_of_a_trainer_without_generations_stay_live(here: Machine, store: MemoryStore) -> None:
    steps = [make_step(here.directory, step, 0) for step in (10, 20)]
    await upload(store, Claim(), *steps)
    started = await here.start(LATEST)
    assert started.step == 20
    assert await live(store) == ["step_20@g0", "step_10@g0"]
    assert (await here.start(step_named(10))).step == 10
    assert await live(store) == ["step_10@g0"]


# --- rewinding and starting over ---------------------------------------------------------------------------


async def test_rewinding_leaves_newer_steps_behind(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20, 30)
    assert (await here.start(step_named(10))).step == 10
    index = await index_of(store)
    assert await live(store) == ["step_10@g1"]
    assert [*index.superseded] == ["step_30@g1", "step_20@g1"]
    assert index.latest == 10
    assert {entry.superseded_by for entry in index.superseded.values()} == {2}

    await here.upload(here.save(20))
    here.loaded.clear()
    started = await here.start(LATEST)
    assert (started.step, here.loaded) == (20, [said(20, 2)])
    assert started.run.lineage == claim((1, None), (2, 10), (3, 20)).lineage
    assert await live(store) == ["step_20@g2", "step_10@g1"]


async def test_a_superseded_step_becomes_live_again_when_gone_back_to(
    here: Machine, store: MemoryStore
) -> None:
    await here.trained(10, 20, 30)
    await here.start(step_named(10))
    started = await here.start(step_named(30, 1))
    assert (started.step, here.loaded[-1]) == (30, said(30))
    assert started.run.lineage == claim((1, None), (3, 30)).lineage
    assert await live(store) == ["step_30@g1", "step_20@g1", "step_10@g1"]


async def test_starting_over_is_refused_and_can_be_forced(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)
    with pytest.raises(StartRefused, match="step_20, step_10"):
        await here.start(None)
    assert here.owner.generation == await generation.newest(store) == 1
    started = await here.start(None, fresh=True)
    assert (started.step, started.run.generation) == (0, 2)
    assert await live(store) == []
    with pytest.raises(NothingToResume):
        await here.start(LATEST)
    await here.upload(here.save(5))
    here.loaded.clear()
    assert (await here.start(LATEST)).step == 5
    assert here.loaded == [said(5, 2)]


# --- two machines ------------------------------------------------------------------------------------------


async def test_the_first_machine_comes_back_to_what_the_second_made(
    here: Machine, there: Machine, store: MemoryStore
) -> None:
    await here.trained(10)
    here.save(20)  # never uploaded: the machine went away
    started = await there.start(LATEST)
    assert (started.step, started.run.generation) == (10, 2)
    await there.upload(there.save(15))

    here.loaded.clear()
    started = await here.start(LATEST)
    assert (started.step, here.loaded) == (15, [said(15, 2)])
    assert "step_20@g1" in here.local()  # still there for who asks
    assert started.run.lineage == claim((1, None), (2, 10), (3, 15)).lineage
    assert await live(store) == ["step_15@g2", "step_10@g1"]
    await here.start(step_named(20, 1))
    assert here.loaded[-1] == said(20)


async def test_the_first_machine_cannot_go_on_unasked(
    here: Machine, there: Machine, store: MemoryStore
) -> None:
    await here.trained(10)
    late = here.save(20)
    await there.start(LATEST)
    with pytest.raises(OwnershipError, match="generation 2"):
        await here.upload(late)
    assert await live(store) == ["step_10@g1"]


class Rendezvous(MemoryStore):
    """Two starts have both looked before either takes its generation."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting, self.both = 0, anyio.Event()

    async def put(self, key: str, *args: Any, **more: Any) -> str:
        if key == "generations/0002.json":
            self.waiting += 1
            if self.waiting == 2:
                self.both.set()
            await self.both.wait()
        return await super().put(key, *args, **more)


async def test_of_two_starts_at_once_one_wins(tmp_path: Path) -> None:
    store = Rendezvous()
    here, there = (Machine(tmp_path / name / "run", store) for name in ("here", "there"))
    await here.trained(10)
    outcomes: list[Started | OwnershipError] = []

    async def start(machine: Machine) -> None:
        try:
            outcomes.append(await machine.start(LATEST))
        except OwnershipError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as group:
        for machine in (here, there):
            group.start_soon(start, machine)
    (lost,) = [one for one in outcomes if isinstance(one, OwnershipError)]
    (won,) = [one for one in outcomes if isinstance(one, Started)]
    assert "generation 2 was taken by" in str(lost)
    assert lost.hint
    assert (await index_of(store)).generation == won.run.generation == 2


# --- crashes and lost answers ------------------------------------------------------------------------------


class Died(Exception):
    """The process is gone."""


async def test_a_start_that_dies_while_loading_changes_nothing(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20, 30)
    before = await index_of(store), here.owner

    def die(_: Path) -> None:
        raise Died

    here.refuse = die
    with pytest.raises(Died):
        await here.start(step_named(10))
    assert (await index_of(store), here.owner) == before
    here.refuse = lambda _: None
    started = await here.start(LATEST)
    assert (started.step, started.run.generation) == (30, 3)
    assert started.run.lineage == claim((1, None), (3, 30)).lineage
    assert await live(store) == ["step_30@g1", "step_20@g1", "step_10@g1"]


async def test_a_checkpoint_that_does_not_fit_changes_nothing(here: Machine, store: MemoryStore) -> None:
    await here.trained(10, 20)

    def refuse(_: Path) -> None:
        raise StartRefused("other shapes")

    here.refuse = refuse
    with pytest.raises(StartRefused, match="other shapes"):
        await here.start(step_named(10))
    assert await live(store) == ["step_20@g1", "step_10@g1"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_request_leaves_a_run_that_goes_on(tmp_path: Path, when: str) -> None:
    struck = 0
    for at in range(100):
        store = MemoryStore()
        here = Machine(tmp_path / f"{at}" / "run", store)
        await here.trained(10, 20, 30)
        here.save(40)
        seen = 0

        def crash(operation: Operation) -> Fault | None:
            nonlocal seen
            seen += 1
            if seen <= at:  # noqa: B023
                return None
            return Fault(StoreDenied("the process died"), when if seen == at + 1 else "before")  # type: ignore[arg-type]  # noqa: B023

        store.faults = crash
        try:
            await here.start(step_named(20))
        except StoreDenied:
            struck += 1
        else:
            break
        store.faults = None
        listed = (await index_of(store)).generation == 2
        assert await live(store) == [f"step_{n}@g1" for n in ([20, 10] if listed else [30, 20, 10])]
        rewound = here.owner.generation == 2  # run.json is what decides: it is written before the manifest
        here.loaded.clear()
        started = await here.start(LATEST)
        assert started.step == (20 if rewound else 40)
        assert here.loaded == [said(started.step)]
        assert (await index_of(store)).generation == started.run.generation == here.owner.generation
        assert await live(store) == [f"step_{n}@g1" for n in ([20, 10] if rewound else [30, 20, 10])]
    assert struck >= 4


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["put", "get", "list", "get_range"])
async def test_answers_that_are_lost_change_nothing(tmp_path: Path, name: str, when: str) -> None:
    """Each request fails once, before its effect or after it, and is repeated."""
    struck = 0
    for at in range(100):
        store = MemoryStore()
        here = Machine(tmp_path / f"{name}{at}" / "run", store)
        await here.trained(10, 20, 30)
        here.forget()
        seen = 0

        def lose(operation: Operation) -> Fault | None:
            nonlocal seen
            seen += operation.name == name
            if operation.name != name or seen != at + 1:  # noqa: B023
                return None
            return Fault(StoreUnavailable("timed out", subject=operation.key), when)  # type: ignore[arg-type]

        store.faults = lose
        started = await here.start(step_named(20))
        store.faults = None
        assert (started.step, started.run.generation, here.loaded) == (20, 2, [said(20)])
        assert await live(store) == ["step_20@g1", "step_10@g1"]
        assert (await index_of(store)).owner == here.owner.owner
        assert await generation.newest(store) == 2
        if seen <= at:
            break
        struck += 1
    assert struck >= 1


async def test_a_full_disk_while_downloading_is_an_error_not_a_fallback(
    here: Machine, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    await here.trained(10, 20)
    here.forget()

    def refuse(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(DiskError, match="No space left"):
        await here.start(LATEST)
    monkeypatch.undo()
    assert here.local() == []
    assert await live(store) == ["step_20@g1", "step_10@g1"]


async def test_a_generation_file_that_is_gone_is_named(
    here: Machine, there: Machine, store: MemoryStore
) -> None:
    await here.trained(10)
    await store.delete(["generations/0001.json"])
    with pytest.raises(CorruptError, match=r"generations/0001\.json: the object is missing"):
        await there.start(LATEST)


# --- in place ----------------------------------------------------------------------------------------------


async def test_in_place_the_disk_is_trusted_over_a_lagging_manifest(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    store, loaded, lines = LocalStore(directory.path), [], []
    run = RunFile(run="run", destination=str(Location("", str(directory.path))))

    def load(path: Path, record: NodeRecord) -> None:
        loaded.append((path / record.files[0].path).read_text())

    takeover = Takeover(directory, run, store, load, lines.append)
    first = await takeover.start(AUTO)
    steps = [make_step(directory, step, first.run.generation) for step in (10, 20)]
    await upload(store, first.run, steps[0], keys=RunKeys(in_place=True))
    started = await takeover.start(LATEST)
    assert (started.step, loaded) == (20, [said(20)])
    damage(directory.step(20) / "data.bin")
    started = await takeover.start(LATEST)
    assert (started.step, loaded[1:]) == (10, [said(10)])
    assert len(started.skipped) == 1
    assert not any("using the copy" in line for line in lines)


async def test_a_run_of_another_name_in_the_same_place_is_refused(here: Machine, store: MemoryStore) -> None:
    await here.trained(10)
    here.run = here.run.model_copy(update={"run": "other"})
    with pytest.raises(CorruptError, match="it is the index of run 'run', not 'other'"):
        await here.start(LATEST)


async def test_taken_generations_are_never_taken_again(here: Machine, store: MemoryStore) -> None:
    await here.trained(10)
    await take(store, claim((7, None)))  # by a start that died right after
    assert (await here.start(LATEST)).run.generation == 8
