"""Write one checkpoint to local disk: a generator of file operations, and the disk that performs them.

Order: files, each durable before its record; rank record; node record; rename; the parent directory;
the event. A crash before the rename leaves ``step_N.gG.tmp``, which nobody reads; after it, a checkpoint.
"""

import contextlib
import errno
import fcntl
import os
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TypeAlias

from uploader import checksum, files, layout, queue
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.events import CheckpointSaved, Event
from uploader.layout import RunDirectory
from uploader.record import FileRecord, Metrics, NodeRecord, RankRecord


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file to write: its bytes in memory.

    Attributes:
        padded: the same bytes followed by padding to a whole page, for direct writes; None where there is
            no such view.
    """

    name: str
    data: memoryview
    padded: memoryview | None = None


@dataclass(frozen=True, slots=True)
class Clear:
    """Make an empty directory, in place of whatever is there."""

    path: Path


@dataclass(frozen=True, slots=True)
class Write:
    """Write a new file durably; answered with its record, the checksum taken of the bytes in memory."""

    path: Path
    source: FileSource


@dataclass(frozen=True, slots=True)
class Read:
    """Read a small file whole."""

    path: Path


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove a file."""

    path: Path


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """Make the names in a directory durable."""

    path: Path


@dataclass(frozen=True, slots=True)
class Trash:
    """Rename a directory into the trash, if it is there."""

    path: Path
    trash: Path


@dataclass(frozen=True, slots=True)
class Rename:
    """Rename a directory."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class Announce:
    """Append an event to the queue, durably."""

    queue: Path
    event: Event


Operation: TypeAlias = Clear | Write | Read | Remove | SyncDirectory | Trash | Rename | Announce
Answer: TypeAlias = FileRecord | bytes | None


@dataclass(frozen=True, slots=True)
class Description:
    """What a checkpoint's records say besides its files."""

    run: str
    step: int
    generation: int
    created_at: datetime
    metrics: Metrics
    fingerprints: dict[str, str]
    rank: int = 0
    world_size: int = 1
    node: int = 0
    nodes: int = 1
    local_ranks: tuple[int, ...] = (0,)


def write_checkpoint(
    directory: RunDirectory, sources: Sequence[FileSource], what: Description
) -> Generator[Operation, Answer, NodeRecord]:
    """The operations that write a checkpoint of a node with one rank, and the record they end with.

    Yields:
        Operations, to be performed in order; each is answered with its result.
    """
    temporary = directory.temporary(what.step, what.generation)
    yield Clear(temporary)
    written = []
    for source in sources:
        record = yield Write(temporary / source.name, source)
        assert isinstance(record, FileRecord)  # noqa: S101
        written.append(record)
    rank = _rank_record(what, written)
    yield Write(temporary / layout.rank_record(what.rank), _small(rank.encode()))
    return (yield from commit_node(directory, what))


def commit_node(directory: RunDirectory, what: Description) -> Generator[Operation, Answer, NodeRecord]:
    """Commit a step whose ranks have all written their records: node record, rename, event."""
    temporary, target = directory.temporary(what.step, what.generation), directory.step(what.step)
    ranks = []
    for rank in what.local_ranks:
        encoded = yield Read(temporary / layout.rank_record(rank))
        assert isinstance(encoded, bytes)  # noqa: S101
        ranks.append(RankRecord.model_validate_json(encoded))
    node = NodeRecord.merge(ranks, node=what.node, nodes=what.nodes)
    yield Write(temporary / layout.node_record(what.node), _small(node.encode()))
    for rank in what.local_ranks:
        yield Remove(temporary / layout.rank_record(rank))
    yield SyncDirectory(temporary)
    yield Trash(target, directory.trash)  # a superseded step of the same number
    yield Rename(temporary, target)
    yield SyncDirectory(directory.path)
    yield Announce(directory.events(what.rank), CheckpointSaved(generation=what.generation, step=what.step))
    return node


def _small(data: bytes) -> FileSource:
    return FileSource("", memoryview(data))


def _rank_record(what: Description, written: list[FileRecord]) -> RankRecord:
    return RankRecord(
        run=what.run,
        step=what.step,
        generation=what.generation,
        world_size=what.world_size,
        created_at=what.created_at,
        files=written,
        metrics=what.metrics,
        fingerprints=what.fingerprints,
        rank=what.rank,
    )


class Disk:
    """Performs operations on the real file system.

    Files of a block or more are written past the page cache (``O_DIRECT``) where the file system can: it
    neither pushes the trainer's data out of memory nor stalls at the fsync.
    """

    def run(self, operations: Generator[Operation, Answer, NodeRecord]) -> NodeRecord:
        """Perform operations to their end.

        Raises:
            DiskError: one failed; names the path and what to do.
        """
        answer: Answer = None
        try:
            while True:
                operation = operations.send(answer)
                answer = self.perform(operation)
        except StopIteration as end:
            record: NodeRecord = end.value
            return record

    def perform(self, operation: Operation) -> Answer:
        """Perform one operation.

        Raises:
            DiskError: it failed.
        """
        match operation:
            case Announce(path, event):
                with files.disk_errors("announcing to", path):
                    queue.put(path, event)
            case Rename(source, path):
                with files.disk_errors("committing", path):
                    os.rename(source, path)
            case Write(path, source):
                with files.disk_errors("writing", path):
                    return write_file(path, source)
            case Clear(path) | Read(path) | Remove(path) | SyncDirectory(path) | Trash(path):
                with files.disk_errors("saving to", path):
                    return _simple(operation)
        return None


def _simple(operation: Clear | Read | Remove | SyncDirectory | Trash) -> bytes | None:
    match operation:
        case Clear(path):
            files.remove_tree(path)
            files.make_directory(path)
        case Read(path):
            return path.read_bytes()
        case Remove(path):
            path.unlink()
        case SyncDirectory(path):
            files.fsync_directory(path)
        case Trash(path, trash):
            if path.exists():
                files.remove_tree(files.move_to_trash(path, trash))
    return None


def write_file(path: Path, source: FileSource) -> FileRecord:
    """Write a file durably and return its record; the space is reserved before the first byte.

    Raises:
        OSError: the disk is full, read-only or failing.
    """
    direct = source.padded is not None and len(source.data) >= BLOCK_SIZE_BYTES
    descriptor = _create(path, direct=direct)
    try:
        body = source.padded if direct and source.padded is not None else source.data
        if len(body) >= BLOCK_SIZE_BYTES:
            _reserve(descriptor, len(body))
        blocks = []
        for at in range(0, len(source.data), BLOCK_SIZE_BYTES):
            blocks.append(checksum.of_bytes(source.data[at : at + BLOCK_SIZE_BYTES]))
            _write_all(descriptor, body[at : at + BLOCK_SIZE_BYTES], at)
        if len(body) != len(source.data):
            os.ftruncate(descriptor, len(source.data))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    whole = checksum.combine(zip(blocks, checksum.block_sizes(len(source.data)), strict=True))
    return FileRecord(path=path.name, size_bytes=len(source.data), crc64nvme=whole, blocks=blocks)


_DIRECT = getattr(os, "O_DIRECT", 0)


def _create(path: Path, *, direct: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    if direct:
        with contextlib.suppress(OSError):  # tmpfs and some network file systems can't; if more is wrong,
            return os.open(path, flags | _DIRECT, 0o600)  # opening without says so
    return os.open(path, flags, 0o600)


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Take the space at once, where the file system can: a full disk is known before the first byte."""
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise


def _write_all(descriptor: int, data: memoryview, at: int) -> None:
    written = 0
    while written < len(data):
        try:
            written += os.pwrite(descriptor, data[written:], at + written)
        except OSError as error:
            if error.errno != errno.EINVAL or not _end_direct(descriptor):
                raise


def _end_direct(descriptor: int) -> bool:
    """Go on through the page cache: after a short write the rest is not aligned. Whether it was direct."""
    flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
    fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~_DIRECT)
    return bool(flags & _DIRECT)
