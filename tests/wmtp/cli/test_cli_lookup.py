"""Any step of a run is one GET away, however many objects its bucket holds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from steps import FIRST, node_record

from uploader import manifest
from uploader.layout import MANIFEST_KEY, RunKeys
from uploader.location import Location
from uploader.manifest import Entry, Manifest
from uploader.record import CommitRecord
from uploader.settings import StorageSettings
from uploader.store.memory import MemoryStore, Operation
from wmtp.cli import inventory
from wmtp.cli.places import Place

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("objects", [10, 10_000, 100_000])
@pytest.mark.parametrize("name", ["latest", "step_20", "step_20@g1"])
async def test_a_step_is_looked_up_with_one_get(
    monkeypatch: pytest.MonkeyPatch, objects: int, name: str
) -> None:
    store, index = MemoryStore(), Manifest(run="run")
    for step in (10, 20, 30):
        record = CommitRecord.merge([node_record(step).encode()])
        index = manifest.committed(index, Entry.of(record, RunKeys()), FIRST)
    store._keep(MANIFEST_KEY, index.encode())
    for number in range(objects):
        store._keep(f"step_{number // 50}/g1/shard-{number}", b"")

    @asynccontextmanager
    async def opened(_: Place) -> AsyncIterator[MemoryStore]:
        yield store

    monkeypatch.setattr(inventory, "open_place", opened)
    place = Place("run", None, Location("bucket", "run"), StorageSettings())
    async with inventory.take_inventory(place) as found:
        assert found.find(name).full_name == ("step_30@g1" if name == "latest" else "step_20@g1")
    assert store.operations == [Operation("get", MANIFEST_KEY)]
