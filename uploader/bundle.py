"""Small files, a request each, several in a row: what a thread and a connection cost is paid once for all.

A bundle is at most as large as a part and takes a slot like one. It has no journal: each file is whole in
the store or not there, and an attempt after a crash finds it by its checksum.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from uploader.errors import ChecksumMismatch
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.multipart import Progress, opened, upload_file
from uploader.record import FileRecord
from uploader.store.base import NewObject, ObjectStore

SMALL = 4
"""So many small files or more make a part."""
FILES_AT_MOST = 16


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a bundle, and the key it goes to."""

    key: str
    path: Path
    record: FileRecord


def bundled(files: Iterable[FileRecord], part_size_bytes: int, at_once: int) -> list[list[FileRecord]]:
    """Put small files together; each other one stays alone. Pure.

    Args:
        at_once: how many may be in flight: few files are not put together, but sent side by side.
    """
    small = [one for one in files if one.size_bytes * SMALL <= part_size_bytes]
    large = [[one] for one in files if one.size_bytes * SMALL > part_size_bytes]
    most = min(FILES_AT_MOST, max(1, len(small) // at_once // 2))
    bundles: list[list[FileRecord]] = []
    left_bytes = 0
    for one in small:
        if not bundles or len(bundles[-1]) == most or one.size_bytes > left_bytes:
            bundles.append([])
            left_bytes = part_size_bytes
        bundles[-1].append(one)
        left_bytes -= one.size_bytes
    return bundles + large


async def upload_bundle(
    members: Sequence[Member], store: ObjectStore, flow: Flow, journal: Journal, progress: Progress
) -> None:
    """Store all files of a bundle, none of which is in the journal.

    Raises:
        CorruptError: a file is not what its record says; those before it are stored.
        StoreError: one could not be stored.
    """
    left = list(members)
    while left:
        try:
            count = await _put_some(left, store, flow)
        except ChecksumMismatch:  # alone it shows whether the file is to blame
            first = left.pop(0)
            await upload_file(store, first.key, first.path, first.record, flow, journal, progress)
            continue
        progress(sum(one.record.size_bytes for one in left[:count]))
        left = left[count:]


async def _put_some(members: Sequence[Member], store: ObjectStore, flow: Flow) -> int:
    async with flow.slot():
        with ExitStack() as stack:
            bodies = [stack.enter_context(opened(one.path, one.record)) for one in members]
            objects = [
                NewObject(one.key, body, one.record.crc64nvme)
                for one, body in zip(members, bodies, strict=True)
            ]
            return await store.put_some(objects)
