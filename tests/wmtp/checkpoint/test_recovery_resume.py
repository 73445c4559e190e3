"""Every file a start reads, damaged in every way, on the owner's disk and on another: the outcome of each."""

import errno
from pathlib import Path

import pytest
from damages import DAMAGES, EVERY, Change
from machines import LATEST, Machine, index_of, live, said
from toys import claim, keys_of, take

from uploader import files, heartbeat, layout
from uploader.commit import commit
from uploader.errors import CorruptError, DiskError, NothingToResume, StartRefused, StoreDenied
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import MANIFEST_KEY, RunKeys
from uploader.manifest_file import ManifestFile
from uploader.settings import UploadSettings
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.watch import LocalStep, read_step

pytestmark = pytest.mark.anyio

each = pytest.mark.parametrize("damage", EVERY)
on_each_disk = pytest.mark.parametrize("disk", ["the owner's", "another"])


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
async def here(tmp_path: Path, store: MemoryStore) -> Machine:
    """The owner's machine; steps 10 and 20 are here and durable."""
    machine = Machine(tmp_path / "here" / "run", store)
    await machine.trained(10, 20)
    machine.loaded.clear()
    return machine


def starting(here: Machine, disk: str) -> Machine:
    return (
        here
        if disk == "the owner's"
        else Machine(here.directory.path.parents[1] / "there" / "run", here.store)
    )


async def spoil(store: MemoryStore, key: str, change: Change) -> bytes:
    data, _ = await store.get(key)
    await store.put(key, change(data))
    return data


def spoil_file(path: Path, change: Change) -> None:
    path.write_bytes(change(path.read_bytes()))


@on_each_disk
@each
async def test_the_manifest_stops_the_start_until_it_is_rebuilt(
    here: Machine, store: MemoryStore, damage: str, disk: str
) -> None:
    machine = starting(here, disk)
    was = await spoil(store, MANIFEST_KEY, EVERY[damage])
    before = await keys_of(store)
    for fresh in (False, True):
        with pytest.raises(CorruptError, match=r"memory:///manifest\.json"):
            await machine.start(None if fresh else LATEST, fresh=fresh)
    assert await keys_of(store) == before, "not even a generation is taken"
    assert (await ManifestFile(store, "run", RunKeys()).rebuild()).encode() == was
    started = await machine.start(LATEST)
    assert (started.step, machine.loaded) == (20, [said(20)])


@on_each_disk
@each
async def test_a_commit_record_costs_its_copy_in_the_store(
    here: Machine, store: MemoryStore, damage: str, disk: str
) -> None:
    machine = starting(here, disk)
    await spoil(store, "step_20/g1/checkpoint.json", EVERY[damage])
    started = await machine.start(LATEST)
    if disk == "the owner's":
        assert (started.step, started.skipped) == (20, [])
    else:
        assert started.step == 10
        assert "step_20/g1/checkpoint.json" in started.skipped[0]
    assert machine.loaded == [said(started.step)]


@on_each_disk
@each
async def test_a_generation_file_is_needed_on_another_disk_only(
    here: Machine, store: MemoryStore, damage: str, disk: str
) -> None:
    """Its lineage is in ``run.json``, too. Nobody else knows it, and it is not guessed."""
    machine = starting(here, disk)
    await spoil(store, "generations/0001.json", EVERY[damage])
    if disk == "the owner's":
        started = await machine.start(LATEST)
        assert (started.step, machine.loaded) == (20, [said(20)])
        return
    with pytest.raises(CorruptError, match=r"generations/0001\.json"):
        await machine.start(LATEST)
    assert await live(store) == ["step_20@g1", "step_10@g1"], "nothing is superseded"
    started = await machine.start(None, fresh=True)
    assert started.step == 0, "to start over needs no lineage"
    assert {*(await index_of(store)).superseded} == {"step_20@g1", "step_10@g1"}


@each
async def test_run_json_is_set_aside_and_the_store_asked(
    here: Machine, store: MemoryStore, damage: str
) -> None:
    spoil_file(here.directory.run_file, EVERY[damage])
    spoilt = here.directory.run_file.read_bytes()
    started = await here.start(LATEST)
    assert (started.step, here.loaded, started.source) == (20, [said(20)], str(here.directory.step(20)))
    assert here.watched_s == 0, "the directory is known by its own name"
    assert any("run.json" in line and "kept as run.json.damaged" in line for line in here.said)
    assert (here.directory.path / "run.json.damaged").read_bytes() == spoilt
    assert here.owner == started.run
    assert started.run.lineage == claim((1, None), (2, 20)).lineage


@each
async def test_a_node_record_gives_way_to_the_copy_in_the_store(here: Machine, damage: str) -> None:
    path = here.directory.step(20) / "node-0000.json"
    spoil_file(path, EVERY[damage])
    started = await here.start(LATEST)
    assert (started.step, started.source) == (20, "memory:///step_20/g1")
    assert any(f"passed over: reading {path}" in line for line in here.said)


@each
async def test_a_node_record_of_the_only_copy_costs_its_step_and_says_so(here: Machine, damage: str) -> None:
    here.save(30)
    path = here.directory.step(30) / "node-0000.json"
    spoil_file(path, EVERY[damage])
    started = await here.start(LATEST)
    assert started.step == 20
    assert any(f"passed over: reading {path}" in line for line in here.said)
    assert path.exists()


@pytest.mark.parametrize("damage", DAMAGES)
async def test_what_only_the_uploader_reads_does_not_concern_a_start(here: Machine, damage: str) -> None:
    for path in (here.directory.status_file, here.directory.uploads / "x.jsonl", here.directory.events(0)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(DAMAGES[damage](b'{"schema_version": 1, "run": "run", "n": 2468}'))
    started = await here.start(LATEST)
    assert (started.step, here.loaded) == (20, [said(20)])


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_heartbeat_that_cannot_be_read_is_waited_for(
    here: Machine, store: MemoryStore, damage: str
) -> None:
    there = starting(here, "another")
    await spoil(store, layout.heartbeat_key(1), DAMAGES[damage])
    assert (await there.start(LATEST)).step == 20
    assert there.watched_s >= 60


# --- a commit record that no manifest knows ----------------------------------------------------------------


async def committed_only(here: Machine, local: LocalStep) -> None:
    """What an uploader leaves that dies between the commit record and the manifest."""
    flow = Flow(UploadSettings(parts_in_flight=2))
    await commit(local, here.store, RunKeys(), flow, Journal(here.directory), lambda _: None)


@pytest.mark.parametrize("there_before", [True, False])
async def test_a_step_whose_manifest_and_disk_were_lost_is_found(
    tmp_path: Path, store: MemoryStore, there_before: bool
) -> None:
    here = Machine(tmp_path / "here" / "run", store)
    await (here.trained(10, 20) if there_before else here.start(None))
    await committed_only(here, here.save(30))
    there = starting(here, "another")
    started = await there.start(LATEST)
    assert (started.step, there.loaded) == (30, [said(30)])
    assert any("step_30@g1 was committed, but its owner died" in line for line in there.said)
    assert await live(store) == ["step_30@g1", *(["step_20@g1", "step_10@g1"] if there_before else [])]
    assert started.run.lineage == claim((1, None), (2, 30)).lineage


async def test_what_a_zombie_committed_beside_the_lineage_is_not(here: Machine, store: MemoryStore) -> None:
    late = here.save(30)
    there = starting(here, "another")
    await there.start(LATEST)
    await there.upload(there.save(25))
    await committed_only(here, late)
    third = Machine(here.directory.path.parents[1] / "third" / "run", store)
    assert (await third.start(LATEST)).step == 25
    assert "step_30@g1" not in (await index_of(store)).names()


async def test_one_that_cannot_be_read_is_named_and_passed_over(here: Machine, store: MemoryStore) -> None:
    await committed_only(here, here.save(30))
    await spoil(store, "step_30/g1/checkpoint.json", DAMAGES["truncated"])
    there = starting(here, "another")
    assert (await there.start(LATEST)).step == 20
    assert any("step_30/g1/checkpoint.json" in line for line in there.said)


async def test_starting_over_supersedes_it_too(here: Machine, store: MemoryStore) -> None:
    await committed_only(here, here.save(30))
    there = starting(here, "another")
    assert (await there.start(None, fresh=True)).step == 0
    assert {*(await index_of(store)).superseded} == {"step_30@g1", "step_20@g1", "step_10@g1"}


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_crash_at_any_request_of_the_start_that_finds_it(tmp_path: Path, when: str) -> None:
    struck = 0
    for at in range(100):
        store = MemoryStore()
        here = Machine(tmp_path / str(at) / "here" / "run", store)
        await here.trained(10)
        await committed_only(here, here.save(30))
        there = starting(here, "another")
        seen = 0

        def crash(_: Operation) -> Fault | None:
            nonlocal seen
            seen += 1
            if seen <= at:  # noqa: B023
                return None
            return Fault(StoreDenied("the process died"), when if seen == at + 1 else "before")  # type: ignore[arg-type]  # noqa: B023

        store.faults = crash
        try:
            await there.start(LATEST)
        except StoreDenied:
            struck += 1
        else:
            break
        store.faults = None
        assert (await there.start(LATEST)).step == 30
        if "step_30@g1" not in await live(store):  # run.json was written: its uploader lists what is here
            await there.upload(read_step(there.directory.step(30)))
        assert "step_30@g1" in await live(store)
    assert struck > 8


# --- one GET -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [10, 10_000, 100_000])
async def test_a_start_on_its_own_disk_asks_as_much_of_a_large_bucket(
    here: Machine, store: MemoryStore, objects: int
) -> None:
    for number in range(objects):
        store._keep(f"step_{number // 50}/g1/shard-{number}", b"")
    store.operations.clear()
    await here.takeover().look()
    assert store.operations == [Operation("get", MANIFEST_KEY)]
    store.operations.clear()
    assert (await here.start(LATEST)).step == 20
    assert len(store.operations) == 11
    assert [one.key for one in store.operations if one.name == "list"] == ["generations/"] * 2


async def test_an_empty_store_is_proven_empty(tmp_path: Path, store: MemoryStore) -> None:
    here = Machine(tmp_path / "run", store)
    with pytest.raises(NothingToResume):
        await here.start(LATEST)
    assert [(one.name, one.key) for one in store.operations] == [("get", MANIFEST_KEY), ("list", "")]


async def test_a_generation_that_another_start_takes_first_is_its_own(
    here: Machine, store: MemoryStore
) -> None:
    await take(store, claim((1, None), (2, 20)))
    assert (await here.start(LATEST)).run.generation == 3
    assert here.watched_s >= 60, "whoever took it may be just starting"


async def test_after_the_last_generation_there_is_none(here: Machine, store: MemoryStore) -> None:
    """Somebody put a file there: no trainer of ours comes that far."""
    store._keep("generations/999999999.json", b"{}")
    with pytest.raises(StartRefused, match=r"generation 999999999 is the last one.*--run-name"):
        await here.start(LATEST)
    del store._objects["generations/999999999.json"]
    assert (await here.start(LATEST)).run.generation == 2


async def test_a_full_disk_at_the_start_is_one_line_and_releases_the_run(
    here: Machine, store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = files.write_durably

    def full(path: Path, data: bytes) -> None:
        if "run.json" in path.name:
            raise OSError(errno.ENOSPC, "no space", str(path))
        plain(path, data)

    monkeypatch.setattr(files, "write_durably", full)
    with pytest.raises(DiskError, match=r"writing .*run\.json.*: No space left on device; free some space"):
        await here.start(LATEST)
    beat = await heartbeat.read(store, 2)
    assert beat is not None and beat.released
    monkeypatch.undo()
    assert (await here.start(LATEST)).step == 20
