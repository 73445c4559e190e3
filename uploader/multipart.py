"""One object: from a file and its record to a verified object in the store.

The checksum sent with every part is combined from the block checksums that the writer took as the bytes
left memory. The store computes its own and refuses a difference, so an object that exists is the file
that was written. Nothing is hashed here.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from uploader import checksum
from uploader.errors import (
    ChecksumMismatch,
    CorruptError,
    DiskError,
    ObjectMissing,
    UploadMissing,
    WmtpError,
)
from uploader.files import disk_errors
from uploader.parts import Part, plan
from uploader.record import FileRecord
from uploader.store.base import ObjectStore, PartInfo
from uploader.tasks import side_by_side

Progress = Callable[[int], None]


class PartBuffers:
    """A fixed number of reused buffers: the bound on memory and on parts in flight, over all files."""

    def __init__(self, part_size_bytes: int, count: int) -> None:
        self.part_size_bytes = (
            max(part_size_bytes // checksum.BLOCK_SIZE_BYTES, 1) * checksum.BLOCK_SIZE_BYTES
        )
        self._limiter = anyio.Semaphore(count)
        self._free: list[bytearray] = []

    @asynccontextmanager
    async def take(self, size_bytes: int) -> AsyncIterator[memoryview]:
        """A buffer of ``size_bytes``, waiting for one to come free.

        A part may have to be larger than wanted (10,000 parts must do); its buffer then grows for good.
        """
        async with self._limiter:
            buffer = self._free.pop() if self._free else bytearray(self.part_size_bytes)
            if len(buffer) < size_bytes:
                buffer = bytearray(size_bytes)
            try:
                yield memoryview(buffer)[:size_bytes]
            finally:
                self._free.append(buffer)


async def upload_file(
    store: ObjectStore, key: str, path: Path, record: FileRecord, buffers: PartBuffers, progress: Progress
) -> None:
    """Store the file of ``record`` under ``key``.

    Args:
        progress: called with the number of bytes that the store has taken.

    Raises:
        CorruptError: the file is not what its record says; nothing was stored.
        StoreError: it could not be stored.
    """
    parts = plan(record.size_bytes, record.blocks, buffers.part_size_bytes)
    with _reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if len(parts) <= 1:
            await _put(store, key, descriptor, path, record, buffers)
            progress(record.size_bytes)
        else:
            await _put_in_parts(store, key, descriptor, path, record, parts, buffers, progress)
    finally:
        os.close(descriptor)


async def _put(
    store: ObjectStore, key: str, descriptor: int, path: Path, record: FileRecord, buffers: PartBuffers
) -> None:
    whole = Part(1, 0, record.size_bytes, record.crc64nvme)
    async with buffers.take(record.size_bytes) as body:
        put = partial(store.put, key, body, crc64nvme=record.crc64nvme)
        await _send(descriptor, path, whole, body, put)


async def _put_in_parts(
    store: ObjectStore,
    key: str,
    descriptor: int,
    path: Path,
    record: FileRecord,
    parts: list[Part],
    buffers: PartBuffers,
    progress: Progress,
) -> None:
    upload_id = await store.create_upload(key)
    done: dict[int, PartInfo] = {}

    async def send(part: Part) -> None:
        async with buffers.take(part.size_bytes) as body:
            upload = partial(store.upload_part, key, upload_id, part.number, body, part.crc64nvme)
            etag = await _send(descriptor, path, part, body, upload)
        done[part.number] = PartInfo(part.number, part.size_bytes, etag, part.crc64nvme)
        progress(part.size_bytes)

    try:
        await side_by_side(partial(send, part) for part in parts)
        ordered = [done[part.number] for part in parts]
        await store.complete_upload(
            key, upload_id, ordered, size_bytes=record.size_bytes, crc64nvme=record.crc64nvme
        )
    except UploadMissing:
        # The answer of an earlier, successful complete was lost; or somebody aborted the upload.
        if not await is_stored(store, key, record):
            raise
    except BaseException:
        # What failed first is what to tell of, whatever becomes of the tidying up.
        with anyio.CancelScope(shield=True), anyio.move_on_after(_ABORT_TIMEOUT_S), suppress(WmtpError):
            await store.abort_upload(key, upload_id)
        raise


_ABORT_TIMEOUT_S = 5.0
"""How long a failing or cancelled upload may take to tidy up. What it leaves, the next start aborts."""


async def is_stored(store: ObjectStore, key: str, record: FileRecord) -> bool:
    """Whether the store holds exactly this file under the key, by size and full-object checksum."""
    try:
        info = await store.head(key)
    except ObjectMissing:
        return False
    return info.size_bytes == record.size_bytes and info.crc64nvme == record.crc64nvme


async def _send(
    descriptor: int, path: Path, part: Part, body: memoryview, request: Callable[[], Awaitable[str]]
) -> str:
    """Read a part and send it; when the store says BadDigest, once more.

    Raises:
        CorruptError: the file is not what was written.
        ChecksumMismatch: the file is, but the store received something else, twice.
    """

    async def read_and_request() -> str:
        with _reading(path):
            await to_thread.run_sync(_read_exactly, descriptor, part.start, body, str(path))
        # The memory is the trainer's: what was read once is not kept in the page cache.
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, part.start, part.size_bytes, os.POSIX_FADV_DONTNEED)
        return await request()

    with suppress(ChecksumMismatch):
        return await read_and_request()
    try:
        return await read_and_request()
    except ChecksumMismatch:
        if checksum.of_bytes(body) == part.crc64nvme:
            raise
        problem = f"bytes {part.start} to {part.start + part.size_bytes} are not those that were written"
        raise CorruptError(problem, doing="uploading", subject=str(path)) from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A file that is missing or can't be read is as bad as one that is corrupt, and no worse."""
    try:
        with disk_errors("reading", path):
            yield
    except DiskError as error:
        raise CorruptError(error.problem, doing="reading", subject=error.subject) from error


def _read_exactly(descriptor: int, start: int, into: memoryview, name: str) -> None:
    filled = 0
    while filled < len(into):
        count = os.preadv(descriptor, [into[filled:]], start + filled)
        if count == 0:
            raise CorruptError(f"it ends at byte {start + filled}", doing="reading", subject=name)
        filled += count
