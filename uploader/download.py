"""The files of one checkpoint, from a store to a directory: parts in parallel, verified as they come.

A part is fetched into a buffer, and checked and written by one thread while others are fetched. So memory is
bounded by the buffers, and no byte is read twice. What lies on disk already and is right is not fetched.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anyio import to_thread

from uploader import below, checksum, files
from uploader.buffers import PartBuffers
from uploader.errors import CorruptError, ObjectMissing
from uploader.multipart import Progress
from uploader.parts import Part, cut
from uploader.record import FileRecord
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side


@dataclass
class Download:
    """One checkpoint on its way into a directory, which is known by its descriptor.

    Attributes:
        kept_bytes: what was there already.
    """

    store: ObjectStore
    prefix: str
    temporary: Path
    directory: int
    buffers: PartBuffers
    progress: Progress
    kept_bytes: int = 0

    async def file(self, file: FileRecord) -> None:
        """Write one file; it takes no more of the disk than what has come and was found right."""
        path = self.temporary / file.path
        with files.disk_errors("creating", path):
            descriptor = below.create_below(self.directory, file.path)
        try:
            there_bytes = os.fstat(descriptor).st_size
            parts = cut(file.size_bytes, file.blocks, self.buffers.part_size_bytes)
            await side_by_side(partial(self._part, file, descriptor, part, there_bytes) for part in parts)
            with files.disk_errors("writing", path):
                if there_bytes > file.size_bytes:
                    os.ftruncate(descriptor, file.size_bytes)
                await to_thread.run_sync(os.fsync, descriptor)
        finally:
            os.close(descriptor)

    async def _part(self, file: FileRecord, descriptor: int, part: Part, there_bytes: int) -> None:
        """One ranged read, once more where the bytes that arrived are wrong; none where they are there."""
        subject, path = f"{self.store.uri}/{self.prefix}{file.path}", self.temporary / file.path
        async with self.buffers.take(part.size_bytes) as body:
            with files.disk_errors("reading", path):
                is_there = part.start + part.size_bytes <= there_bytes and await to_thread.run_sync(
                    _holds, descriptor, part, body
                )
            for attempt in (1, 2):
                if is_there:
                    break
                await self._fetch(file, part, body)
                with files.disk_errors("writing", path):
                    if await to_thread.run_sync(_keep_if_right, descriptor, part, body):
                        break
                if attempt == 2:
                    raise _differs(part, doing="restoring", subject=subject)
        self.kept_bytes += part.size_bytes if is_there else 0
        self.progress(part.size_bytes)

    async def _fetch(self, file: FileRecord, part: Part, body: memoryview) -> None:
        key = self.prefix + file.path
        try:
            await self.store.get_range(key, part.start, body)
        except ObjectMissing as error:
            subject = f"{self.store.uri}/{key}"
            raise CorruptError("the object is missing", doing="restoring", subject=subject) from error


def _holds(descriptor: int, part: Part, body: memoryview) -> bool:
    """Whether a part lies on disk already. On a thread, as is ``_keep_if_right``."""
    filled = 0
    while filled < len(body) and (count := os.preadv(descriptor, [body[filled:]], part.start + filled)):
        filled += count
    return filled == len(body) and checksum.of_bytes(body) == part.crc64nvme


def _keep_if_right(descriptor: int, part: Part, body: memoryview) -> bool:
    """Write a part to its place, if it is what the record says."""
    if checksum.of_bytes(body) != part.crc64nvme:
        return False
    written = 0
    while written < len(body):
        written += os.pwrite(descriptor, body[written:], part.start + written)
    return True


def _differs(part: Part, *, doing: str, subject: str) -> CorruptError:
    end = part.start + part.size_bytes
    problem = f"bytes {part.start} to {end} (part {part.number}) differ from the record"
    return CorruptError(problem, doing=doing, subject=subject)
