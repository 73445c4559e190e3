"""The index: pure decisions, compare-and-swap with every answer lost once, and the way back from records."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import FIRST, Time, claim, generation_file, node_record, taken

from uploader import layout, manifest, prune
from uploader.below import MAX_SMALL_BYTES
from uploader.errors import (
    CorruptError,
    ObjectMissing,
    OwnershipError,
    StoreDenied,
    StoreUnavailable,
    TooLarge,
)
from uploader.generation import Claim, Lineage
from uploader.journal import Journal
from uploader.layout import MANIFEST_KEY, RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import MAX_GROWN_BYTES, ManifestFile
from uploader.record import CommitRecord, decode
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore

pytestmark = pytest.mark.anyio

KEYS = RunKeys()
SECOND = claim((1, None), (2, 2))


def record(step: int, number: int = 1) -> CommitRecord:
    return CommitRecord.merge([node_record(step, number, metrics={"loss": 1.5}).encode()])


def entry(step: int, number: int = 1) -> Entry:
    return Entry.of(record(step, number), KEYS)


def listing(*steps: int, by: Claim = FIRST) -> Manifest:
    index = Manifest(run="run")
    for step in steps:
        index = manifest.committed(index, entry(step, by.generation), by)
    return index


def file_of(store: MemoryStore | RetryingStore) -> ManifestFile:
    return ManifestFile(store, "run", KEYS)


def test_latest_is_the_highest_live_step_in_any_order() -> None:
    assert listing(2, 3, 1) == listing(1, 2, 3)
    assert listing(2, 3, 1).latest == 3
    assert list(listing(1, 3, 2).live) == ["step_3", "step_2", "step_1"]


def test_a_step_is_found_by_each_of_its_names() -> None:
    index = manifest.adopted(listing(1, 2, 3), SECOND)
    assert index.find("latest") == index.find("step_2") == index.find("step_2@g1") == entry(2)
    assert index.find("step_3") is None
    left_behind = index.find("step_3@g1")
    assert left_behind is not None
    assert left_behind.superseded_by == 2
    assert Manifest(run="run").find("latest") is None


def test_what_an_owner_did_not_live_to_list_is_added_where_it_is_newer_than_latest() -> None:
    found = [entry(2), entry(4), entry(6)]
    index = listing(1, 3)
    assert manifest.completed(index, found, FIRST) == listing(1, 3, 4, 6)
    assert manifest.completed(listing(1, 5), found, FIRST) == listing(1, 5, 6)
    assert manifest.completed(Manifest(run="run", generation=1), found, FIRST).latest == 6
    assert manifest.completed(listing(1, 7), found, FIRST) == listing(1, 7)
    followed = manifest.adopted(index, SECOND)
    assert manifest.completed(followed, found, FIRST) == followed


def test_a_rewind_supersedes_and_a_rewind_of_it_brings_back() -> None:
    index = manifest.adopted(listing(1, 2, 3), SECOND)
    index = manifest.committed(index, entry(3, 2), SECOND)
    assert index.live["step_3"].generation == 2
    third = claim((1, None), (3, 3))  # resumed from step_3@g1
    index = manifest.adopted(index, third)
    assert index.live["step_3"].generation == 1
    assert index.live["step_3"].superseded_by is None
    assert index.superseded["step_3@g2"].superseded_by == 3
    assert index.owner == third.owner


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_step_that_a_branch_began_with_is_that_of_the_branch_before(order: tuple[int, int]) -> None:
    index = Manifest(run="run")
    for number in order:
        index = manifest.committed(index, entry(2, number), SECOND)
    assert index.live["step_2"].generation == 1
    assert [*index.superseded] == ["step_2@g2"]


def test_the_latest_step_never_goes() -> None:
    index = manifest.deleting(listing(1, 2, 3), ["step_1@g1", "step_3@g1"], FIRST)
    assert list(index.deleting) == ["step_1@g1"]
    assert index.latest == 3
    assert manifest.committed(index, entry(1), FIRST) == index  # it does not come back


def test_what_a_newer_owner_resumes_from_is_its_latest() -> None:
    index = manifest.deleting(listing(1, 2, 3), ["step_2@g1"], SECOND)
    assert index.latest == 2
    assert not index.deleting


def test_an_older_generation_is_fenced_and_told_by_whom() -> None:
    index = manifest.adopted(listing(1), SECOND)
    decisions: list[Callable[[], Manifest]] = [
        lambda: manifest.adopted(index, FIRST),
        lambda: manifest.committed(index, entry(2), FIRST),
        lambda: manifest.deleting(index, ["step_1@g1"], FIRST),
        lambda: manifest.dropped(index, ["step_1@g1"], FIRST),
    ]
    for decide in decisions:
        with pytest.raises(OwnershipError, match=r"generation 2 of me@host2 \(process 2\) owns it"):
            decide()


@dataclass
class History:
    """A run as it might go: generations that resume from live steps, commits, deletions."""

    index: Manifest = field(default_factory=lambda: Manifest(run="run"))
    claims: list[Claim] = field(default_factory=list)
    committed: set[str] = field(default_factory=set)
    dropped: set[str] = field(default_factory=set)


def _start(history: History, draw: st.DrawFn) -> Claim:
    number = len(history.claims) + 1
    one = Claim(generation=number, lineage=Lineage.fresh(number))
    there = [*history.index.live.values(), *history.index.superseded.values()]
    if there and draw(st.booleans()):
        source = draw(st.sampled_from(sorted(there, key=lambda e: e.name)))
        parent = history.claims[source.generation - 1].lineage
        one = Claim(generation=number, lineage=parent.child(number, after_step=source.step))
    history.claims.append(one)
    return one


def _changed(history: History, draw: st.DrawFn) -> Callable[[Manifest], Manifest]:
    """One thing that happens next, as a decision."""
    kind = draw(st.sampled_from(["start", "commit", "commit", "commit", "delete", "drop"]))
    if kind == "start" or not history.claims:
        one = _start(history, draw)
        return lambda index: manifest.adopted(index, one)
    one = history.claims[-1]
    if kind == "commit":
        by = draw(st.integers(1, one.generation))
        new = entry(draw(st.integers(0, 8)), by)
        history.committed.add(new.name)
        return lambda index: manifest.committed(index, new, one)
    if kind == "delete":
        names = draw(st.lists(st.sampled_from(sorted(history.index.names()) or ["none"])))
        return lambda index: manifest.deleting(index, names, one)
    names = draw(st.lists(st.sampled_from(sorted(history.index.deleting) or ["none"])))
    history.dropped |= {*names}
    return lambda index: manifest.dropped(index, names, one)


@given(st.data())
def test_decisions_are_idempotent_and_lose_nothing(data: st.DataObject) -> None:
    history = History()
    for _ in range(data.draw(st.integers(1, 12))):
        decide = _changed(history, data.draw)
        was = history.index
        history.index = index = decide(was)
        assert decide(index) == index
        assert index.latest == max((one.step for one in index.live.values()), default=None)
        assert history.committed - history.dropped <= index.names()
        if was.latest is not None and was.generation == index.generation:
            assert index.latest is not None
            assert index.latest >= was.latest
        lineage = history.claims[-1].lineage
        assert all(lineage.is_live(one.step, one.generation) for one in index.live.values())
        assert Manifest.model_validate_json(index.encode()) == index


@given(st.data())
def test_rebuild_equals_what_the_decisions_made(data: st.DataObject) -> None:
    """Each generation commits: one that did not may not have superseded anything."""
    history, records = History(), {}
    for _ in range(data.draw(st.integers(1, 4))):
        one = _start(history, data.draw)
        history.index = manifest.adopted(history.index, one)
        began = one.lineage.branches[-1].after_step or 0
        for step in data.draw(st.lists(st.integers(began + 1, began + 6), min_size=1, unique=True)):
            new = record(step, one.generation)
            records[layout.step_at(step, one.generation)] = new
            history.index = manifest.committed(history.index, Entry.of(new, KEYS), one)
    files = [generation_file(one) for one in history.claims]
    shuffled = data.draw(st.permutations(list(records.values())))
    assert manifest.rebuild("run", files[::-1], shuffled, KEYS) == history.index


async def rejected(data: bytes) -> CorruptError:
    store = MemoryStore()
    await store.put(MANIFEST_KEY, data)
    with pytest.raises(CorruptError) as caught:
        await file_of(store).read()
    return caught.value


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"\x00" * len(data),
        lambda data: data.replace(b'"latest": 3', b'"latest": 2'),
        lambda data: data.replace(b'"step_2": {', b'"step_4": {'),
        lambda data: data.replace(b'"step": 3,', b'"step": 7,'),
        lambda data: data.replace(b"step_1/g1/checkpoint.json", b"../other/checkpoint.json"),
        lambda data: data.replace(b"step_1/g1/checkpoint.json", b"step_2/g1/checkpoint.json"),
        lambda data: data.replace(b'"schema_version": 1', b'"schema_version": 99'),
    ],
)
async def test_a_damaged_manifest_says_how_to_rebuild_it(damage: Callable[[bytes], bytes]) -> None:
    data = listing(1, 2, 3).encode()
    assert damage(data) != data
    error = await rejected(damage(data))
    assert "memory:///manifest.json" in str(error)
    assert "`wmtp checkpoints rebuild memory://`" in str(error)


async def test_a_step_listed_twice_is_refused() -> None:
    tree = json.loads(listing(1, 2).encode())
    tree["deleting"]["step_1@g1"] = tree["live"]["step_1"]
    assert "twice" in str(await rejected(json.dumps(tree).encode()))


async def test_the_index_of_another_run_is_refused() -> None:
    assert "'other'" in str(await rejected(Manifest(run="other").encode()))


async def test_two_writers_race_and_both_win() -> None:
    store = MemoryStore()
    first, second = file_of(store), file_of(store)

    async def commit(file: ManifestFile, steps: range) -> None:
        for step in steps:
            await file.update(partial(manifest.committed, entry=entry(step), claim=FIRST))

    async with anyio.create_task_group() as group:
        group.start_soon(commit, first, range(0, 20, 2))
        group.start_soon(commit, second, range(1, 20, 2))
    index = await first.read()
    assert index is not None
    assert sorted(one.step for one in index.live.values()) == list(range(20))
    puts = [one for one in store.operations if one.name == "put"]
    assert len(puts) > 20  # somebody did lose a race, and decided again


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_lost_answer_costs_nothing(there: bool, when: str) -> None:
    store = MemoryStore()
    if there:
        await file_of(store).update(lambda index: manifest.committed(index, entry(1), FIRST))
    lost = [Fault(StoreUnavailable("no answer"), when)]  # type: ignore[arg-type]
    store.faults = lambda operation: lost.pop() if lost and operation.name == "put" else None
    new = entry(2)
    file = file_of(RetryingStore(store, Time().clocks.retry))
    written = await file.update(lambda index: manifest.committed(index, new, FIRST))
    assert written == await file.read() == listing(*([1] if there else []), 2)


async def test_a_change_that_changes_nothing_is_not_written() -> None:
    store = MemoryStore()
    for _ in range(2):
        await file_of(store).update(lambda index: manifest.committed(index, entry(1), FIRST))
    assert [one.name for one in store.operations].count("put") == 1


async def test_a_manifest_deleted_under_a_writer_is_made_again() -> None:
    store = MemoryStore()
    await file_of(store).update(lambda index: manifest.committed(index, entry(1), FIRST))

    def faults(operation: Operation) -> Fault | None:
        there = operation.name == "put" and store._objects.pop(MANIFEST_KEY, None)
        return Fault(ObjectMissing("as S3 answers If-Match")) if there else None

    store.faults = faults
    new = entry(2)
    await file_of(store).update(lambda index: manifest.committed(index, new, FIRST))
    assert await file_of(store).read() == listing(2)  # step 1 had no commit record in the store


def keep(store: MemoryStore, *records: CommitRecord) -> None:
    """Steps with everything their records name."""
    for one in records:
        for file in one.files:
            store._keep(KEYS.step_prefix(one.step, one.generation) + file.path, bytes(file.size_bytes))
        store._keep(KEYS.commit_record(one.step, one.generation), one.encode())


async def test_rebuild_replaces_a_corrupt_manifest() -> None:
    store = MemoryStore()
    await taken(store, FIRST, SECOND)
    keep(store, record(1), record(2), record(3), record(3, 2))
    await store.put("step_2/g1/model.safetensors", b"no record")
    await store.put(MANIFEST_KEY, b"{")
    rebuilt = await file_of(store).rebuild()
    assert rebuilt == await file_of(store).read()
    expected = manifest.committed(manifest.adopted(listing(1, 2, 3), SECOND), entry(3, 2), SECOND)
    assert rebuilt == expected


async def test_rebuild_meets_a_commit_in_between() -> None:
    store = MemoryStore()
    await taken(store, FIRST)
    keep(store, record(1))
    await file_of(store).rebuild()
    other = MemoryStore()
    other._objects = store._objects
    raced = [True]

    def faults(operation: Operation) -> None:
        if operation.name == "put" and raced:
            raced.pop()
            keep(other, record(2))
            other._keep(MANIFEST_KEY, listing(1, 2).encode())

    store.faults = faults
    assert await file_of(store).rebuild() == listing(1, 2)


async def test_rebuild_names_what_it_cannot_read() -> None:
    store = MemoryStore()
    await taken(store, FIRST)
    keep(store, record(1))
    key = KEYS.commit_record(2, 1)
    for wrong, words in ((record(2).encode()[:-9], "EOF"), (record(1).encode(), "record of step_1@g1")):
        await store.put(key, wrong)
        with pytest.raises(CorruptError, match=words) as caught:
            await file_of(store).rebuild()
        assert caught.value.subject == f"memory:///{key}"


async def test_a_lineage_is_never_guessed() -> None:
    store = MemoryStore()
    keep(store, record(1), record(2, 2))
    await taken(store, FIRST)
    with pytest.raises(CorruptError, match=r"generations/0002\.json is missing"):
        await file_of(store).from_records()


async def test_a_generation_that_committed_nothing_supersedes_nothing() -> None:
    store = MemoryStore()
    await taken(store, FIRST, SECOND)
    keep(store, record(3))
    index = await file_of(store).from_records()
    assert index.latest == 3
    assert (index.generation, index.owner) == (2, SECOND.owner)


async def test_a_zombie_changes_nothing() -> None:
    store = MemoryStore()
    await file_of(store).update(lambda index: manifest.adopted(listing(1, 2, 3), SECOND))
    before = await store.get(MANIFEST_KEY)
    with pytest.raises(OwnershipError):
        await file_of(store).update(lambda index: manifest.committed(index, entry(9), FIRST))
    assert await store.get(MANIFEST_KEY) == before


@pytest.mark.parametrize("objects", [10, 10_000, 100_000])
async def test_any_step_is_one_get_away(objects: int) -> None:
    store = MemoryStore()
    index = listing(1, 2, 3)
    await store.put(MANIFEST_KEY, index.encode())
    for number in range(objects):
        store._keep(f"step_{number}/g1/file", b"")
    for name in ("latest", "step_2", "step_9"):
        store.operations.clear()
        found = await file_of(store).read()
        assert found is not None
        assert found.find(name) == index.find(name)
        assert store.operations == [Operation("get", MANIFEST_KEY)]
    assert (await file_of(MemoryStore()).read()) is None


async def test_an_error_of_the_store_passes() -> None:
    store = MemoryStore(faults=lambda _: Fault(StoreDenied("no")))
    with pytest.raises(StoreDenied):
        await file_of(store).update(lambda index: index)


# --- what a rebuild may believe ----------------------------------------------------------------------------


async def test_what_a_zombie_commits_after_the_sweep_is_not_live_in_a_rebuild_and_the_next_sweep_takes_it(
    directory: RunDirectory,
) -> None:
    """Generation 1 went on after step 2, where generation 2 took the run; its step 3 comes last of all."""
    store = MemoryStore()
    await taken(store, FIRST, SECOND)
    keep(store, record(1), record(2), record(4, 2))
    index = await file_of(store).rebuild()
    await prune.sweep(store, index, SECOND, [], Journal(directory), 1e9)
    keep(store, record(3))
    rebuilt = await file_of(store).rebuild()
    assert (rebuilt.live, rebuilt.latest) == (index.live, 4)
    assert [*rebuilt.superseded] == ["step_3@g1"]
    third = claim((1, None), (2, 2), (3, 4))
    assert await prune.sweep(store, index, third, [], Journal(directory), 1e9) == 4
    assert [info.key async for info in store.list("step_3/")] == []
    assert len([info.key async for info in store.list("step_4/")]) == 4


@pytest.mark.parametrize("lost", ["all", "one", "a byte"])
async def test_a_record_that_came_after_its_step_was_pruned_makes_no_step(
    lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that created it, was lost on its way, and was repeated: the step is long gone."""
    store = MemoryStore()
    await taken(store, FIRST)
    keep(store, record(1), record(2), record(3))
    file = record(3).files[0]
    for key in [one.path for one in record(3).files] if lost == "all" else [file.path]:
        del store._objects[f"step_3/g1/{key}"]
    if lost == "a byte":
        store._keep(f"step_3/g1/{file.path}", bytes(file.size_bytes - 1))
    assert await file_of(store).rebuild() == listing(1, 2)
    assert "step_3/g1/checkpoint.json" in caplog.text
    assert file.path in caplog.text


# --- how large it may become -------------------------------------------------------------------------------


def test_what_an_entry_may_become_has_room() -> None:
    """An index that takes no further step can still be adopted, superseded, pinned and marked."""
    least = Entry.of(CommitRecord.merge([node_record(0, 0).encode()]), KEYS).model_dump(mode="json")
    most = {
        **least,
        "superseded_by": 10**9 - 1,
        "pinned": False,
        "deleting_since": "2026-01-01T00:00:00.123456Z",
    }

    def size_bytes(name: str, tree: object) -> int:
        return len(json.dumps({name: tree}, indent=1))

    grown = size_bytes("step_0@g0", most) / size_bytes("step_0", least)
    assert grown * MAX_GROWN_BYTES < MAX_SMALL_BYTES


async def test_a_full_index_takes_no_further_step_and_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    file = file_of(MemoryStore())
    index = await file.update(lambda _: listing(1, 2, 3))
    monkeypatch.setattr("uploader.manifest_file.MAX_GROWN_BYTES", len(index.encode()) - 1)
    with pytest.raises(TooLarge, match=r"memory:///manifest\.json: it lists 3 steps.*keep_last"):
        await file.update(lambda one: manifest.committed(one, entry(4), FIRST))
    assert await file.read() == index
    index = await file.update(lambda one: manifest.adopted(one, SECOND))
    assert len(index.encode()) > len(listing(1, 2, 3).encode())
    index = await file.update(lambda one: manifest.deleting(one, ["step_1@g1", "step_3@g1"], SECOND))
    index = await file.update(lambda one: manifest.dropped(one, ["step_1@g1", "step_3@g1"], SECOND))
    index = await file.update(lambda one: manifest.committed(one, entry(4, 2), SECOND))
    assert [*index.live] == ["step_4", "step_2"]


def test_what_nobody_would_read_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every file of ours: its writer refuses what its reader does."""
    whole_bytes = len(listing(1, 2, 3).encode())
    for limit_bytes in range(whole_bytes - 3, whole_bytes + 120):
        monkeypatch.setattr("uploader.below.MAX_SMALL_BYTES", limit_bytes)
        monkeypatch.setattr("uploader.seal.MAX_SMALL_BYTES", limit_bytes)
        try:
            data = listing(1, 2, 3).encode()
        except TooLarge as error:
            assert "manifest.json" in str(error)
            continue
        assert decode(Manifest, data, subject="x") == listing(1, 2, 3)
    with pytest.raises(CorruptError, match="the limit is"):
        monkeypatch.setattr("uploader.below.MAX_SMALL_BYTES", whole_bytes - 1)
        decode(Manifest, data, subject="x")
