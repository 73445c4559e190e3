"""Read a stored checkpoint, every byte, and see whether it would load, without loading it.

Parts are fetched side by side into buffers that bound the memory, and compared with their record. The dry
load reads what a loader believes before it sees a tensor: the headers of safetensors files, and JSON.
"""

import json
import math
import struct
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from anyio import to_thread

from uploader import checksum
from uploader.buffers import PartBuffers
from uploader.completeness import MAX_JSON_BYTES, MAX_SAFETENSORS_HEADER_BYTES
from uploader.errors import CorruptError, ObjectMissing
from uploader.multipart import Progress
from uploader.parts import Part, cut
from uploader.record import FileRecord
from uploader.restore import Restorable
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side

Report = Callable[[CorruptError], None]
Read = Callable[[int, int], Awaitable[bytes]]
"""Some bytes of one file: from where, and how many."""

_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Of an element, by the names of https://github.com/huggingface/safetensors."""


async def check_bytes(
    store: ObjectStore,
    prefix: str,
    record: Restorable,
    buffers: PartBuffers,
    progress: Progress,
    report: Report,
) -> None:
    """Download every part and compare it with the record; each difference is reported, none ends the check.

    Raises:
        StoreError: the store can't be asked.
    """

    async def look(file: FileRecord, part: Part) -> None:
        subject = f"{store.uri}/{prefix}{file.path}"
        async with buffers.take(part.size_bytes) as body:
            try:
                await store.get_range(prefix + file.path, part.start, body)
            except ObjectMissing:
                problem = "the object is missing"
                return report(CorruptError(problem, doing="verifying", subject=subject))
            except CorruptError as error:
                return report(error)
            if await to_thread.run_sync(checksum.of_bytes, body) != part.crc64nvme:
                end = part.start + part.size_bytes
                problem = f"bytes {part.start} to {end} (part {part.number}) differ from the record"
                report(CorruptError(problem, doing="verifying", subject=subject))
        progress(part.size_bytes)

    await side_by_side(
        partial(look, file, part)
        for file in record.files
        for part in cut(file.size_bytes, file.blocks, buffers.part_size_bytes)
    )


async def dry_load(store: ObjectStore, prefix: str, record: Restorable, report: Report) -> None:
    """See whether the files are what their names say, and hold every tensor that the state names.

    Raises:
        StoreError: the store can't be asked.
    """
    tensors, trees = set[str](), list[Any]()
    for file in record.files:
        read = partial(_read, store, prefix + file.path)
        try:
            if file.path.endswith(".safetensors"):
                tensors |= await _tensors(read, file.size_bytes)
            elif file.path.endswith(".json") and file.size_bytes <= MAX_JSON_BYTES:
                trees.append(_decoded(await read(0, file.size_bytes)))
        except (ValueError, CorruptError, ObjectMissing) as error:
            subject = f"{store.uri}/{prefix}{file.path}"
            report(CorruptError(str(error), doing="loading dry", subject=subject))
            return
    if missing := {name for tree in trees for name in _named(tree)} - tensors:
        names = ", ".join(sorted(missing)[:3])
        problem = f"the state names {len(missing)} tensors that no file holds: {names}"
        report(CorruptError(problem, doing="loading dry", subject=f"{store.uri}/{prefix}"))


async def _read(store: ObjectStore, key: str, start: int, size_bytes: int) -> bytes:
    data = bytearray(size_bytes)
    if size_bytes:
        await store.get_range(key, start, memoryview(data))
    return bytes(data)


async def _tensors(read: Read, size_bytes: int) -> set[str]:
    """The names of the tensors of a safetensors file.

    Raises:
        ValueError: it is none, or its header and its size contradict each other.
    """
    length = struct.unpack("<Q", await read(0, 8))[0] if size_bytes >= 8 else size_bytes
    if length > min(MAX_SAFETENSORS_HEADER_BYTES, size_bytes - 8):
        raise ValueError("its header does not fit into it")
    header = _decoded(await read(8, length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("its metadata are no texts")
    end = 0
    for first, last, name in sorted(_extents(header)):
        if first != end:
            raise ValueError(f"{name} begins at byte {first} of the data, not at {end}")
        end = last
    if end != size_bytes - 8 - length:
        raise ValueError(f"its tensors take {end} bytes, it holds {size_bytes - 8 - length}")
    return {*header}


def _extents(header: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
    for name, tensor in header.items():
        try:
            (first, last), shape, bits = tensor["data_offsets"], tensor["shape"], _BITS[tensor["dtype"]]
            size_bits = math.prod(map(int, shape)) * bits
            is_sound = all(isinstance(one, int) and one >= 0 for one in (first, last, *shape))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"what it says of {name!r} is malformed") from error
        if not is_sound or (last - first) * 8 != size_bits:
            raise ValueError(f"{name!r} of shape {shape} does not take bytes {first} to {last}")
        yield first, last, name


def _decoded(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    return value


def _named(tree: Any) -> Iterator[str]:
    """Every ``{"$tensor": name}`` in a state; no recursion, however deep it is."""
    rest = [tree]
    while rest:
        match rest.pop():
            case {"$tensor": str(name)}:
                yield name
            case dict() as branch:
                rest += branch.values()
            case list() as branch:
                rest += branch
