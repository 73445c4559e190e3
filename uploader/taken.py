"""Foreign checkpoints that were read: their checksums, and the files as they were, kept on disk.

A restart reads nothing again that has not changed. A file is read once, block by block, and what was read is
not kept in the page cache, which is the trainer's.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Self

from anyio import to_thread
from pydantic import AfterValidator, Field

from uploader import below, checksum, files, layout
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import CorruptError, DiskError
from uploader.layout import RunDirectory
from uploader.record import FileRecord, NodeRecord, decode
from uploader.seal import Sealed
from uploader.settings import SCHEMA_VERSION
from uploader.sighting import Sighting
from uploader.tree import Identity, look_at, shown
from uploader.watch import LocalStep

log = logging.getLogger("uploader")

READ_BYTES = 8 * BLOCK_SIZE_BYTES
"""Read in one go; a signal waits for no more than that."""


@dataclass(frozen=True, slots=True)
class ForeignStep(LocalStep):
    """A whole checkpoint of another trainer.

    Attributes:
        entry: its file or directory; ``path`` is what the record's paths are relative to.
        files: as they were when they were read.
    """

    is_ours: ClassVar[bool] = False
    entry: Path
    files: Mapping[str, Identity]

    def check(self) -> None:
        """Compare the files with what was read.

        Raises:
            CorruptError: one of them changed, came or went.
        """
        with files.disk_errors("looking at", self.entry):
            try:
                problem = "changed" if look_at(self.entry).files != self.files else ""
            except FileNotFoundError:
                problem = "was deleted"
        if problem:
            raise CorruptError(
                f"it {problem} while it was uploaded", doing="committing", subject=shown(self.entry)
            )

    @classmethod
    def of(cls, one: Sighting, record: NodeRecord) -> Self:
        return cls(one.tree.root, record, record.encode(), one.path, one.tree.files)


def _name(entry: str) -> str:
    if Path(entry).name != entry or entry in ("", "..") or "\0" in entry:
        raise ValueError(f"{entry[:100]!r} is not the name of a checkpoint")
    return entry


class Taken(Sealed):
    """``.uploader/foreign/step_N.json``: what reading a checkpoint found."""

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    entry: Annotated[str, AfterValidator(_name)]
    is_directory: bool
    files: dict[str, Identity]
    record: NodeRecord


class TakenSteps:
    """The checkpoints of one run directory that were read, by step."""

    def __init__(self, directory: RunDirectory, run: str) -> None:
        self._directory, self._run = directory, run
        self._path = directory.uploader_directory / "foreign"
        self._taken: dict[int, ForeignStep] = {}
        with files.disk_errors("reading", self._path):
            for path in sorted(self._path.glob("step_*.json")):
                self._load(path)

    def _load(self, path: Path) -> None:
        try:
            data = below.read_small(path)
            taken = decode(Taken, data, subject=str(path), hint="its checkpoint is read again")
        except CorruptError as error:
            log.warning("%s", error)
            path.unlink()
            return
        record, entry = taken.record, self._directory.path / taken.entry
        if layout.parse_step(path.stem) == record.step and record.run == self._run:
            root = entry if taken.is_directory else entry.parent
            self._taken[record.step] = ForeignStep(root, record, record.encode(), entry, taken.files)

    def entry(self, step: int) -> str | None:
        """The name of the checkpoint that was read for a step."""
        return self._taken[step].entry.name if step in self._taken else None

    def has(self, one: Sighting) -> bool:
        """Whether exactly this was read."""
        taken = self._taken.get(one.found.step)
        return taken is not None and taken.entry == one.path and taken.files == one.tree.files

    def steps(self, seen: Iterable[Sighting]) -> list[ForeignStep]:
        """Those of these that were read and did not change since."""
        return [self._taken[one.found.step] for one in seen if self.has(one)]

    def add(self, one: Sighting, record: NodeRecord) -> None:
        """Keep what was read. The same bytes with new times are what they were before: the record stays.

        A disk that is full must not stop the uploads: after a restart the checkpoint is read again.
        """
        before = self._taken.get(record.step)
        if before is not None and before.entry == one.path and before.record.files == record.files:
            record = before.record
        is_directory = one.tree.root == one.path
        taken = Taken(entry=one.path.name, is_directory=is_directory, files=one.tree.files, record=record)
        try:
            with files.disk_errors("writing to", self._path):
                files.make_directory(self._path)
                files.replace(self._file(record.step), taken.encode())
        except DiskError as error:
            log.warning("%s", error)
        self._taken[record.step] = ForeignStep.of(one, record)

    def forget_all_but(self, steps: Iterable[int]) -> None:
        """Drop what was kept of checkpoints that are no longer there."""
        for step in self._taken.keys() - set(steps):
            self._file(step).unlink(missing_ok=True)
            del self._taken[step]

    def _file(self, step: int) -> Path:
        return self._path / f"{layout.step_name(step)}.json"


async def read(one: Sighting, run: str, generation: int) -> NodeRecord | None:
    """Read a checkpoint for its checksums; None if it changed meanwhile.

    Raises:
        OSError: a file can't be read.
    """
    described = []
    for name, identity in one.tree.files.items():
        file = await _describe(one.tree.root / name, name, identity)
        if file is None:
            return None
        described.append(file)
    record = {"run": run, "step": one.found.step, "generation": generation, "created_at": one.tree.created_at}
    return NodeRecord.model_validate(
        {**record, "world_size": 1, "files": described, "node": 0, "nodes": 1, "ranks": [0]}
    )


async def _describe(path: Path, name: str, identity: Identity) -> FileRecord | None:
    size_bytes, blocks = identity.size_bytes, list[str]()
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if Identity.of(os.fstat(descriptor)) != identity:
            return None
        buffer = memoryview(bytearray(min(BLOCK_SIZE_BYTES, size_bytes)))
        for start in range(0, size_bytes, READ_BYTES):
            end = min(start + READ_BYTES, size_bytes)
            blocks += await to_thread.run_sync(_checksums, descriptor, start, end, buffer)
        if Identity.of(os.fstat(descriptor)) != identity:
            return None
    finally:
        os.close(descriptor)
    crc = checksum.combine(zip(blocks, checksum.block_sizes(size_bytes), strict=True))
    return FileRecord(path=name, size_bytes=size_bytes, crc64nvme=crc, blocks=blocks)


def _checksums(descriptor: int, start: int, end: int, buffer: memoryview) -> list[str]:
    """Of the blocks from ``start`` to ``end``. Of a file that was cut off meanwhile they mean nothing."""
    blocks = []
    for at in range(start, end, BLOCK_SIZE_BYTES):
        body, filled = buffer[: min(BLOCK_SIZE_BYTES, end - at)], 0
        while filled < len(body) and (count := os.preadv(descriptor, [body[filled:]], at + filled)):
            filled += count
        blocks.append(checksum.of_bytes(body))
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, start, end - start, os.POSIX_FADV_DONTNEED)
    return blocks
