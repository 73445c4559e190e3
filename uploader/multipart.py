"""One object: from a file and its record to a verified object in the store.

The checksum sent with every part is combined from the block checksums that the writer took as the bytes
left memory. The store computes its own and refuses a difference, so an object that exists is the file
that was written. Nothing is hashed here, and no part is held in memory: the store sends it from the file.

An upload that ends in the middle, however it ends, stays in the journal: the next attempt goes on with it.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import to_thread

from uploader.errors import ChecksumMismatch, CorruptError, DiskError, ObjectMissing, UploadMissing
from uploader.files import disk_errors
from uploader.flow import Flow
from uploader.journal import Journal, Unfinished
from uploader.parts import Part, part_size, plan, reconcile
from uploader.record import FileRecord
from uploader.store.base import ObjectStore, PartInfo
from uploader.store.body import FileSlice
from uploader.store.body import crc64nvme as checksum_of
from uploader.tasks import side_by_side

log = logging.getLogger("uploader")

Progress = Callable[[int], None]


async def upload_file(
    store: ObjectStore,
    key: str,
    path: Path,
    record: FileRecord,
    flow: Flow,
    journal: Journal,
    progress: Progress,
) -> None:
    """Store the file of ``record`` under ``key``.

    Args:
        progress: called with the number of bytes that the store has taken; negative where it lost some.

    Raises:
        CorruptError: the file is not what its record says; there is no object, perhaps an unfinished upload.
        StoreError: it could not be stored.
    """
    with opened(path, record) as whole:
        cut = part_size(record.size_bytes, flow.part_size(record.size_bytes))
        if record.size_bytes > cut or journal.find(key) is not None:
            await _InParts(store, key, whole, record, flow, journal, progress, cut).send()
        else:
            async with flow.slot():
                await _send(whole, record.crc64nvme, partial(_put, store, key, record.crc64nvme))
            progress(record.size_bytes)


@contextmanager
def opened(path: Path, record: FileRecord) -> Iterator[FileSlice]:
    """All of a file, open as long as the context lasts.

    Raises:
        CorruptError: it is missing or can't be read: as bad as one that is corrupt, and no worse.
    """
    try:
        with disk_errors("reading", path):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except DiskError as error:
        raise CorruptError(error.problem, doing="reading", subject=error.subject) from error
    try:
        yield FileSlice(descriptor, 0, record.size_bytes, str(path))
    finally:
        os.close(descriptor)


async def _put(store: ObjectStore, key: str, crc64nvme: str, body: FileSlice) -> str:
    return await store.put(key, body, crc64nvme=crc64nvme)


@dataclass
class _InParts:
    """The way of one file that is sent in parts.

    Attributes:
        part_size_bytes: for an upload that begins; one that goes on keeps its own.
        told_bytes: what ``progress`` was told.
    """

    store: ObjectStore
    key: str
    whole: FileSlice
    record: FileRecord
    flow: Flow
    journal: Journal
    progress: Progress
    part_size_bytes: int
    told_bytes: int = 0

    async def send(self) -> None:
        """Go on with the upload in the journal, or begin one; once more if the store has lost it."""
        try:
            await self._attempt()
        except UploadMissing as error:
            log.warning("%s; it is begun anew", error)
            self._tell(-self.told_bytes)
            await self._attempt()

    async def _attempt(self) -> None:
        begun = await self._to_continue()
        upload = begun or await self._begin()
        parts = plan(self.record.size_bytes, self.record.blocks, upload.part_size_bytes)
        etags = dict(upload.etags)
        try:
            if begun:
                etags = await self._reconcile(begun, parts)
            missing = [part for part in parts if part.number not in etags]
            await side_by_side(partial(self._send_part, upload, part, etags) for part in missing)
            await self._complete(upload, parts, etags)
        except UploadMissing:
            # It was completed by a request whose answer was lost, or somebody aborted it.
            if not await is_stored(self.store, self.key, self.record):
                self.journal.forget(self.key)
                raise
            self._tell(self.record.size_bytes - self.told_bytes)

    async def _to_continue(self) -> Unfinished | None:
        upload = self.journal.find(self.key)
        if upload is None or upload.is_of(self.store.uri, self.record):
            return upload
        await give_up(self.store, self.journal, upload)
        return None

    async def _begin(self) -> Unfinished:
        """Begin an upload. If we die before it is in the journal, nobody knows it: the commit aborts it."""
        upload = Unfinished(
            destination=self.store.uri,
            key=self.key,
            upload_id=await self.store.create_upload(self.key, crc64nvme=self.record.crc64nvme),
            size_bytes=self.record.size_bytes,
            crc64nvme=self.record.crc64nvme,
            part_size_bytes=self.part_size_bytes,
        )
        await to_thread.run_sync(self.journal.begin, upload)
        return upload

    async def _reconcile(self, upload: Unfinished, parts: list[Part]) -> dict[int, str]:
        """What the store has of an upload that goes on; from now on the journal says the same."""
        stored = await self.store.list_parts(self.key, upload.upload_id)
        etags = reconcile(parts, stored, upload.etags)
        await to_thread.run_sync(self.journal.begin, upload.model_copy(update={"etags": etags}))
        self._tell(sum(part.size_bytes for part in parts if part.number in etags))
        log.info("%s: going on, %d of %d parts are there", self.key, len(etags), len(parts))
        return etags

    async def _send_part(self, upload: Unfinished, part: Part, etags: dict[int, str]) -> None:
        async def put(body: FileSlice) -> str:
            return await self.store.upload_part(self.key, upload.upload_id, part.number, body, part.crc64nvme)

        async with self.flow.slot():
            etag = await _send(self.whole.part(part.start, part.size_bytes), part.crc64nvme, put)
            # Before the slot is free: a crash costs no more than what may be in flight.
            self.journal.took(self.key, part.number, etag)
        etags[part.number] = etag
        self._tell(part.size_bytes)

    async def _complete(self, upload: Unfinished, parts: list[Part], etags: dict[int, str]) -> None:
        named = [PartInfo(part.number, part.size_bytes, etags[part.number], part.crc64nvme) for part in parts]
        try:
            await self.store.complete_upload(
                self.key,
                upload.upload_id,
                named,
                size_bytes=self.record.size_bytes,
                crc64nvme=self.record.crc64nvme,
            )
        except ChecksumMismatch as error:
            await give_up(self.store, self.journal, upload)
            problem = f"{error.problem}; its upload was aborted"
            raise UploadMissing(problem, doing=error.doing, subject=error.subject) from error

    def _tell(self, size_bytes: int) -> None:
        self.told_bytes += size_bytes
        self.progress(size_bytes)


async def give_up(store: ObjectStore, journal: Journal, upload: Unfinished) -> None:
    """Abort an upload that will not go on, then forget it: after a crash in between it is aborted again.

    Raises:
        StoreError: the store refused; it is not forgotten.
    """
    if upload.destination == store.uri:
        await store.abort_upload(upload.key, upload.upload_id)
    else:
        where = f"{upload.destination}/{upload.key}"
        log.warning("%s: an unfinished upload is left there (%s)", where, upload.upload_id)
    journal.forget(upload.key)


async def is_stored(store: ObjectStore, key: str, record: FileRecord) -> bool:
    """Whether the store holds exactly this file under the key, by size and full-object checksum."""
    try:
        info = await store.head(key)
    except ObjectMissing:
        return False
    return info.size_bytes == record.size_bytes and info.crc64nvme == record.crc64nvme


async def _send(body: FileSlice, crc64nvme: str, request: Callable[[FileSlice], Awaitable[str]]) -> str:
    """Send a part of a file; when the store says BadDigest, once more if the file is not to blame.

    Raises:
        CorruptError: the file is not what was written.
        ChecksumMismatch: the file is, but the store received something else, twice.
    """
    try:
        return await request(body)
    except ChecksumMismatch:
        if await to_thread.run_sync(checksum_of, body) != crc64nvme:
            problem = f"bytes {body.start} to {body.start + len(body)} are not those that were written"
            raise CorruptError(problem, doing="uploading", subject=body.name) from None
    return await request(body)
