"""A head start: files of a step that is still being written."""

import pytest
from steps import FIRST, SMALL, keys, make_service, make_step, run_file

from uploader import layout
from uploader.early import worth_sending
from uploader.events import ShardSaved
from uploader.layout import RunDirectory
from uploader.queue import EventQueue, put
from uploader.record import FileRecord
from uploader.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

NAME = "model-rank00000-0001.safetensors"


def written(directory: RunDirectory, step: int, data: bytes = SMALL[NAME]) -> ShardSaved:
    """A finished file in the temporary directory of generation 1, as the trainer announces it."""
    temporary = directory.temporary(step, 1)
    temporary.mkdir(exist_ok=True)
    (temporary / NAME).write_bytes(data)
    event = ShardSaved(generation=1, step=step, file=FileRecord.of_bytes(NAME, data))
    put(directory.events(0), event, durable=False)
    return event


def test_only_what_is_being_written_now(directory: RunDirectory) -> None:
    event = written(directory, 20)
    assert worth_sending([event], directory, set(), 1) == [event]
    assert worth_sending([event], directory, {layout.step_at(20, 1)}, 1) == []
    assert worth_sending([event], directory, set(), 2) == []
    (directory.temporary(20, 1) / NAME).unlink()
    directory.temporary(20, 1).rmdir()
    assert worth_sending([event], directory, set(), 1) == []


async def test_it_is_sent_and_acknowledged_and_the_commit_does_not_send_it_again(
    directory: RunDirectory,
) -> None:
    store = MemoryStore()
    service = make_service(directory, store, run_file(FIRST))
    written(directory, 20)
    await service.round()
    assert [key for key in await keys(store) if key.startswith("step_")] == [f"step_20/g1/{NAME}"]
    assert EventQueue(directory.events(0)).receive() == []
    (directory.temporary(20, 1) / NAME).unlink()
    directory.temporary(20, 1).rmdir()
    make_step(directory, 20)
    store.operations.clear()
    await service.round()
    assert "step_20/g1/checkpoint.json" in await keys(store)
    assert not [one for one in store.operations if one.name == "put" and one.key.endswith(NAME)]


async def test_a_committed_step_comes_first(directory: RunDirectory) -> None:
    store = MemoryStore()
    make_step(directory, 10)
    written(directory, 20)
    await make_service(directory, store, run_file(FIRST)).round()
    sent = [one.key for one in store.operations if one.name == "put" and one.key.startswith("step_")]
    assert sent.index("step_10/g1/checkpoint.json") < sent.index(f"step_20/g1/{NAME}")


async def test_a_file_that_is_not_what_was_announced_is_left_to_the_commit(directory: RunDirectory) -> None:
    store = MemoryStore()
    written(directory, 20)
    (directory.temporary(20, 1) / NAME).write_bytes(b"something else")
    service = make_service(directory, store, run_file(FIRST))
    await service.round()
    assert [key for key in await keys(store) if key.startswith("step_")] == []
    assert service._error is None
