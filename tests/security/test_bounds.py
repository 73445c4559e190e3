"""What a file of ours claims is compared with what there is before memory or disk is taken for it."""

import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hostile import COMMIT, EXAMPLES, MANIFEST, NODE, RANK, SHARD, UPLOAD, file_record, tree_of
from safetensors.torch import save
from steps import make_step, node_record, run_file
from torch import ones

from uploader import below, events, layout, queue
from uploader.buffers import PartBuffers
from uploader.checksum import BLOCK_SIZE_BYTES, combine, of_bytes
from uploader.errors import CorruptError
from uploader.events import CheckpointSaved, ShardSaved
from uploader.generation import GenerationFile
from uploader.journal import Unfinished
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.parts import cut
from uploader.queue import EventQueue
from uploader.record import CommitRecord, FileRecord, NodeRecord, RankRecord, decode
from uploader.restore import restore
from uploader.run import RunFile
from uploader.settings import StorageSettings, Strict
from uploader.store.local import LocalStore
from uploader.store.memory import MemoryStore
from uploader.store.s3 import S3Store
from uploader.watch import read_step
from wmtp.checkpoint.load import read_checkpoint
from wmtp.checkpoint.state import unflatten

pytestmark = pytest.mark.anyio

Place = tuple[Location, StorageSettings]
MEBIBYTE = 1024**2
HUGE = [10**9, 2**31, 2**53, 2**63, 2**64, 10**30, 10**4000]


@contextmanager
def little_memory(at_most_bytes: int = 4 * MEBIBYTE) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < at_most_bytes
    finally:
        tracemalloc.stop()


def refused(kind: type[Strict], tree: Any) -> str:
    text = json.dumps(tree) if not isinstance(tree, str) else tree
    with little_memory(), pytest.raises(CorruptError) as caught:
        decode(kind, text.encode(), subject="the-file.json")
    return str(caught.value)


def huge(number: int) -> str:
    """JSON of a number, which Python alone would not print beyond 4,300 digits."""
    return "1" + "0" * 4000 if number == 10**4000 else str(number)


@pytest.mark.parametrize(
    "number", [-1, *HUGE], ids=lambda number: f"{number:.0e}" if number < 1e300 else "1e4000"
)
@pytest.mark.parametrize(
    ("kind", "field"),
    [
        *((kind, "world_size") for kind in (NodeRecord, CommitRecord, RankRecord, RunFile)),
        *((kind, "nodes") for kind in (NodeRecord, CommitRecord, RunFile)),
        *((kind, "node") for kind in (NodeRecord, RunFile)),
        *((kind, "generation") for kind in (NodeRecord, CommitRecord, Manifest, GenerationFile, RunFile)),
        (RankRecord, "rank"),
        (ShardSaved, "rank"),
        (ShardSaved, "generation"),
    ],
)
def test_a_number_that_has_no_name_is_refused(kind: type[Strict], field: str, number: int) -> None:
    tree = tree_of(EXAMPLES[kind])
    assert field in tree
    text = json.dumps({**tree, field: "NUMBER"}).replace('"NUMBER"', huge(number))
    assert field in refused(kind, text)


@pytest.mark.parametrize("number", [-1, 2**53, 2**64, 10**30])
@pytest.mark.parametrize(
    ("kind", "field"), [(NodeRecord, "step"), (ShardSaved, "step"), (Unfinished, "size_bytes")]
)
def test_sizes_and_steps_are_exact_in_every_reader(kind: type[Strict], field: str, number: int) -> None:
    assert field in refused(kind, {**tree_of(EXAMPLES[kind]), field: number})


def test_ranks_are_counted() -> None:
    for ranks in ([-1], [100_000], [0] * 100_001):
        assert "ranks" in refused(NodeRecord, {**tree_of(NODE), "ranks": ranks})
        assert "local_ranks" in refused(RunFile, {**tree_of(run_file()), "local_ranks": ranks})


@pytest.mark.parametrize("size_bytes", [0, BLOCK_SIZE_BYTES + 1, 2**40, 2**52])
@pytest.mark.parametrize("kind", [NodeRecord, CommitRecord, RankRecord])
def test_a_size_that_its_blocks_do_not_make(kind: type[Strict], size_bytes: int) -> None:
    """Told before a block is looked at: 4 PiB have half a billion of them."""
    file = {**file_record("x"), "size_bytes": size_bytes}
    assert "do not make" in refused(kind, {**tree_of(EXAMPLES[kind]), "files": [file]})


@pytest.mark.parametrize("size_bytes", [2**53, 10**30, -1, 1.5, "x", None, []])
def test_a_size_that_is_none(size_bytes: object) -> None:
    file = {**file_record("x"), "size_bytes": size_bytes}
    assert "size_bytes" in refused(NodeRecord, {**tree_of(NODE), "files": [file]})


def test_more_nodes_are_promised_than_there_are() -> None:
    record = {**tree_of(node_record(7)), "nodes": 10_000}
    with little_memory(), pytest.raises(CorruptError, match="1 of 10000 node records"):
        CommitRecord.merge([json.dumps(record).encode()])


@pytest.mark.parametrize("kind", [*EXAMPLES])
@pytest.mark.parametrize("opening", ["[", '{"a":', '{"files":[', '[{"x":'])
def test_json_that_is_nested_without_end(kind: type[Strict], opening: str) -> None:
    refused(kind, opening * 200_000)


@pytest.mark.parametrize("number", [0, -1, 10_001, 10**9])
def test_a_part_number_that_s3_does_not_have(number: int) -> None:
    assert "etags" in refused(Unfinished, {**tree_of(UPLOAD), "etags": {str(number): "x"}})
    for size_bytes in (0, 1, BLOCK_SIZE_BYTES + 1):
        assert "part_size_bytes" in refused(Unfinished, {**tree_of(UPLOAD), "part_size_bytes": size_bytes})


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """A limit that a test can exceed at little cost."""
    monkeypatch.setattr(below, "MAX_SMALL_BYTES", 1000)
    return 1000


def sparse(path: Path, size_bytes: int) -> None:
    """A file of zeros that takes no room on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        os.truncate(file.fileno(), size_bytes)


async def test_the_limit_is_named_and_nothing_is_read(directory: RunDirectory) -> None:
    """As it is in life: a manifest of 128 MiB and a byte, as somebody may have put it there."""
    sparse(directory.path / "manifest.json", below.MAX_SMALL_BYTES + 1)
    store = LocalStore(directory.path)
    with (
        little_memory(),
        pytest.raises(CorruptError, match=r"134217729 bytes, the limit is 134217728") as caught,
    ):
        await ManifestFile(store, "run", RunKeys()).read()
    assert "manifest.json" in str(caught.value)


async def test_nor_is_it_fetched_from_s3(s3_place: Place, small_limit: int) -> None:
    location, storage = s3_place
    async with S3Store.open(location, storage) as store:
        await store.put("manifest.json", b" " * (small_limit + 1))
        await store.put("fits", b" " * small_limit)
        with pytest.raises(CorruptError, match=r"manifest\.json: it has 1001 bytes, the limit is 1000"):
            await store.get("manifest.json")
        assert len((await store.get("fits"))[0]) == small_limit  # and the connection is good for more


@pytest.mark.parametrize("name", ["run.json", "step_7/node-0000.json", ".uploader/status.json"])
def test_nor_from_the_disk(directory: RunDirectory, name: str) -> None:
    read: dict[str, Callable[[], object]] = {
        "run.json": lambda: RunFile.read(directory),
        "step_7/node-0000.json": lambda: read_step(directory.step(7)),
        ".uploader/status.json": lambda: below.read_small(directory.status_file),
    }
    sparse(directory.path / name, 2**40)
    with little_memory(), pytest.raises(CorruptError, match="the limit is"):
        read[name]()


def test_bytes_at_hand_are_measured_before_they_are_read(small_limit: int) -> None:
    assert "the limit is 1000" in refused(Manifest, " " * (small_limit + 1) + json.dumps(tree_of(MANIFEST)))


def test_a_queue_without_end_is_read_in_pieces(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "READ_BYTES", 300)
    path, event = directory.events(0), CheckpointSaved(generation=1, step=7)
    path.write_bytes(b"x" * 1000 + b"\n" + SHARD.model_dump_json().encode() + b"\n")
    queue.put(path, event)
    reader, received = EventQueue(path), list[events.Event]()
    for _ in range(8):
        received = reader.receive()
    assert event in received
    for one in received:
        reader.acknowledge(one)
    assert not path.exists()


def test_a_line_without_end_takes_no_memory(directory: RunDirectory) -> None:
    sparse(directory.events(0), 2**36)
    with little_memory(3 * queue.READ_BYTES):
        assert EventQueue(directory.events(0)).receive() == []


async def test_restore_takes_no_disk_for_what_does_not_come(directory: RunDirectory) -> None:
    """The record says 64 GiB, all zeros, and is right in itself; the object has ten bytes."""
    block, count = of_bytes(bytes(BLOCK_SIZE_BYTES)), 8192
    size_bytes = count * BLOCK_SIZE_BYTES
    whole = combine([(block, BLOCK_SIZE_BYTES)] * count)
    file = FileRecord(path="x", size_bytes=size_bytes, crc64nvme=whole, blocks=[block] * count)
    record = COMMIT.model_copy(update={"files": [file]})
    store, buffers = MemoryStore(), PartBuffers(BLOCK_SIZE_BYTES, 2)
    await store.put("step_7/g1/x", b"0123456789")
    temporary = directory.temporary(7, 2)
    with little_memory(40 * MEBIBYTE), pytest.raises(CorruptError):
        await restore(
            store,
            "step_7/g1/",
            record,
            temporary,
            directory.step(7),
            directory.trash,
            buffers,
            lambda _: None,
        )
    assert _disk_bytes(temporary / "x") == 0


def _disk_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


def test_a_part_to_restore_is_never_larger_than_a_buffer() -> None:
    """An upload of 5 TiB has parts of 528 MiB; a download needs none of that size."""
    blocks = ["AAAAAAAAAAA="] * 20_001
    parts = cut(20_001 * BLOCK_SIZE_BYTES, blocks, BLOCK_SIZE_BYTES)
    assert len(parts) == 20_001 and {part.size_bytes for part in parts} == {BLOCK_SIZE_BYTES}


def with_shard(directory: RunDirectory, data: bytes) -> NodeRecord:
    """A step whose shard has these bytes, by a record that is right about them."""
    return make_step(directory, 7, files={"m.safetensors": data, layout.state_file(0): b"{}"}).record


GOOD = save({"w": ones(4)})


def header(text: str, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode() + data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:7],
        struct.pack("<Q", 2**63) + GOOD[8:],
        struct.pack("<Q", 2**64 - 1) + GOOD[8:],
        struct.pack("<Q", 100_000_001) + GOOD[8:],
        struct.pack("<Q", len(GOOD) + 1) + GOOD[8:],
        header('{"w":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        header('{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'),
        header('{"w":{"dtype":"F32","shape":[4],"data_offsets":[8,24]}}', bytes(24)),
        header('{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', bytes(4)),
        header("[" * 100_000),
        header('{"a":' * 100_000),
    ],
)
def test_a_header_that_promises_what_the_file_does_not_hold(directory: RunDirectory, data: bytes) -> None:
    record = with_shard(directory, data)
    with little_memory(), pytest.raises(CorruptError, match=r"m\.safetensors"):
        read_checkpoint(directory.step(7), record)


@pytest.mark.parametrize("opening", ["[", '{"model":', '{"extra":{"a":['])
def test_a_state_that_is_nested_without_end(directory: RunDirectory, opening: str) -> None:
    state = opening.encode() * 200_000
    record = make_step(directory, 7, files={layout.state_file(0): state}).record
    with pytest.raises(CorruptError, match="state-rank00000"):
        read_checkpoint(directory.step(7), record)
    tree: Any = []
    for _ in range(100_000):
        tree = [tree]
    with pytest.raises(CorruptError):
        unflatten(tree, {})
    while tree:  # taken apart by hand: the interpreter would do it by recursion
        tree = tree[0]


def test_the_plain_case_is_loaded(directory: RunDirectory) -> None:
    state = b'{"model": {}, "optim": {}, "extra": {}}'
    record = make_step(directory, 7, files={"m.safetensors": GOOD, layout.state_file(0): state}).record
    assert read_checkpoint(directory.step(7), record).tensors["w"].tolist() == [1, 1, 1, 1]
    assert decode(RankRecord, json.dumps(tree_of(RANK)).encode(), subject="x") == RANK
