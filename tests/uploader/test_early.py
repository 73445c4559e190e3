"""A head start: files of a step that is still being written."""

import pytest
from steps import FIRST, SMALL, keys, make_service, make_step, run_file, uploads

from uploader import files, layout
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.early import worth_sending
from uploader.errors import StoreDenied
from uploader.events import ShardSaved
from uploader.layout import RunDirectory
from uploader.queue import EventQueue, put
from uploader.record import FileRecord
from uploader.settings import UploadSettings
from uploader.store.memory import Fault, MemoryStore, Operation

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
    touched = [one.name for one in store.operations if one.key.endswith(NAME)]
    assert touched == []  # the store took it from this process: it is not even asked


async def test_another_process_asks_the_store_for_what_a_head_start_sent(directory: RunDirectory) -> None:
    store = MemoryStore()
    written(directory, 20)
    await make_service(directory, store, run_file(FIRST)).round()
    (directory.temporary(20, 1) / NAME).unlink()
    directory.temporary(20, 1).rmdir()
    make_step(directory, 20)
    store.operations.clear()
    await make_service(directory, store, run_file(FIRST)).round()
    assert [one.name for one in store.operations if one.key.endswith(NAME)] == ["head"]


async def test_a_file_that_is_lost_after_its_head_start_is_sent_again(directory: RunDirectory) -> None:
    store = MemoryStore()
    service = make_service(directory, store, run_file(FIRST))
    written(directory, 20)
    await service.round()
    await store.delete([f"step_20/g1/{NAME}"])
    (directory.temporary(20, 1) / NAME).unlink()
    directory.temporary(20, 1).rmdir()
    make_step(directory, 20)
    await service.round()
    assert {f"step_20/g1/{NAME}", "step_20/g1/checkpoint.json"} <= set(await keys(store))


async def test_what_is_announced_meanwhile_is_sent_in_the_same_round(directory: RunDirectory) -> None:
    """And once, although it is announced still."""
    store, second = MemoryStore(), FileRecord.of_bytes("optim-rank00000-0001.safetensors", b"later")
    written(directory, 20)

    def announce_another(operation: Operation) -> None:
        if operation.key.endswith(NAME):
            (directory.temporary(20, 1) / second.path).write_bytes(b"later")
            put(directory.events(0), ShardSaved(generation=1, step=20, file=second), durable=False)

    store.faults = announce_another
    service = make_service(directory, store, run_file(FIRST))
    await service.round()
    assert await keys(store, "step_20/") == [f"step_20/g1/{NAME}", f"step_20/g1/{second.path}"]
    store.operations.clear()
    await service.round()
    assert not [one for one in store.operations if one.name == "put"]


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


async def test_what_was_interrupted_is_continued_by_the_commit(directory: RunDirectory) -> None:
    """Under another path, for the step was renamed meanwhile, and by another process."""
    store, written_files = MemoryStore(), {NAME: b"w" * (BLOCK_SIZE_BYTES + 5), "state-rank00000.json": b"{}"}
    run = run_file(FIRST, upload=UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=1))
    written(directory, 20, written_files[NAME])
    died = Fault(StoreDenied("the process died"))
    store.faults = lambda one: died if one.number == 2 else None
    await make_service(directory, store, run).round()
    assert await uploads(store) == [f"step_20/g1/{NAME}"]
    (directory.temporary(20, 1) / NAME).unlink()
    directory.temporary(20, 1).rmdir()
    make_step(directory, 20, files=written_files)
    store.faults = None
    store.operations.clear()
    await make_service(directory, store, run).round()
    assert "step_20/g1/checkpoint.json" in await keys(store)
    assert [one.number for one in store.operations if one.name == "upload_part"] == [2]
    assert await uploads(store) == []


async def test_while_the_step_is_being_written_its_upload_stays_and_then_goes(
    directory: RunDirectory,
) -> None:
    store, data = MemoryStore(), b"w" * (BLOCK_SIZE_BYTES + 5)
    run = run_file(FIRST, upload=UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=1))
    written(directory, 20, data)
    died = Fault(StoreDenied("the process died"))
    store.faults = lambda one: died if one.number == 2 else None
    await make_service(directory, store, run).round()
    make_step(directory, 10)
    await make_service(directory, store, run).round()
    assert await uploads(store) == [f"step_20/g1/{NAME}"]
    store.faults = None
    files.move_to_trash(directory.temporary(20, 1), directory.trash)  # its trainer gave up
    make_step(directory, 11)
    await make_service(directory, store, run).round()
    assert await uploads(store) == []
