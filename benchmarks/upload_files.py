"""The files that are uploaded: a committed step on disk, as the trainer leaves it."""

import argparse
import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from uploader import checksum, layout
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.record import FileRecord, NodeRecord

MIB = 1024**2


@dataclass(frozen=True)
class Shape:
    """So many files of one size."""

    count: int
    size_bytes: int

    @classmethod
    def parse(cls, text: str) -> "Shape":
        """``16x256``: 16 files of 256 MiB."""
        found = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
        if found is None:
            raise argparse.ArgumentTypeError(f"{text!r} is not COUNTxMiB, such as 16x256")
        return cls(int(found[1]), int(found[2]) * MIB)

    def __str__(self) -> str:
        size_mib = self.size_bytes // MIB
        size = f"{size_mib // 1024} GiB" if size_mib % 1024 == 0 else f"{size_mib} MiB"
        return f"{self.count:,} × {size}"


def make_step(directory: Path, shape: Shape) -> dict[str, int]:
    """A committed step as the trainer leaves it: files, and a record with the checksum of each block.

    Returns:
        Names and sizes of the files.
    """
    directory.mkdir(parents=True)
    noise = os.urandom(BLOCK_SIZE_BYTES)
    names = [f"model-rank00000-{number:04d}.safetensors" for number in range(1, shape.count + 1)]
    made = [_make_file(directory / name, shape.size_bytes, noise) for name in names]
    what = {"run": "bench", "step": 1, "generation": 1, "world_size": 1, "created_at": datetime.now(UTC)}
    record = NodeRecord(**what, files=made, node=0, nodes=1, ranks=[0])
    (directory / layout.node_record(0)).write_bytes(record.encode())
    return dict.fromkeys(names, shape.size_bytes)


def _make_file(path: Path, size_bytes: int, noise: bytes) -> FileRecord:
    """No two blocks are alike: each begins with its file's name and its place."""
    blocks = []
    with open(path, "wb") as file:
        for number, size in enumerate(checksum.block_sizes(size_bytes)):
            block = (f"{path.name} {number} ".encode() + noise)[:size]
            blocks.append(checksum.of_bytes(block))
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    whole = checksum.combine(zip(blocks, checksum.block_sizes(size_bytes), strict=True))
    return FileRecord(path=path.name, size_bytes=size_bytes, crc64nvme=whole, blocks=blocks)


def evict(directory: Path) -> None:
    """Let the page cache forget the files; all of them are on disk."""
    for path in directory.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
