"""A store in a dictionary: the semantics of the others, with faults on demand.

Each call is one operation, noted in ``operations``; ``faults`` may make it fail before its effect (a refused
request) or after it (a lost answer). Between the two nothing else runs, so an effect is atomic.
"""

import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import anyio.lowlevel

from uploader import checksum
from uploader.errors import (
    ChecksumMismatch,
    CorruptError,
    ObjectMissing,
    PreconditionFailed,
    UploadMissing,
    WmtpError,
)
from uploader.store.base import NewObject, ObjectInfo, PartInfo, UploadInfo
from uploader.store.body import Body, pieces

PAGE = 1000
"""Keys in one page of a listing and in one batch of deletions, as in S3."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One request: the name of its method and what it was about.

    Attributes:
        key: the key, or the prefix of a listing; of a batch of deletions the first key.
        number: of a part; 0 elsewhere.
    """

    name: str
    key: str
    number: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong with an operation: ``before`` its effect, or ``after`` it, when the answer is lost."""

    error: WmtpError
    when: Literal["before", "after"] = "before"


@dataclass(slots=True)
class _Upload:
    key: str
    initiated_at: float
    parts: dict[int, tuple[PartInfo, bytes]] = field(default_factory=dict)


class MemoryStore:
    """An ``ObjectStore`` in this process.

    Args:
        faults: asked once for each operation; None lets it pass.
        now: the store's clock, seconds since the epoch.
    """

    def __init__(
        self,
        *,
        faults: Callable[[Operation], Fault | None] | None = None,
        now: Callable[[], float] = time.time,
        uri: str = "memory://",
    ) -> None:
        self.faults = faults
        self.operations: list[Operation] = []
        self._now, self._uri = now, uri
        self._objects: dict[str, tuple[ObjectInfo, bytes]] = {}
        self._uploads: dict[str, _Upload] = {}
        self._upload_ids = (f"upload-{number}" for number in itertools.count(1))

    @property
    def uri(self) -> str:
        return self._uri

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        await anyio.lowlevel.checkpoint()
        with self._operation("get", key):
            info, data = self._find(key)
            return data, info

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        await anyio.lowlevel.checkpoint()
        with self._operation("get_range", key):
            info, data = self._find(key)
            if start + len(into) > len(data):
                raise CorruptError(f"it has only {info.size_bytes} bytes", doing="reading", subject=key)
            into[:] = data[start : start + len(into)]

    async def head(self, key: str) -> ObjectInfo:
        await anyio.lowlevel.checkpoint()
        with self._operation("head", key):
            return self._find(key)[0]

    async def put(
        self,
        key: str,
        body: Body,
        *,
        crc64nvme: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        await anyio.lowlevel.checkpoint()
        with self._operation("put", key):
            data = _verified(body, crc64nvme, key)
            stored = self._objects.get(key)
            if if_absent and stored:
                raise PreconditionFailed("the object exists already", doing="creating", subject=key)
            if if_match is not None and (stored is None or stored[0].etag != if_match):
                raise PreconditionFailed("the object has changed", doing="replacing", subject=key)
            return self._keep(key, data)

    async def put_some(self, objects: Sequence[NewObject]) -> int:
        first = objects[0]
        await self.put(first.key, first.body, crc64nvme=first.crc64nvme)
        return 1

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        last = ""
        while True:
            await anyio.lowlevel.checkpoint()
            with self._operation("list", prefix):
                keys = sorted(key for key in self._objects if key.startswith(prefix) and key > last)[:PAGE]
                infos = [self._objects[key][0] for key in keys]
            for info in infos:
                yield info
            if len(keys) < PAGE:
                return
            last = keys[-1]

    async def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), PAGE):
            await anyio.lowlevel.checkpoint()
            with self._operation("delete", keys[start]):
                for key in keys[start : start + PAGE]:
                    self._objects.pop(key, None)

    async def purge(self, prefix: str) -> None:
        """No versions are kept here; the operation is noted."""
        await anyio.lowlevel.checkpoint()
        with self._operation("purge", prefix):
            return

    async def create_upload(self, key: str, *, crc64nvme: str | None = None) -> str:
        await anyio.lowlevel.checkpoint()
        with self._operation("create_upload", key):
            upload_id = next(self._upload_ids)
            self._uploads[upload_id] = _Upload(key, self._now())
            return upload_id

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        await anyio.lowlevel.checkpoint()
        with self._operation("upload_part", key, number):
            upload = self._find_upload(key, upload_id)
            data = _verified(body, crc64nvme, key)
            info = PartInfo(number, len(data), crc64nvme, crc64nvme)
            upload.parts[number] = info, data
            return info.etag

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        await anyio.lowlevel.checkpoint()
        with self._operation("list_parts", key):
            parts = self._find_upload(key, upload_id).parts
            return [parts[number][0] for number in sorted(parts)]

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        await anyio.lowlevel.checkpoint()
        with self._operation("complete_upload", key):
            stored = self._find_upload(key, upload_id).parts
            missing = [
                p.number for p in parts if p.number not in stored or stored[p.number][0].etag != p.etag
            ]
            if missing:
                raise ChecksumMismatch(f"parts {missing} are not stored", doing="completing", subject=key)
            data = b"".join(stored[part.number][1] for part in sorted(parts, key=lambda part: part.number))
            if len(data) != size_bytes or checksum.of_bytes(data) != crc64nvme:
                raise ChecksumMismatch("the parts make other bytes", doing="completing", subject=key)
            del self._uploads[upload_id]
            return self._keep(key, data)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await anyio.lowlevel.checkpoint()
        with self._operation("abort_upload", key):
            self._uploads.pop(upload_id, None)

    async def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        await anyio.lowlevel.checkpoint()
        with self._operation("list_uploads", prefix):
            uploads = [
                UploadInfo(upload.key, upload_id, upload.initiated_at)
                for upload_id, upload in self._uploads.items()
                if upload.key.startswith(prefix)
            ]
        for upload in sorted(uploads, key=lambda upload: (upload.key, upload.upload_id)):
            yield upload

    @contextmanager
    def _operation(self, name: str, key: str, number: int = 0) -> Iterator[None]:
        """Note the operation and let its fault, if any, strike before or after the effect."""
        operation = Operation(name, key, number)
        self.operations.append(operation)
        fault = self.faults(operation) if self.faults else None
        if fault and fault.when == "before":
            raise fault.error
        yield
        if fault:
            raise fault.error

    def _find(self, key: str) -> tuple[ObjectInfo, bytes]:
        try:
            return self._objects[key]
        except KeyError:
            raise ObjectMissing("no such object", doing="reading", subject=key) from None

    def _find_upload(self, key: str, upload_id: str) -> _Upload:
        upload = self._uploads.get(upload_id)
        if upload is None or upload.key != key:
            raise UploadMissing("it was completed or aborted", doing="continuing the upload of", subject=key)
        return upload

    def _keep(self, key: str, data: bytes) -> str:
        crc = checksum.of_bytes(data)
        self._objects[key] = ObjectInfo(key, len(data), crc, crc, self._now()), data
        return crc


def _verified(body: Body, crc64nvme: str | None, key: str) -> bytes:
    data = b"".join(map(bytes, pieces(body)))
    if crc64nvme is not None and checksum.of_bytes(data) != crc64nvme:
        raise ChecksumMismatch(
            "the bytes received are not those of the checksum", doing="storing", subject=key
        )
    return data
