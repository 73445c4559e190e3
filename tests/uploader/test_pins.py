"""Pins: whichever of pin and prune changes the manifest first has won, and a rebuild finds every pin."""

import json
from functools import partial

import pytest
from pydantic import ValidationError
from steps import FIRST, NOW, claim, keys, make_service, make_step, node_record, run_file, taken

from uploader import layout, manifest, pins, prune
from uploader.errors import CorruptError, NothingToResume, OwnershipError, StoreDenied
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.pins import Pin
from uploader.record import CommitRecord
from uploader.retention import Retention
from uploader.store.memory import Fault, MemoryStore, Operation

pytestmark = pytest.mark.anyio

KEY = "pins/step_1@g1.json"


class Pinned:
    """A store with the steps 1 to 3, of which the first is to be pinned."""

    def __init__(self, directory: RunDirectory) -> None:
        self.store, self.directory = MemoryStore(), directory
        self.file = ManifestFile(self.store, "run", RunKeys())

    async def filled(self) -> "Pinned":
        await taken(self.store, FIRST)
        for step in (1, 2, 3):
            make_step(self.directory, step)
        await make_service(self.directory, self.store, run_file(retention=Retention(keep_last=9))).round()
        self.entry = (await self.index()).live["step_1"]
        return self

    async def index(self) -> Manifest:
        index = await self.file.read()
        assert index is not None
        return index

    async def pin(self, note: str = "why") -> Pin:
        return await pins.pin(self.store, self.file, self.entry, Pin.of("run", self.entry, note=note, at=NOW))

    async def prune(self) -> Manifest:
        return await prune.mark(self.store, self.file, ["step_1@g1", "step_2@g1"], FIRST, 0.0, NOW)

    def when(self, name: str, key: str, happens: str) -> None:
        """Let the prune mark its steps right before or after an operation of the pin's."""
        deleting = partial(manifest.deleting, names=["step_1@g1"], claim=FIRST)

        def strike(operation: Operation) -> None:
            if (operation.name, operation.key) == (name, key):
                self.store.faults = None
                index = Manifest.model_validate_json(self.store._objects[layout.MANIFEST_KEY][1])
                self.store._keep(layout.MANIFEST_KEY, deleting(index).encode())

        assert happens == "before"
        self.store.faults = strike


@pytest.fixture
async def run(directory: RunDirectory) -> Pinned:
    return await Pinned(directory).filled()


async def test_a_pin_says_who_when_and_why_and_is_made_once(run: Pinned) -> None:
    made = await run.pin("best so far")
    said = json.loads(run.store._objects[KEY][1])
    assert (said["step"], said["generation"], said["note"]) == (1, 1, "best so far")
    assert said["at"] == "2026-01-01T00:00:00Z"
    assert "@" in said["by"]
    assert (await run.index()).live["step_1"].pinned
    assert await run.pin("another time") == made
    assert await pins.read(run.store, run.entry) == made
    assert await pins.names(run.store) == {"step_1@g1"}


async def test_a_pin_changes_that_one_flag_and_nothing_else_whoever_owns_the_run(run: Pinned) -> None:
    second = claim((1, None), (2, 3))
    before = await run.file.update(lambda index: manifest.adopted(index, second))
    await run.pin()
    after = await run.index()
    assert after.live["step_1"] == before.live["step_1"].model_copy(update={"pinned": True})
    assert pins.marked(after, run.entry, pinned=False) == before
    with pytest.raises(OwnershipError):  # as before, nobody else may do anything
        await run.prune()


async def test_what_is_pinned_survives_retention_and_its_local_copy_does_not(run: Pinned) -> None:
    await run.pin()
    await make_service(run.directory, run.store, run_file(retention=Retention(keep_last=1))).round()
    assert [*(await run.index()).live] == ["step_3", "step_1"]
    assert "step_1/g1/checkpoint.json" in await keys(run.store)
    assert [path.name for path in run.directory.path.glob("step_*")] == ["step_3"]
    run.entry = (await run.index()).live["step_1"]
    assert await pins.unpin(run.store, run.file, run.entry)
    assert not await pins.unpin(run.store, run.file, (await run.index()).live["step_1"])
    await make_service(run.directory, run.store, run_file(retention=Retention(keep_last=1))).round()
    assert [*(await run.index()).live] == ["step_3"]
    assert await keys(run.store, "pins/") == []


async def test_what_is_being_pruned_is_not_pinned(run: Pinned) -> None:
    await run.prune()
    with pytest.raises(NothingToResume, match="step_1@g1: it is being pruned"):
        await run.pin()
    assert await keys(run.store, "pins/") == []
    unknown = Entry.of(CommitRecord.merge([node_record(7).encode()]), RunKeys())
    with pytest.raises(NothingToResume, match="does not list it"):
        await pins.pin(run.store, run.file, unknown, Pin.of("run", unknown, note="", at=NOW))


@pytest.mark.parametrize(("name", "key"), [("put", KEY), ("put", layout.MANIFEST_KEY)])
async def test_a_prune_that_comes_in_between_wins(run: Pinned, name: str, key: str) -> None:
    run.when(name, key, "before")
    with pytest.raises(NothingToResume, match="being pruned"):
        await run.pin()
    assert await keys(run.store, "pins/") == []
    assert [*(await run.index()).deleting] == ["step_1@g1"]


@pytest.mark.parametrize("dies_at", [("put", layout.MANIFEST_KEY)])
async def test_a_pin_that_died_halfway_protects_already(run: Pinned, dies_at: tuple[str, str]) -> None:
    died = Fault(StoreDenied("the process died"))
    run.store.faults = lambda one: died if (one.name, one.key) == dies_at else None
    with pytest.raises(StoreDenied):
        await run.pin()
    run.store.faults = None
    assert not (await run.index()).live["step_1"].pinned
    assert [*(await run.prune()).deleting] == ["step_2@g1"]
    assert (await run.index()).live["step_1"].pinned  # whoever meets it finishes it


async def test_a_pin_between_the_prunes_look_and_its_swap_wins(run: Pinned) -> None:
    """The prune has listed the pins, and read the manifest; its swap fails, and it reads again."""
    index = pins.marked(await run.index(), run.entry, pinned=True)

    def strike(operation: Operation) -> None:
        if (operation.name, operation.key) == ("put", layout.MANIFEST_KEY):
            run.store.faults = None
            run.store._keep(layout.MANIFEST_KEY, index.encode())

    run.store.faults = strike
    assert [*(await run.prune()).deleting] == ["step_2@g1"]


async def test_an_answer_that_is_lost_is_no_other_pin(run: Pinned) -> None:
    lost = Fault(StoreDenied("lost"), "after")
    run.store.faults = lambda one: lost if one.key == KEY else None
    with pytest.raises(StoreDenied):
        await run.pin("first")
    run.store.faults = None
    assert (await run.pin("again")).note == "first"
    assert (await run.index()).live["step_1"].pinned


async def test_a_rebuild_finds_every_pin(run: Pinned) -> None:
    await run.pin()
    second = claim((1, None), (2, 0))
    await taken(run.store, second)
    before = await run.index()
    run.store._keep("pins/step_x.json", b"")
    await run.store.delete([layout.MANIFEST_KEY])
    rebuilt = await run.file.rebuild()
    assert rebuilt.live == before.live
    assert [name for name, entry in rebuilt.live.items() if entry.pinned] == ["step_1"]
    superseded = manifest.adopted(rebuilt, second).superseded
    assert [name for name, entry in superseded.items() if entry.pinned] == ["step_1@g1"]


async def test_a_damaged_pin_is_named_and_protects_all_the_same(run: Pinned) -> None:
    await run.pin()
    run.store._keep(KEY, b"{")
    with pytest.raises(CorruptError, match=KEY):
        await pins.read(run.store, run.entry)
    assert [*(await run.prune()).deleting] == ["step_2@g1"]
    await pins.unpin(run.store, run.file, run.entry)
    assert await keys(run.store, "pins/") == []


async def test_a_note_has_an_end(run: Pinned) -> None:
    with pytest.raises(ValidationError, match="note"):
        await run.pin("x" * (pins.MAX_NOTE_CHARACTERS + 1))


@pytest.mark.parametrize(
    "key", ["pins/step_01@g1.json", "pins/step_1.json", "step_1@g1.json", "pins/a/b", KEY + "x"]
)
def test_no_other_key_is_a_pins(key: str) -> None:
    assert layout.parse_pin_key(key) is None
    assert layout.parse_pin_key(KEY) == (1, 1)
