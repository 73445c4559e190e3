"""File operations as values, and the disk that performs them.

The writer says what is to be done and in which order; in life this disk does it, in tests one that forgets
what was not made durable.
"""

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from uploader import checksum, files, queue
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import RankLate
from uploader.events import Event
from uploader.record import FileRecord


@dataclass(frozen=True, slots=True)
class FileSource:
    """A file to write: its bytes in memory.

    Attributes:
        padded: the same bytes followed by padding to a whole page, for direct writes; None where there is
            no such view.
        ready: waits until the bytes are there, and raises what kept them from it.
    """

    name: str
    data: memoryview
    padded: memoryview | None = None
    ready: Callable[[], None] = lambda: None


@dataclass(frozen=True, slots=True)
class Clear:
    """Make an empty directory, in place of whatever is there."""

    path: Path


@dataclass(frozen=True, slots=True)
class Make:
    """Make a directory, unless it is there."""

    path: Path


@dataclass(frozen=True, slots=True)
class Await:
    """Wait until another rank has put a file there."""

    path: Path
    rank: int


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
    """Rename a directory, or a file inside one."""

    source: Path
    target: Path


@dataclass(frozen=True, slots=True)
class Announce:
    """Append an event to the queue; a mere hint need not be durable."""

    queue: Path
    event: Event
    durable: bool = True


Operation: TypeAlias = (
    Clear | Make | Await | Write | Read | Remove | SyncDirectory | Trash | Rename | Announce
)
Answer: TypeAlias = FileRecord | bytes | None

T = TypeVar("T")
Operations: TypeAlias = Generator["Operation | SideBySide", Any, T]
"""Operations in their order, each answered, and what they end with."""


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Sequences of which several may go on at once; answered with what they end with, in their order."""

    sequences: tuple[Operations[FileRecord], ...]


RANK_TIMEOUT_S = 600.0
POLL_S = 0.01

FILES_AT_ONCE = 2
"""While one file is checksummed or synced the disk writes another; more gain little and announce later."""


class Disk:
    """Performs operations on the real file system.

    Files of a block or more are written past the page cache (``O_DIRECT``) where the file system can: it
    neither pushes the trainer's data out of memory nor stalls at the fsync.

    Args:
        rank_timeout_s: how long a leader waits for another rank's part of a checkpoint.

    Attributes:
        files_at_once: how many sequences go on side by side.
    """

    files_at_once = FILES_AT_ONCE

    def __init__(self, rank_timeout_s: float = RANK_TIMEOUT_S) -> None:
        self._rank_timeout_s = rank_timeout_s

    def run(self, operations: Operations[T]) -> T:
        """Perform operations to their end.

        Raises:
            DiskError: one failed; names the path and what to do.
        """
        answer: Answer | list[FileRecord] = None
        try:
            while True:
                operation = operations.send(answer)
                if isinstance(operation, SideBySide):
                    answer = self._side_by_side(operation.sequences)
                else:
                    answer = self.perform(operation)
        except StopIteration as end:
            result: T = end.value
            return result

    def _side_by_side(self, sequences: tuple[Operations[FileRecord], ...]) -> list[FileRecord]:
        """The first failure ends those that have not begun. Threads inherit the priority of this one."""
        if self.files_at_once == 1:
            return [self.run(one) for one in sequences]
        with ThreadPoolExecutor(self.files_at_once, thread_name_prefix="wmtp-writer") as pool:
            return list(pool.map(self.run, sequences))

    def perform(self, operation: Operation) -> Answer:
        """Perform one operation.

        Raises:
            DiskError: it failed.
        """
        match operation:
            case Announce(path, event, durable):
                with files.disk_errors("announcing to", path):
                    queue.put(path, event, durable=durable)
            case Rename(source, path):
                with files.disk_errors("committing", path):
                    os.rename(source, path)
            case Write(path, source):
                with files.disk_errors("writing", path):
                    return write_file(path, source)
            case Await(path, rank):
                self._await(path, rank)
            case Clear(path) | Make(path) | Read(path) | Remove(path) | SyncDirectory(path) | Trash(path):
                with files.disk_errors("saving to", path):
                    return _simple(operation)
        return None

    def _await(self, path: Path, rank: int) -> None:
        """There is no notification that works on every file system; a rank takes seconds, a look nothing.

        Raises:
            RankLate: that rank's file did not come in time.
        """
        began_s = time.monotonic()
        while not path.exists():
            if time.monotonic() - began_s > self._rank_timeout_s:
                problem = f"rank {rank} has not written its part within {self._rank_timeout_s:.0f} s"
                hint = "its own messages say why"
                raise RankLate(problem, doing="saving", subject=str(path.parent), hint=hint)
            time.sleep(POLL_S)


def _simple(operation: Clear | Make | Read | Remove | SyncDirectory | Trash) -> bytes | None:
    match operation:
        case Clear(path):
            files.remove_tree(path)
            files.make_directory(path)
        case Make(path):
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
        source.ready()
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
