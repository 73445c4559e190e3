"""From a record to verified files: parallel ranged reads from a store, or a check of what lies on disk.

Every block is compared with the checksum that was taken as its bytes left memory. What is restored is
complete and committed locally, or, after a crash, a directory whose name ends in ``.tmp``.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from anyio import to_thread

from uploader import below, checksum, files, layout
from uploader.buffers import PartBuffers
from uploader.errors import CorruptError, DiskError, ObjectMissing
from uploader.manifest import Entry
from uploader.multipart import Progress
from uploader.parts import Part, cut
from uploader.record import CommitRecord, FileRecord, decode
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side


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
    record: CommitRecord,
    temporary: Path,
    target: Path,
    trash: Path,
    buffers: PartBuffers,
    progress: Progress,
) -> None:
    """Download a checkpoint and commit it locally as ``target``.

    Args:
        prefix: where the record's files lie, relative to the store.
        temporary: written first, then renamed to ``target``; all on one file system.
        trash: where a damaged or superseded ``target`` goes, once the new one is whole.
        progress: called with the number of bytes written and verified.

    Raises:
        CorruptError: a file is missing or differs from its record; names the file and the bytes.
        DiskError: the local disk refused.
    """
    with _made_anew(temporary) as directory:
        await side_by_side(
            partial(_restore_file, store, prefix, temporary, directory, file, buffers, progress)
            for file in record.files
        )
        with files.disk_errors("restoring to", target):
            await to_thread.run_sync(_put_in_place, directory, temporary, target, trash)


@contextmanager
def _made_anew(temporary: Path) -> Iterator[int]:
    """An empty directory in place of whatever is there; from now on it is known by its descriptor."""
    with files.disk_errors("restoring to", temporary):
        files.remove_tree(temporary)
        files.make_directory(temporary.parent)
        temporary.mkdir(mode=0o700)
        directory = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


def _put_in_place(directory: int, temporary: Path, target: Path, trash: Path) -> None:
    os.fsync(directory)
    if not os.path.samestat(os.fstat(directory), temporary.lstat()):
        problem = "something else was put in its place"
        raise DiskError(
            problem, doing="restoring to", subject=str(temporary), hint="find out who writes there"
        )
    if os.path.lexists(target):
        files.remove_tree(files.move_to_trash(target, trash))
    os.rename(temporary, target)
    files.fsync_directory(target.parent)


async def _restore_file(
    store: ObjectStore,
    prefix: str,
    temporary: Path,
    directory: int,
    file: FileRecord,
    buffers: PartBuffers,
    progress: Progress,
) -> None:
    """Write one file; it takes no more of the disk than what has come and was found right."""
    key, path = prefix + file.path, temporary / file.path
    with files.disk_errors("creating", path):
        descriptor = below.create_below(directory, file.path)
        try:
            parts = cut(file.size_bytes, file.blocks, buffers.part_size_bytes)
            await side_by_side(
                partial(_restore_part, store, key, path, descriptor, part, buffers, progress)
                for part in parts
            )
            await to_thread.run_sync(os.fsync, descriptor)
        finally:
            os.close(descriptor)


async def _restore_part(
    store: ObjectStore,
    key: str,
    path: Path,
    descriptor: int,
    part: Part,
    buffers: PartBuffers,
    progress: Progress,
) -> None:
    """One ranged read, once more where the bytes that arrived are wrong."""
    async with buffers.take(part.size_bytes) as body:
        for attempt in (1, 2):
            try:
                await store.get_range(key, part.start, body)
            except ObjectMissing as error:
                problem = "the object is missing"
                raise CorruptError(problem, doing="restoring", subject=f"{store.uri}/{key}") from error
            if await to_thread.run_sync(checksum.of_bytes, body) == part.crc64nvme:
                break
            if attempt == 2:
                end = part.start + part.size_bytes
                problem = f"bytes {part.start} to {end} (part {part.number}) differ from the record"
                raise CorruptError(problem, doing="restoring", subject=f"{store.uri}/{key}")
        with files.disk_errors("writing", path):
            await to_thread.run_sync(_write_exactly, descriptor, part.start, body)
    progress(part.size_bytes)


def _write_exactly(descriptor: int, start: int, data: memoryview) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(descriptor, data[written:], start + written)


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
