"""Whether a foreign checkpoint is all there, by its own format. Reads little, and runs nothing.

A format proves that a file is whole: the sizes in a safetensors header, the central directory at the end of a
zip file (which ``torch.save`` writes), the state that the Hugging Face Trainer writes last. Where no format
does, a checkpoint counts as whole once it has been quiet for a while. Pickles are never read.
"""

import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from uploader.layout import DCP_METADATA
from uploader.patterns import Kind
from uploader.tree import Tree

MAX_SAFETENSORS_HEADER_BYTES = 100_000_000
"""The format's own limit (https://huggingface.co/docs/safetensors)."""
MAX_JSON_BYTES = 256 * 1024**2
MAX_CENTRAL_DIRECTORY_BYTES = 256 * 1024**2

_TORCH_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin"}
_ZIP_MAGIC = b"PK\x03\x04"
_END, _END_64, _LOCATOR_64, _ENTRY = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x01\x02"
_END_BYTES, _END_64_BYTES, _LOCATOR_64_BYTES, _ENTRY_BYTES = 22, 56, 20, 46
_MAX_COMMENT_BYTES = 65_535

TRAINER_STATE = "trainer_state.json"
_LAST_OF_ACCELERATE = "random_states_0.pkl"
_SHARD = re.compile(r"__(?P<rank>[0-9]+)_[0-9]+\.distcp\Z")
_STATE_OF_ONE_RANK = re.compile(r"rng_state_[0-9]+\.pth\Z")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the formats say.

    Attributes:
        flaw: why the checkpoint is not whole, by a file's name; empty where nothing speaks against it.
        proven: a format says that it is whole; else only time can tell.
    """

    flaw: str = ""
    proven: bool = False


def judge(tree: Tree, kind: Kind) -> Verdict:
    """Judge all files of a checkpoint, as they lie there now.

    Raises:
        OSError: a file can't be read, or is gone.
    """
    flaws = _flaws(tree, kind)
    if flaw := next(flaws, ""):
        return Verdict(flaw)
    return Verdict(proven=_is_proven(tree, kind))


def _flaws(tree: Tree, kind: Kind) -> Iterator[str]:
    """What is missing or cut off, what costs least to find first."""
    if tree.unfinished:
        yield f"{tree.unfinished[0]} is still being written"
    if not tree.files:
        yield "it is empty"
    yield from _missing(tree, kind)
    for name in tree.files:
        if problem := file_flaw(tree.root / name):
            yield f"{name}: {problem}"
        elif name.endswith(".index.json"):
            yield from _missing_shards(tree, name)


def _missing(tree: Tree, kind: Kind) -> Iterator[str]:
    """Files without which a directory of this kind is not finished, for they are written last."""
    names = {name for name, file in tree.files.items() if file.size_bytes}
    yield from _missing_metadata(names)
    if kind is Kind.DCP and DCP_METADATA not in names:
        yield f"{DCP_METADATA} is missing"
    if kind is Kind.HUGGING_FACE and not names & {TRAINER_STATE, DCP_METADATA, _LAST_OF_ACCELERATE}:
        yield f"{TRAINER_STATE} is missing"


def _missing_metadata(names: set[str]) -> Iterator[str]:
    """A directory with shards of DCP has one index, or one of each rank (``use_collectives=False``)."""
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix == ".distcp" and str(path.with_name(DCP_METADATA)) not in names:
            rank = found["rank"] if (found := _SHARD.match(path.name)) else ""
            if str(path.with_name(f"__{rank}{DCP_METADATA}")) not in names:
                yield f"{path.with_name(DCP_METADATA)} is missing"


def _missing_shards(tree: Tree, index: str) -> Iterator[str]:
    """Every file that an index of Hugging Face (``weight_map``) names is there."""
    shards = (_read_json(tree.root / index) or {}).get("weight_map")
    for shard in sorted({*map(str, shards.values())} if isinstance(shards, dict) else ()):
        if str(PurePosixPath(index).with_name(shard)) not in tree.files:
            yield f"{shard}, which {index} names, is missing"


def _is_proven(tree: Tree, kind: Kind) -> bool:
    if kind in (Kind.FILE, Kind.LIGHTNING) and len(tree.files) == 1:
        return any(_proves(tree.root / name) for name in tree.files)
    # Several processes write side by side: the one that writes last does not wait for the others.
    of_many = any("/" in name or _STATE_OF_ONE_RANK.match(name) for name in tree.files)
    return kind is Kind.HUGGING_FACE and TRAINER_STATE in tree.files and not of_many


def _proves(path: Path) -> bool:
    """Whether the format of a file without a flaw says that it is whole."""
    return path.suffix == ".safetensors" or _begins_as_zip(path)


def file_flaw(path: Path) -> str:
    """Why a file is not whole; empty where its format says that it is, or says nothing.

    Raises:
        OSError: it can't be read.
    """
    if path.suffix == ".safetensors":
        return _safetensors_flaw(path)
    if path.suffix in _TORCH_SUFFIXES:
        return _torch_flaw(path)
    if path.name == TRAINER_STATE or path.name.endswith(".index.json"):
        return "it is not a JSON object, or not all of it" if _read_json(path) is None else ""
    return ""


def _safetensors_flaw(path: Path) -> str:
    """Header length (8 bytes), header (JSON), and as many bytes as the header says."""
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
        if length > MAX_SAFETENSORS_HEADER_BYTES or 8 + length > size_bytes:
            return f"its header does not fit into {size_bytes} bytes"
        try:
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            wanted_bytes = 8 + length + max(ends, default=0)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return "its header is not that of a safetensors file"
    return "" if size_bytes == wanted_bytes else f"it has {size_bytes} bytes, its header says {wanted_bytes}"


def _torch_flaw(path: Path) -> str:
    """A zip file ends in its directory. The older format of ``torch.save`` is a pickle, and says nothing."""
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        magic = file.read(len(_ZIP_MAGIC))
        if not magic:
            return "it is empty"
        if not _ZIP_MAGIC.startswith(magic):
            return ""
        tail_bytes = min(size_bytes, _END_BYTES + _MAX_COMMENT_BYTES + _LOCATOR_64_BYTES)
        tail_at = size_bytes - tail_bytes
        tail = os.pread(file.fileno(), tail_bytes, tail_at)
        end = _find_end(tail)
        if end < 0:
            return "its zip directory is missing: it is cut off"
        return (
            "" if _directory_is_whole(file.fileno(), tail, end, tail_at) else "its zip directory is damaged"
        )


def _begins_as_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC


def _find_end(tail: bytes) -> int:
    """Where the end record begins, whose comment fills the rest of the file; -1 without one."""
    at = tail.rfind(_END)
    while at >= 0:
        rest = tail[at + _END_BYTES - 2 :]
        if len(rest) >= 2 and struct.unpack_from("<H", rest)[0] == len(rest) - 2:
            return at
        at = tail.rfind(_END, 0, at)
    return -1


def _directory_is_whole(descriptor: int, tail: bytes, end: int, tail_at: int) -> bool:
    """Whether the directory lies right before the end records, with as many entries as they say."""
    entries, length, start = struct.unpack_from("<HII", tail, end + 10)
    records_at = tail_at + end
    locator = end - _LOCATOR_64_BYTES
    if locator >= 0 and tail.startswith(_LOCATOR_64, locator):
        (records_at,) = struct.unpack_from("<Q", tail, locator + 8)
        if records_at > tail_at + locator - _END_64_BYTES:
            return False
        record = os.pread(descriptor, _END_64_BYTES, records_at)
        if not record.startswith(_END_64) or len(record) < _END_64_BYTES:
            return False
        entries, length, start = struct.unpack_from("<QQQ", record, 32)
    if start + length != records_at or length > MAX_CENTRAL_DIRECTORY_BYTES:
        return False
    return bool(_count_entries(os.pread(descriptor, length, start)) == entries)


def _count_entries(directory: bytes) -> int:
    """The entries of a zip directory; -1 where something else stands among them."""
    at = count = 0
    while at < len(directory):
        if not directory.startswith(_ENTRY, at) or at + _ENTRY_BYTES > len(directory):
            return -1
        at += _ENTRY_BYTES + sum(struct.unpack_from("<HHH", directory, at + 28))
        count += 1
    return count if at == len(directory) else -1


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object; None where the file holds none, or only a part of one."""
    with open(path, "rb") as file:
        data = file.read(MAX_JSON_BYTES + 1)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
