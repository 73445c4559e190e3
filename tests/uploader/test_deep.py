"""The deep check: every byte of every object, and a load without loading."""

import json
import struct
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import node_record

from uploader.buffers import PartBuffers
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.deep import check_bytes, dry_load
from uploader.errors import CorruptError
from uploader.record import CommitRecord
from uploader.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

PREFIX, MODEL, STATE = "step_7/g1/", "model-rank00000-0001.safetensors", "state-rank00000.json"
F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BYTES = {"dtype": "U8", "shape": [3], "data_offsets": [8, 11]}


def shard(header: object, data: bytes = bytes(11)) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


GOOD = {MODEL: shard({"w": F32, "b": BYTES}), STATE: b'{"model": {"w": {"$tensor": "w"}}}'}


async def stored(files: Mapping[str, bytes]) -> tuple[MemoryStore, CommitRecord]:
    store, node = MemoryStore(), node_record(7, files=files)
    for name, data in {**files, "node-0000.json": node.encode()}.items():
        store._keep(PREFIX + name, data)
    return store, CommitRecord.merge([node.encode()])


async def found(files: Mapping[str, bytes]) -> list[str]:
    """What the dry load says of a checkpoint whose bytes are as they were written."""
    store, record = await stored(files)
    errors: list[CorruptError] = []
    await dry_load(store, PREFIX, record, errors.append)
    return [str(error).removeprefix(f"loading dry memory:///{PREFIX}") for error in errors]


async def test_every_difference_is_named_by_its_part() -> None:
    files = {**GOOD, "large.bin": bytes(2 * BLOCK_SIZE_BYTES + 3), "gone.bin": b"gone", "short.bin": b"short"}
    store, record = await stored(files)
    errors, done = list[CorruptError](), list[int]()
    buffers = PartBuffers(BLOCK_SIZE_BYTES, 2)
    await check_bytes(store, PREFIX, record, buffers, done.append, errors.append)
    assert errors == []
    assert sum(done) == record.size_bytes
    large = bytearray(files["large.bin"])
    large[5] ^= 1
    large[-1] ^= 1
    store._keep(PREFIX + "large.bin", bytes(large))
    store._keep(PREFIX + "short.bin", b"sho")
    await store.delete([PREFIX + "gone.bin"])
    await check_bytes(store, PREFIX, record, buffers, done.append, errors.append)
    words = sorted(str(error).partition(PREFIX)[2] for error in errors)
    end = 2 * BLOCK_SIZE_BYTES
    assert words[:3] == [
        "gone.bin: the object is missing",
        f"large.bin: bytes 0 to {BLOCK_SIZE_BYTES} (part 1) differ from the record",
        f"large.bin: bytes {end} to {end + 3} (part 3) differ from the record",
    ]
    assert words[3].startswith("short.bin: it has only 3 bytes")


async def test_a_checkpoint_of_ours_would_load() -> None:
    assert await found(GOOD) == []
    assert await found({**GOOD, "notes.txt": b"{", "empty.bin": b""}) == []
    metadata = {
        "__metadata__": {"format": "pt"},
        "w": F32,
        "b": BYTES,
        "none": {**F32, "shape": [0, 4], "data_offsets": [11, 11]},
    }
    assert await found({MODEL: shard(metadata)}) == []


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "does not fit"),
        (b"short", "does not fit"),
        (struct.pack("<Q", 2**63), "does not fit"),
        (struct.pack("<Q", 2) + b"[]", "no JSON object"),
        (struct.pack("<Q", 3) + b"{no", "no JSON"),
        (shard({"w": F32}), "its tensors take 8 bytes, it holds 11"),
        (shard({"b": BYTES}), "b begins at byte 8 of the data, not at 0"),
        (shard({"w": F32, "b": {**BYTES, "data_offsets": [7, 10]}}), "begins at byte 7"),
        (shard({"w": {**F32, "shape": [3]}, "b": BYTES}), "'w' of shape [3] does not take bytes 0 to 8"),
        (shard({"w": {**F32, "dtype": "F31"}, "b": BYTES}), "'w' is malformed"),
        (shard({"w": {**F32, "shape": [-2]}, "b": BYTES}), "'w' of shape"),
        (shard({"w": 5}), "'w' is malformed"),
        (shard({"__metadata__": {"a": 1}, "w": F32, "b": BYTES}), "metadata"),
    ],
)
async def test_what_no_loader_takes_is_named(data: bytes, problem: str) -> None:
    (told,) = await found({MODEL: data})
    assert told.startswith(f"{MODEL}: ")
    assert problem in told


@pytest.mark.parametrize("state", [b"{", b"[]", b"", b"[" * 100_000])
async def test_a_state_that_is_no_json_is_named(state: bytes) -> None:
    (told,) = await found({**GOOD, STATE: state})
    assert told.startswith(f"{STATE}: it is no JSON")


async def test_a_tensor_that_no_file_holds_is_named() -> None:
    deep = b'{"a": [{"$tuple": [{"$tensor": "lost"}, {"$tensor": "w"}]}]}'
    (told,) = await found({**GOOD, STATE: deep})
    assert "the state names 1 tensors that no file holds: lost" in told


@given(st.binary(max_size=60), st.binary(max_size=20))
async def test_no_bytes_make_it_fail_otherwise(header: bytes, data: bytes) -> None:
    for text in (header, json.dumps({"w": list(header)}).encode()):
        told = await found({MODEL: struct.pack("<Q", len(text)) + text + data})
        assert len(told) <= 1
