"""Every file the uploader reads, damaged in every way: named, rebuilt or set aside, and never guessed."""

import logging
from pathlib import Path

import pytest
from damages import DAMAGES, EVERY, Change
from steps import (
    FIRST,
    SMALL,
    assert_whole,
    claim,
    generation_file,
    make_service,
    make_step,
    run_file,
    taken,
    uploads,
)

from uploader import layout, queue
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import CorruptError, OwnershipError
from uploader.events import CheckpointSaved
from uploader.host import serve_run
from uploader.journal import DAMAGED, Journal, Unfinished
from uploader.layout import MANIFEST_KEY, RunDirectory, RunKeys
from uploader.manifest_file import ManifestFile
from uploader.record import CommitRecord
from uploader.retention import Retention
from uploader.settings import UploadSettings
from uploader.status import read_status
from uploader.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

RUN = run_file(retention=Retention(keep_last=9))
AT_ONCE = UploadSettings(idle_exit_s=0)
"""An uploader that ends as soon as nothing is left."""
each = pytest.mark.parametrize("damage", EVERY)
each_without_run = pytest.mark.parametrize("damage", DAMAGES)


def spoil(path: Path, change: Change) -> None:
    path.write_bytes(change(path.read_bytes()))


async def spoil_stored(store: MemoryStore, key: str, change: Change) -> bytes:
    """Damage an object; what it was."""
    data, _ = await store.get(key)
    await store.put(key, change(data))
    return data


async def a_durable_step(directory: RunDirectory) -> MemoryStore:
    """Step 1 is durable, step 2 waits."""
    store = MemoryStore()
    await taken(store, FIRST)
    make_step(directory, 1)
    await make_service(directory, store, RUN).once()
    make_step(directory, 2)
    return store


async def expect_durable(directory: RunDirectory, store: MemoryStore, *steps: int) -> None:
    await make_service(directory, store, RUN).once()
    index = await assert_whole(store)
    assert index is not None
    assert [one.name for one in index.live.values()] == [f"step_{step}@g1" for step in steps]
    assert await uploads(store) == []


@each
async def test_the_manifest_stops_it_and_is_rebuilt_when_told(directory: RunDirectory, damage: str) -> None:
    store = await a_durable_step(directory)
    was = await spoil_stored(store, MANIFEST_KEY, EVERY[damage])
    spoilt, _ = await store.get(MANIFEST_KEY)
    with pytest.raises(CorruptError, match=r"memory:///manifest\.json"):
        await make_service(directory, store, RUN).once()
    assert (await store.get(MANIFEST_KEY))[0] == spoilt, "nobody writes over what a person may want to see"
    status = read_status(directory.status_file)
    assert status is not None and status.error is not None and MANIFEST_KEY in status.error
    rebuilt = await ManifestFile(store, "run", RunKeys()).rebuild()
    assert rebuilt.encode() == was
    await expect_durable(directory, store, 2, 1)


@each
async def test_a_commit_record_that_is_not_needed_is_not_looked_at(
    directory: RunDirectory, damage: str
) -> None:
    store = await a_durable_step(directory)
    key = RunKeys().commit_record(1, 1)
    was = await spoil_stored(store, key, EVERY[damage])
    await make_service(directory, store, RUN).once()
    index = await ManifestFile(store, "run", RunKeys()).read()
    assert index is not None and {*index.live} == {"step_1", "step_2"}
    await store.delete([MANIFEST_KEY])
    with pytest.raises(CorruptError, match=r"step_1/g1/checkpoint\.json"):
        await make_service(directory, store, RUN).once()
    assert CommitRecord.model_validate_json(was).step == 1


@each
async def test_a_commit_record_that_was_being_made_is_never_written_over(
    directory: RunDirectory, damage: str
) -> None:
    store = await a_durable_step(directory)
    key, local = RunKeys().commit_record(2, 1), make_step(RunDirectory(directory.path / "x"), 2)
    spoilt = EVERY[damage](CommitRecord.merge([local.encoded]).encode())
    await store.put(key, spoilt)
    with pytest.raises(OwnershipError, match=r"step_2/g1/checkpoint\.json"):
        await make_service(directory, store, RUN).once()
    assert (await store.get(key))[0] == spoilt
    index = await ManifestFile(store, "run", RunKeys()).read()
    assert index is not None and {*index.live} == {"step_1"}


@each
async def test_a_generation_file_is_needed_for_a_rebuild_and_named(
    directory: RunDirectory, damage: str
) -> None:
    store = await a_durable_step(directory)
    was = await spoil_stored(store, layout.generation_key(1), EVERY[damage])
    await expect_durable(directory, store, 2, 1)
    await store.delete([MANIFEST_KEY])
    with pytest.raises(CorruptError, match=r"generations/0001\.json"):
        await make_service(directory, store, RUN).once()
    assert was == generation_file(FIRST).encode()
    await store.put(layout.generation_key(1), was)
    await expect_durable(directory, store, 2, 1)


@each_without_run
async def test_run_json_ends_the_service_with_its_name(directory: RunDirectory, damage: str) -> None:
    run_file(FIRST, destination=str(directory.path.parent / "store")).write(directory)
    make_step(directory, 1)
    spoil(directory.run_file, DAMAGES[damage])
    with pytest.raises(CorruptError, match=r"run/run\.json") as caught:
        await serve_run(directory.path, once=True)
    assert "start the trainer again" in caught.value.hint
    assert not (directory.path.parent / "store").exists()


@pytest.mark.parametrize("line", [0, 1])
@each_without_run
async def test_a_journal_is_set_aside_and_its_file_sent_again(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture, damage: str, line: int
) -> None:
    store = MemoryStore()
    await taken(store, FIRST)
    data = b"m" * (BLOCK_SIZE_BYTES + 5)
    local = make_step(directory, 1, files={**SMALL, "big.bin": data})
    key, file = "step_1/g1/big.bin", next(one for one in local.record.files if one.path == "big.bin")
    upload_id = await store.create_upload(key)
    directory.uploads.mkdir(parents=True)
    Journal(directory).begin(
        Unfinished(
            destination=store.uri, key=key, upload_id=upload_id, size_bytes=file.size_bytes,
            crc64nvme=file.crc64nvme, part_size_bytes=BLOCK_SIZE_BYTES,
        )
    )  # fmt: skip
    etag = await store.upload_part(key, upload_id, 1, data[:BLOCK_SIZE_BYTES], file.blocks[0])
    Journal(directory).took(key, 1, etag)
    [path] = directory.uploads.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = DAMAGES[damage](lines[line].rstrip(b"\n")).rstrip(b"\n") + b"\n"
    path.write_bytes(b"".join(lines))
    await expect_durable(directory, store, 1)
    if not (damage == "another schema" and line == 1):  # a part has none
        assert str(path) in caplog.text and DAMAGED in caplog.text
        assert (directory.uploads / DAMAGED).exists()
    assert list(directory.uploads.glob("*.jsonl")) == []


@each_without_run
async def test_what_is_in_the_queue_is_passed_over_and_named(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    store = await a_durable_step(directory)
    queue.put(directory.events(0), CheckpointSaved(generation=1, step=2))
    path = directory.events(0)
    path.write_bytes(DAMAGES[damage](path.read_bytes()).rstrip(b"\n") + b"\n")
    queue.put(directory.events(0), CheckpointSaved(generation=1, step=2))
    with caplog.at_level(logging.WARNING):
        await expect_durable(directory, store, 2, 1)
    if damage not in (
        "empty",
        "a bit flipped",
        "another schema",
    ):  # what can be read is believed: it is a hint
        assert f"{path}: an event can't be read" in caplog.text
    assert not path.exists()


@each
async def test_status_json_is_written_anew(directory: RunDirectory, damage: str) -> None:
    store = await a_durable_step(directory)
    spoil(directory.status_file, EVERY[damage])
    if damage != "of another run":
        with pytest.raises(CorruptError, match=r"status\.json"):
            read_status(directory.status_file)
    await expect_durable(directory, store, 2, 1)
    status = read_status(directory.status_file)
    assert status is not None and (status.run, status.newest_durable_step) == ("run", 2)


@each
async def test_a_node_record_fails_its_step_and_no_other(directory: RunDirectory, damage: str) -> None:
    store = await a_durable_step(directory)
    make_step(directory, 3)
    record = directory.step(3) / layout.node_record(0)
    was = record.read_bytes()
    spoil(record, EVERY[damage])
    with pytest.raises(CorruptError, match=r"step_3/node-0000\.json"):
        await make_service(directory, store, RUN).once()
    index = await assert_whole(store)
    assert index is not None and {*index.live} == {"step_1", "step_2"}
    assert directory.step(3).exists(), "it is left for a person to look at"
    record.write_bytes(was)
    await expect_durable(directory, store, 3, 2, 1)


@each_without_run
async def test_a_heartbeat_is_written_anew(directory: RunDirectory, damage: str) -> None:
    store = await a_durable_step(directory)
    await spoil_stored(store, layout.heartbeat_key(1), DAMAGES[damage])
    await make_service(directory, store, run_file(upload=AT_ONCE)).serve()
    data, _ = await store.get(layout.heartbeat_key(1))
    assert b'"released":true' in data


async def test_a_heartbeat_is_never_that_of_another_generation(directory: RunDirectory) -> None:
    store = await a_durable_step(directory)
    second = claim((1, None), (2, 2))
    await taken(store, second)
    await make_service(directory, store, run_file(second, upload=AT_ONCE)).serve()
    data, _ = await store.get(layout.heartbeat_key(2))
    assert b'"generation":2' in data and b'"count":1' in data
