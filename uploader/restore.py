"""From a record to verified files: parallel ranged reads from a store, or a check of what lies on disk.

Every block is compared with the checksum that was taken as its bytes left memory. What is restored is
complete and committed locally, or, after a crash, a directory that nobody reads but the next restore, which
goes on there: the checksums tell what of it is right, so there is no journal.
"""

import fcntl
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

from anyio import to_thread

from uploader import below, checksum, files, layout
from uploader.buffers import PartBuffers
from uploader.download import Download
from uploader.errors import CorruptError, DiskError, ObjectMissing
from uploader.manifest import Entry
from uploader.multipart import Progress
from uploader.record import CommitRecord, FileRecord, NodeRecord, decode
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side

Restorable = CommitRecord | NodeRecord
"""What names every file of a checkpoint: in a store, or of one node on its disk."""


async def read_commit_record(store: ObjectStore, entry: Entry) -> CommitRecord:
    """The commit record that an entry of the manifest names.

    Raises:
        CorruptError: it is not there, can't be read, or is another step's.
    """
    subject = f"{store.uri}/{entry.record}"
    if not layout.is_safe_path(entry.record):
        raise CorruptError("its key could leave the run", doing="reading", subject=subject)
    try:
        data, _ = await store.get(entry.record)
    except ObjectMissing as error:
        raise CorruptError("the commit record is missing", doing="reading", subject=subject) from error
    record = decode(CommitRecord, data, subject=subject)
    if (record.step, record.generation) != (entry.step, entry.generation):
        raise CorruptError(f"it is the record of step {record.step}", doing="reading", subject=subject)
    return record


async def restore(
    store: ObjectStore,
    prefix: str,
    record: Restorable,
    temporary: Path,
    target: Path,
    trash: Path | None,
    buffers: PartBuffers,
    progress: Progress,
    origin: str | None = None,
) -> int:
    """Download a checkpoint and commit it locally as ``target``.

    What an interrupted restore left in ``temporary`` is read again, and what is right of it is kept.

    Args:
        prefix: where the record's files lie, relative to the store.
        temporary: written first, then renamed to ``target``; all on one file system.
        trash: where a damaged or superseded ``target`` goes, once the new one is whole; None: a ``target``
            that is not an empty directory stays, and that is an error.
        progress: called with the number of bytes written, or found there, and verified.
        origin: noted in the copy, as it comes into view: the run's destination, where this is its directory.

    Returns:
        How many bytes were there already.

    Raises:
        CorruptError: a file is missing or differs from its record; names the file and the bytes.
        DiskError: the local disk refused, or another process restores to the same place.
    """
    with _held(temporary) as directory:
        with files.disk_errors("restoring to", temporary):
            await to_thread.run_sync(_forget_all_but, temporary, [file.path for file in record.files])
        download = Download(store, prefix, temporary, directory, buffers, progress)
        await side_by_side(partial(download.file, file) for file in record.files)
        with files.disk_errors("restoring to", target):
            if origin is not None:
                files.write_durably(temporary / layout.ORIGIN_NAME, origin.encode())
            await to_thread.run_sync(_put_in_place, directory, temporary, target, trash)
        return download.kept_bytes


@contextmanager
def _held(temporary: Path) -> Iterator[int]:
    """The directory, made where it is not there, for us alone; from now on it is known by its descriptor."""
    with files.disk_errors("restoring to", temporary):
        if temporary.is_symlink() or not temporary.is_dir():
            files.remove_tree(temporary)
            files.make_directory(temporary.parent)
            temporary.mkdir(mode=0o700)
        directory = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield directory
    except BlockingIOError:
        hint = "wait until it is done"
        problem = "another process restores to the same place"
        raise DiskError(problem, doing="restoring to", subject=str(temporary), hint=hint) from None
    finally:
        os.close(directory)


def _forget_all_but(directory: Path, paths: Collection[str], below_it: str = "") -> None:
    """Delete what is no plain file of these, linked once: it is another checkpoint's, or a trap."""
    parents = {parent for path in paths for parent in map(str, PurePosixPath(path).parents)}
    for entry in [*os.scandir(directory / below_it)]:
        path = below_it + entry.name
        if path in parents and entry.is_dir(follow_symlinks=False):
            _forget_all_but(directory, paths, f"{path}/")
        elif not (
            path in paths
            and entry.is_file(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_nlink == 1
        ):
            files.remove_tree(directory / path)


def _put_in_place(directory: int, temporary: Path, target: Path, trash: Path | None) -> None:
    os.fsync(directory)
    if not os.path.samestat(os.fstat(directory), temporary.lstat()):
        problem = "something else was put in its place"
        raise DiskError(
            problem, doing="restoring to", subject=str(temporary), hint="find out who writes there"
        )
    if trash is not None and os.path.lexists(target):
        files.remove_tree(files.move_to_trash(target, trash))
    os.rename(temporary, target)
    files.fsync_directory(target.parent)


def damage(directory: Path, record_files: list[FileRecord], *, deep: bool = True) -> Iterator[CorruptError]:
    """What differs between a local checkpoint and its record: missing files, sizes, blocks.

    Args:
        deep: also read every byte; else only sizes are compared.
    """
    for file in record_files:
        path = directory / file.path
        try:
            with below.opened_below(directory, file.path) as descriptor:
                yield from _damage(descriptor, path, file, deep=deep)
        except FileNotFoundError:
            yield CorruptError("the file is missing", doing="verifying", subject=str(path))
        except CorruptError as error:
            yield error


def _damage(descriptor: int, path: Path, file: FileRecord, *, deep: bool) -> Iterator[CorruptError]:
    size_bytes = os.fstat(descriptor).st_size
    if size_bytes != file.size_bytes:
        problem = f"it has {size_bytes} bytes, its record says {file.size_bytes}"
        yield CorruptError(problem, doing="verifying", subject=str(path))
    elif deep:
        yield from _damaged_blocks(descriptor, path, file)


def _damaged_blocks(descriptor: int, path: Path, file: FileRecord) -> Iterator[CorruptError]:
    buffer = memoryview(bytearray(min(checksum.BLOCK_SIZE_BYTES, file.size_bytes)))
    with open(descriptor, "rb", buffering=0, closefd=False) as opened:
        for number, expected in enumerate(file.blocks):
            size_bytes = opened.readinto(buffer) or 0
            if checksum.of_bytes(buffer[:size_bytes]) != expected:
                start = number * checksum.BLOCK_SIZE_BYTES
                problem = f"bytes {start} to {start + size_bytes} (block {number}) differ from the record"
                yield CorruptError(problem, doing="verifying", subject=str(path))


def check(directory: Path, record_files: list[FileRecord]) -> None:
    """Verify a local checkpoint, every byte.

    Raises:
        CorruptError: the first difference.
        DiskError: the disk can't be read.
    """
    with files.disk_errors("verifying", directory):
        error = next(damage(directory, record_files), None)
    if error is not None:
        raise error


async def check_stored(
    store: ObjectStore, prefix: str, record: CommitRecord, report: Callable[[CorruptError], None]
) -> None:
    """Compare sizes and full-object checksums, as the store reports them, with a commit record."""

    async def look(file: FileRecord) -> None:
        key = prefix + file.path
        subject = f"{store.uri}/{key}"
        try:
            info = await store.head(key)
        except ObjectMissing:
            report(CorruptError("the object is missing", doing="verifying", subject=subject))
            return
        if info.size_bytes != file.size_bytes:
            problem = f"it has {info.size_bytes} bytes, its record says {file.size_bytes}"
            report(CorruptError(problem, doing="verifying", subject=subject))
        elif info.crc64nvme is not None and info.crc64nvme != file.crc64nvme:
            problem = f"its checksum is {info.crc64nvme}, its record says {file.crc64nvme}"
            report(CorruptError(problem, doing="verifying", subject=subject))

    await side_by_side(partial(look, file) for file in record.files)
