"""What an object store can do, as a protocol every store keeps.

Keys are relative to the store's root and never begin with a slash. All methods raise only the errors of
``uploader.errors``; each call is one request (``put_some`` may be several, a listing one for each page) and
is not repeated here: ``retry`` does that.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from uploader.store.body import Body


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One stored object.

    Attributes:
        crc64nvme: full-object checksum as S3 writes it; None where the store doesn't tell.
        modified_at: seconds since the epoch, by the store's clock.
    """

    key: str
    size_bytes: int
    etag: str
    crc64nvme: str | None = None
    modified_at: float | None = None


@dataclass(frozen=True, slots=True)
class NewObject:
    """What one request stores: a key, its bytes, and their checksum."""

    key: str
    body: Body
    crc64nvme: str


@dataclass(frozen=True, slots=True)
class PartInfo:
    """One part of an upload; the number starts at 1."""

    number: int
    size_bytes: int
    etag: str
    crc64nvme: str | None = None


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """One multipart upload that is neither completed nor aborted."""

    key: str
    upload_id: str
    initiated_at: float | None = None


class ObjectStore(Protocol):
    """A bucket's prefix, a directory, or a dictionary.

    Raises (every method):
        StoreUnavailable: it may work later.
        StoreDenied: credentials or permissions.
        BucketMissing: the bucket does not exist.
    """

    @property
    def uri(self) -> str:
        """Where the keys begin, for messages: ``s3://bucket/base/run``."""
        ...

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        """A small object, whole.

        Raises:
            ObjectMissing: no such key.
            CorruptError: it is too large for what is read whole (``below.MAX_SMALL_BYTES``).
        """
        ...

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        """Fill ``into`` with the object's bytes from ``start`` on.

        Raises:
            ObjectMissing: no such key.
            CorruptError: the object is too short.
        """
        ...

    async def head(self, key: str) -> ObjectInfo:
        """What the store knows of the object, its checksum included where it keeps one.

        Raises:
            ObjectMissing: no such key.
        """
        ...

    async def put(
        self,
        key: str,
        body: Body,
        *,
        crc64nvme: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """Store an object with one request and return its ETag.

        Args:
            crc64nvme: checksum of the body, verified on receipt; computed here if None.
            if_absent: only where no object has the key (``If-None-Match: *``).
            if_match: only where the object has this ETag (``If-Match``).

        Raises:
            PreconditionFailed: the condition did not hold; nothing was written.
            ChecksumMismatch: the bytes received have another checksum; nothing was written.
        """
        ...

    async def put_some(self, objects: Sequence[NewObject]) -> int:
        """Store small objects with a request each, in their order, as many as go well: at least the first.

        Returns:
            How many were stored. Where that is fewer, the next one may have failed: sent first, it says why.

        Raises:
            ChecksumMismatch: the bytes received of the first have another checksum; it was not written.
            CorruptError: its file is shorter than it should be, or can't be read.
        """
        ...

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Every object whose key begins with ``prefix``, in key order, page after page."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Delete objects, in batches; a key that is not there is no error."""
        ...

    async def purge(self, prefix: str) -> None:
        """Delete every version that the store keeps of what was deleted or replaced below ``prefix``, and of
        what is there; nothing where it keeps none.
        """
        ...

    async def create_upload(self, key: str, *, crc64nvme: str | None = None) -> str:
        """Begin a multipart upload and return its ``upload_id``.

        Args:
            crc64nvme: of the whole object, kept with it where the store keeps no such checksum by itself.
        """
        ...

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        """Send one part and return its ETag.

        Raises:
            UploadMissing: no such upload.
            ChecksumMismatch: the bytes received have another checksum.
        """
        ...

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        """The parts the store has, by number.

        Raises:
            UploadMissing: no such upload.
        """
        ...

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        """Make the object of its parts, by number, and return its ETag.

        Raises:
            UploadMissing: no such upload: perhaps completed before and the answer lost.
            ChecksumMismatch: the whole has another checksum; nothing was made.
        """
        ...

    async def abort_upload(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts; one that is not there is no error."""
        ...

    def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        """Every unfinished upload whose key begins with ``prefix``."""
        ...
