"""One object: from a file and its record to a verified object in the store.

The checksum sent with every part is combined from the block checksums that the writer took as the bytes
left memory. The store computes its own and refuses a difference, so an object that exists is the file
that was written. Nothing is hashed here, and no part is held in memory: the store sends it from the file.
"""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from uploader.errors import (
    ChecksumMismatch,
    CorruptError,
    DiskError,
    ObjectMissing,
    UploadMissing,
    WmtpError,
)
from uploader.files import disk_errors
from uploader.flow import Flow
from uploader.parts import Part, plan
from uploader.record import FileRecord
from uploader.store.base import ObjectStore, PartInfo
from uploader.store.body import FileSlice
from uploader.store.body import crc64nvme as checksum_of
from uploader.tasks import side_by_side

Progress = Callable[[int], None]


async def upload_file(
    store: ObjectStore, key: str, path: Path, record: FileRecord, flow: Flow, progress: Progress
) -> None:
    """Store the file of ``record`` under ``key``.

    Args:
        progress: called with the number of bytes that the store has taken.

    Raises:
        CorruptError: the file is not what its record says; nothing was stored.
        StoreError: it could not be stored.
    """
    parts = plan(record.size_bytes, record.blocks, flow.part_size_bytes)
    with _reading(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        whole = FileSlice(descriptor, 0, record.size_bytes, str(path))
        if len(parts) <= 1:
            async with flow.slot():
                await _send(whole, record.crc64nvme, partial(_put, store, key, record.crc64nvme))
            progress(record.size_bytes)
        else:
            await _put_in_parts(store, key, whole, record, parts, flow, progress)
    finally:
        os.close(descriptor)


async def _put(store: ObjectStore, key: str, crc64nvme: str, body: FileSlice) -> str:
    return await store.put(key, body, crc64nvme=crc64nvme)


async def _put_in_parts(
    store: ObjectStore,
    key: str,
    whole: FileSlice,
    record: FileRecord,
    parts: list[Part],
    flow: Flow,
    progress: Progress,
) -> None:
    upload_id = await store.create_upload(key)
    done: dict[int, PartInfo] = {}

    async def send(part: Part) -> None:
        async def put(body: FileSlice) -> str:
            return await store.upload_part(key, upload_id, part.number, body, part.crc64nvme)

        async with flow.slot():
            etag = await _send(whole.part(part.start, part.size_bytes), part.crc64nvme, put)
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


async def _send(body: FileSlice, crc64nvme: str, request: Callable[[FileSlice], Awaitable[str]]) -> str:
    """Send a part of a file; when the store says BadDigest, once more.

    Raises:
        CorruptError: the file is not what was written.
        ChecksumMismatch: the file is, but the store received something else, twice.
    """
    with suppress(ChecksumMismatch):
        return await request(body)
    try:
        return await request(body)
    except ChecksumMismatch:
        if await to_thread.run_sync(checksum_of, body) == crc64nvme:
            raise
        problem = f"bytes {body.start} to {body.start + len(body)} are not those that were written"
        raise CorruptError(problem, doing="uploading", subject=body.name) from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """A file that is missing or can't be read is as bad as one that is corrupt, and no worse."""
    try:
        with disk_errors("reading", path):
            yield
    except DiskError as error:
        raise CorruptError(error.problem, doing="reading", subject=error.subject) from error
