"""A bucket's prefix as an ``ObjectStore``, over aioboto3.

Every call is one request, never repeated by the client, after those that find out what the store can do.
Checksums are ours (CRC64-NVME), given with each body and asked for with each answer, so that a payload is
neither signed nor hashed a second time; a store that does not verify them gets the strongest that it does.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from uploader import presets
from uploader.below import check_small
from uploader.errors import ChecksumMismatch, CorruptError, ObjectMissing, StoreError, UploadMissing
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import NewObject, ObjectInfo, PartInfo, UploadInfo
from uploader.store.body import Body, Pace, at_once
from uploader.store.capabilities import Capabilities
from uploader.store.probe import find_out
from uploader.store.s3_body import RequestBody
from uploader.store.s3_bulk import Bulk
from uploader.store.s3_client import make_client
from uploader.store.s3_delete import Deletion
from uploader.store.s3_errors import answered, speaking
from uploader.store.s3_listing import list_objects, list_uploads
from uploader.store.s3_messages import Received
from uploader.store.s3_place import S3Place
from uploader.store.s3_seal import Seal, seal
from uploader.store.s3_shapes import (
    FULL_OBJECT,
    arrived,
    bare,
    check_sums,
    code,
    given,
    named_parts,
    noting,
    object_info,
    part_info,
    status,
    whole,
)
from uploader.store.s3_versions import purge
from uploader.store.s3_wire import into

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

Tell = Callable[[Capabilities], None]

CONNECTIONS = 32


class S3Store:
    """The objects below ``s3://bucket/prefix``; made by ``open``.

    ETags are held without their quotes, as every store accepts them so in ``If-Match``.
    """

    def __init__(
        self,
        client: "S3Client",
        bulk: Bulk | None,
        location: Location,
        storage: StorageSettings,
        pace: Pace,
        capabilities: Capabilities | None = None,
        tell: Tell | None = None,
    ) -> None:
        self._client, self._place, self._bulk, self._pace = client, S3Place(client, location), bulk, pace
        self._storage, self._capabilities, self._tell = storage, capabilities, tell
        self._asking = anyio.Lock()
        self._deletion = Deletion(self._place, singly=presets.deletes_singly(storage))

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        location: Location,
        storage: StorageSettings,
        *,
        pace: Pace = at_once,
        connections: int = CONNECTIONS,
        capabilities: Capabilities | None = None,
        tell: Tell | None = None,
    ) -> AsyncIterator["S3Store"]:
        """The store of ``location``, its connections open while the context lasts. Nothing is sent yet.

        Args:
            pace: how long to wait before so many bytes of a file are sent.
            connections: how many requests may be under way at once.
            capabilities: what the store does, where that is known; else it is probed before the first write.
            tell: told of the capabilities, once they are known.

        Raises:
            SettingsError: a file that the settings name can't be read.
            StoreDenied: there is no such profile, or the AWS files can't be read.
        """
        storage = presets.filled(storage)
        async with AsyncExitStack() as stack:
            with speaking("connecting to", str(location)):
                client, bulk = await make_client(storage, pace, connections, stack)
            yield cls(client, bulk, location, storage, pace, capabilities, tell)

    @property
    def uri(self) -> str:
        return self._place.uri

    async def create_bucket(self) -> None:
        """Create the bucket unless it is there: for the development server and for tests."""
        with speaking("creating", f"s3://{self._place.bucket}"):
            try:
                await self._client.create_bucket(Bucket=self._place.bucket)
            except ClientError as error:
                if code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with self._place.speaking("reading", key):
            answer = self._bulk and await self._bulk.get(self._place.root + key)
            answer = answer or await self._get(key)
        check_small(answer["ContentLength"], self._place.name(key))
        return answer["Body"], object_info(key, answer)

    async def _get(self, key: str) -> Any:
        """By botocore, with the bytes for the body, unless they are too many."""
        answer: Any = await self._client.get_object(**self._place.at(key), ChecksumMode="ENABLED")
        data = bytearray()
        async with answer["Body"] as stream:
            check_small(answer.get("ContentLength", 0), self._place.name(key))
            async for chunk, _ in stream.content.iter_chunks():
                data += chunk
                check_small(len(data), self._place.name(key))
        return {**answer, "Body": bytes(data), "ContentLength": len(data)}

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        if not len(into):
            return
        name, end = self._place.name(key), start + len(into)
        with self._place.speaking("reading", key), _receiving(into):
            answer = await self._client.get_object(**self._place.at(key), Range=f"bytes={start}-{end - 1}")
            filled = await _filled(answer["Body"], into)
        if filled > len(into):
            raise StoreError("the store ignores ranges", doing="reading", subject=name)
        if filled < len(into):
            raise CorruptError(f"it ends {len(into) - filled} bytes early", doing="reading", subject=name)

    async def head(self, key: str) -> ObjectInfo:
        with self._place.speaking("reading", key):
            try:
                return object_info(
                    key, await self._client.head_object(**self._place.at(key), ChecksumMode="ENABLED")
                )
            except ClientError as error:
                # An answer to HEAD has no body: a missing bucket and a missing key look the same.
                if status(error) == 404 and await self._bucket_is_missing():
                    raise answered("NoSuchBucket", doing="reading", subject=self.uri) from error
                raise

    async def put(
        self,
        key: str,
        body: Body,
        *,
        crc64nvme: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        """See ``ObjectStore``. A condition that the store ignores is looked at before: that protects from
        what is there already, not from who writes at the same moment.
        """
        can, name = await self.capabilities(), self._place.name(key)
        sealed = await seal(body, crc64nvme, can.checksum, subject=name)
        if not if_absent and if_match is None:
            stored = await self._put_alike([NewObject(key, body, sealed.crc64nvme)])
            if stored:
                return bare(stored[0])
        return await self._put(key, body, sealed, if_absent=if_absent, if_match=if_match)

    async def put_some(self, objects: Sequence[NewObject]) -> int:
        stored = await self._put_alike(objects)
        if not stored:
            can, first = await self.capabilities(), objects[0]
            name = self._place.name(first.key)
            sealed = await seal(first.body, first.crc64nvme, can.checksum, subject=name)
            await self._put(first.key, first.body, sealed)
        return max(1, len(stored))

    async def _put(
        self, key: str, body: Body, sealed: Seal, *, if_absent: bool = False, if_match: str | None = None
    ) -> str:
        can = await self.capabilities()
        with self._place.speaking("writing", key):
            condition = await self._condition(key, can, if_absent, if_match)
            noted = noting(None if can.keeps_crc64nvme else sealed.crc64nvme)
            answer = await self._client.put_object(
                **self._place.at(key),
                **condition,
                **sealed.fields,
                **noted,
                Body=RequestBody(body, self._pace),
            )
        try:
            return arrived(answer["ETag"], sealed, subject=self._place.name(key))
        except ChecksumMismatch:
            await self.delete([key])
            raise

    async def _put_alike(self, objects: Sequence[NewObject]) -> list[str]:
        """Store objects as others before them; their ETags, none where botocore has to send the first."""
        can = await self.capabilities()
        if self._bulk is None or can.checksum != "crc64nvme" or not can.keeps_crc64nvme:
            return []
        with self._place.speaking("writing", objects[0].key):
            return await self._bulk.put_some(objects, self._place.root)

    async def _condition(self, key: str, can: Capabilities, if_absent: bool, if_match: str | None) -> Any:
        """The condition as the store wants it; none where it knows none, after a look of our own.

        Raises:
            PreconditionFailed: it does not hold, as far as can be seen now.
        """
        if if_absent and not can.create_once and await self._etag(key) is not None:
            raise answered("PreconditionFailed", doing="writing", subject=self._place.name(key))
        if if_match is not None and not can.compare_and_swap and await self._etag(key) != if_match:
            raise answered("PreconditionFailed", doing="writing", subject=self._place.name(key))
        quoted = f'"{if_match}"' if can.quoted_etags else if_match
        return given(
            IfNoneMatch="*" if if_absent and can.create_once else None,
            IfMatch=quoted if if_match is not None and can.compare_and_swap else None,
        )

    async def _etag(self, key: str) -> str | None:
        try:
            return (await self.head(key)).etag
        except ObjectMissing:
            return None

    def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        return list_objects(self._place, prefix)

    async def delete(self, keys: Sequence[str]) -> None:
        await self._deletion.delete(keys)

    async def purge(self, prefix: str) -> None:
        await purge(self._client, self._place.bucket, self._place.root + prefix)

    async def create_upload(self, key: str, *, crc64nvme: str | None = None) -> str:
        is_kept = (await self.capabilities()).full_object
        with self._place.speaking("beginning the upload of", key):
            answer = await self._client.create_multipart_upload(
                **self._place.at(key),
                **(FULL_OBJECT if is_kept else {}),
                **noting(None if is_kept else crc64nvme),
            )
            return answer["UploadId"]

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        name = self._place.name(key)
        sealed = await seal(body, crc64nvme, (await self.capabilities()).checksum, subject=name)
        with self._place.in_upload(f"uploading part {number} of", key):
            etag = await self._send_part(key, upload_id, number, body, sealed)
        return arrived(etag, sealed, subject=name)

    async def _send_part(self, key: str, upload_id: str, number: int, body: Body, sealed: Seal) -> str:
        if self._bulk is not None and sealed.fields.keys() == {"ChecksumCRC64NVME"}:
            key_of_bucket = self._place.root + key
            etag = await self._bulk.send_part(key_of_bucket, upload_id, number, body, sealed.crc64nvme)
            if etag is not None:
                return etag
        answer = await self._client.upload_part(
            **self._place.at(key),
            **sealed.fields,
            UploadId=upload_id,
            PartNumber=number,
            Body=RequestBody(body, self._pace),
        )
        return answer["ETag"]

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        with self._place.in_upload("listing the parts of", key):
            paginator = self._client.get_paginator("list_parts")
            pages = paginator.paginate(**self._place.at(key), UploadId=upload_id)
            return [part_info(part) async for page in pages for part in page.get("Parts", [])]

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        name, is_told = self._place.name(key), (await self.capabilities()).full_object
        check_sums(parts, size_bytes, crc64nvme, subject=name)
        with self._place.in_upload("completing the upload of", key):
            try:
                answer = await self._client.complete_multipart_upload(
                    **self._place.at(key),
                    **(whole(size_bytes, crc64nvme) if is_told else {}),
                    UploadId=upload_id,
                    MultipartUpload=named_parts(parts, with_checksums=is_told),
                )
            except ClientError as error:
                if status(error) == 500:  # Ceph never says otherwise where there is no such upload
                    await self.list_parts(key, upload_id)
                raise
        return bare(answer.get("ETag", "")) or (await self.head(key)).etag  # Ceph gives an empty one

    async def abort_upload(self, key: str, upload_id: str) -> None:
        with suppress(UploadMissing), self._place.in_upload("aborting the upload of", key):
            await self._client.abort_multipart_upload(**self._place.at(key), UploadId=upload_id)

    def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        return list_uploads(self._place, prefix)

    async def capabilities(self) -> Capabilities:
        """What the store does; asked of it before the first write, once in a process.

        Raises:
            StoreError: it can't be asked.
        """
        async with self._asking:
            if self._capabilities is None:
                place = self._place
                self._capabilities = await find_out(place.client, place.bucket, place.root, self._storage)
            if self._tell is not None:
                self._tell(self._capabilities)
                self._tell = None
            return self._capabilities

    async def _bucket_is_missing(self) -> bool:
        try:
            await self._client.head_bucket(Bucket=self._place.bucket)
        except ClientError as error:
            return status(error) == 404
        return False


@contextmanager
def _receiving(target: memoryview) -> Iterator[None]:
    """Have the wire put the answer's body into ``target``."""
    token = into.set(target)
    try:
        yield
    finally:
        into.reset(token)


async def _filled(body: Any, target: memoryview) -> int:
    """How many bytes of an answer there are, more than ``target`` has if they don't fit: there they are now,
    put there by the wire or here.
    """
    received = body.__wrapped__
    if isinstance(received, Received):
        return received.filled_bytes
    filled = 0
    async with body as stream:
        async for chunk, _ in stream.content.iter_chunks():
            fits = chunk[: max(0, len(target) - filled)]
            target[filled : filled + len(fits)] = fits
            filled += len(chunk)
            if filled > len(target):
                break
    return filled
