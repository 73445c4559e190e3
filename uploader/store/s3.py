"""A bucket's prefix as an ``ObjectStore``, over aioboto3.

Every call is one request, never repeated by the client, after those that find out what the store can do.
Checksums are ours (CRC64-NVME), given with each body and asked for with each answer, so that a payload is
neither signed nor hashed a second time; a store that does not verify them gets the strongest that it does.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from uploader import presets
from uploader.below import check_small
from uploader.errors import ChecksumMismatch, CorruptError, ObjectMissing, StoreError, UploadMissing
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import ObjectInfo, PartInfo, UploadInfo
from uploader.store.body import Body
from uploader.store.capabilities import Capabilities
from uploader.store.probe import find_out
from uploader.store.s3_answer import Received
from uploader.store.s3_body import RequestBody
from uploader.store.s3_bulk import Bulk, part_query
from uploader.store.s3_client import make_client
from uploader.store.s3_errors import answered, speaking
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
from uploader.store.s3_wire import Pace, into
from uploader.tasks import side_by_side

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

Tell = Callable[[Capabilities], None]

DELETE_BATCH = 1000
DELETES_AT_ONCE = 16
NOT_OFFERED = (405, 501)
CONNECTIONS = 32


def _at_once(size_bytes: int) -> float:
    """No limit to the bandwidth."""
    return 0.0


class S3Store:
    """The objects below ``s3://bucket/prefix``; made by ``open``.

    ETags are held without their quotes, as every store accepts them so in ``If-Match``.

    Attributes:
        answered_at: the store's ``Date`` of its latest answer, seconds since the epoch; None before one.
    """

    def __init__(
        self,
        client: "S3Client",
        bulk: Bulk | None,
        location: Location,
        storage: StorageSettings,
        capabilities: Capabilities | None = None,
        tell: Tell | None = None,
    ) -> None:
        self.answered_at: float | None = None
        self._client, self._bulk = client, bulk
        self._location, self._bucket = location, location.bucket
        self._root = f"{location.path}/" if location.path else ""
        self._storage, self._capabilities, self._tell = storage, capabilities, tell
        self._asking = anyio.Lock()
        self._deletes_singly = presets.deletes_singly(storage)
        client.meta.events.register("after-call.s3", self._note_date)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        location: Location,
        storage: StorageSettings,
        *,
        pace: Pace = _at_once,
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
            yield cls(client, bulk, location, storage, capabilities, tell)

    @property
    def uri(self) -> str:
        return str(self._location)

    async def create_bucket(self) -> None:
        """Create the bucket unless it is there: for the development server and for tests."""
        with speaking("creating", f"s3://{self._bucket}"):
            try:
                await self._client.create_bucket(Bucket=self._bucket)
            except ClientError as error:
                if code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with speaking("reading", self._name(key)):
            answer = await self._client.get_object(**self._at(key), ChecksumMode="ENABLED")
            async with answer["Body"] as stream:
                check_small(answer["ContentLength"], self._name(key))
                data = await stream.read()
            return data, object_info(key, answer)

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        if not len(into):
            return
        name, end = self._name(key), start + len(into)
        with speaking("reading", name), _receiving(into):
            answer = await self._client.get_object(**self._at(key), Range=f"bytes={start}-{end - 1}")
            if answer["ContentLength"] > len(into):
                answer["Body"].close()
                raise StoreError("the store ignores ranges", doing="reading", subject=name)
            filled = await _filled(answer["Body"], into)
        if filled < len(into):
            raise CorruptError(f"it ends {len(into) - filled} bytes early", doing="reading", subject=name)

    async def head(self, key: str) -> ObjectInfo:
        with speaking("reading", self._name(key)):
            try:
                return object_info(
                    key, await self._client.head_object(**self._at(key), ChecksumMode="ENABLED")
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
        can, name = await self.capabilities(), self._name(key)
        sealed = await seal(body, crc64nvme, can.checksum, subject=name)
        with speaking("writing", name):
            condition = await self._condition(key, can, if_absent, if_match)
            noted = noting(None if can.keeps_crc64nvme else sealed.crc64nvme)
            answer = await self._send("PutObject", key, body, sealed, condition | noted)
            answer = answer or await self._client.put_object(
                **self._at(key),
                **condition,
                **sealed.fields,
                **noted,
                Body=RequestBody(body, self._root + key),
            )
        try:
            return arrived(answer["ETag"], sealed, subject=name)
        except ChecksumMismatch:
            await self.delete([key])
            raise

    async def _send(
        self, operation: str, key: str, body: Body, sealed: Seal, more: Any = None, query: str = ""
    ) -> Any:
        """Send a file as others before it; None where botocore has to send it."""
        if self._bulk is None or more or sealed.fields.keys() != {"ChecksumCRC64NVME"}:
            return None
        return await self._bulk.put(operation, self._root + key, body, sealed.crc64nvme, query)

    async def _condition(self, key: str, can: Capabilities, if_absent: bool, if_match: str | None) -> Any:
        """The condition as the store wants it; none where it knows none, after a look of our own.

        Raises:
            PreconditionFailed: it does not hold, as far as can be seen now.
        """
        if if_absent and not can.create_once and await self._etag(key) is not None:
            raise answered("PreconditionFailed", doing="writing", subject=self._name(key))
        if if_match is not None and not can.compare_and_swap and await self._etag(key) != if_match:
            raise answered("PreconditionFailed", doing="writing", subject=self._name(key))
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

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._root + prefix
        )
        iterator = aiter(pages)
        while True:
            with speaking("listing", self._name(prefix)):
                page = await anext(iterator, None)
            if page is None:
                return
            for entry in page.get("Contents", []):
                yield object_info(self._relative(entry["Key"]), entry)

    async def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            if not self._deletes_singly:
                self._deletes_singly = not await self._delete_batch(batch)
            if self._deletes_singly:
                await side_by_side((partial(self._delete_one, key) for key in batch), at_most=DELETES_AT_ONCE)

    async def _delete_batch(self, batch: Sequence[str]) -> bool:
        """Delete with one request; False where the store has none for that."""
        with speaking("deleting", self._name(batch[0])):
            try:
                answer = await self._client.delete_objects(
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": self._root + key} for key in batch], "Quiet": True},
                )
            except ClientError as error:
                if status(error) in NOT_OFFERED or code(error) == "NotImplemented":
                    return False
                raise
        for failed in answer.get("Errors", []):
            if failed["Code"] != "NoSuchKey":
                key = self._relative(failed["Key"])
                raise answered(failed["Code"], doing="deleting", subject=self._name(key))
        return True

    async def _delete_one(self, key: str) -> None:
        with speaking("deleting", self._name(key)):
            try:
                await self._client.delete_object(**self._at(key))
            except ClientError as error:
                if code(error) not in ("NoSuchKey", "404"):
                    raise

    async def purge(self, prefix: str) -> None:
        await purge(self._client, self._bucket, self._root + prefix)

    async def create_upload(self, key: str, *, crc64nvme: str | None = None) -> str:
        is_kept = (await self.capabilities()).full_object
        with speaking("beginning the upload of", self._name(key)):
            answer = await self._client.create_multipart_upload(
                **self._at(key),
                **(FULL_OBJECT if is_kept else {}),
                **noting(None if is_kept else crc64nvme),
            )
            return answer["UploadId"]

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        name = self._name(key)
        sealed = await seal(body, crc64nvme, (await self.capabilities()).checksum, subject=name)
        with _in_upload(f"uploading part {number} of", name):
            query = part_query(upload_id, number)
            answer = await self._send("UploadPart", key, body, sealed, query=query)
            answer = answer or await self._client.upload_part(
                **self._at(key),
                **sealed.fields,
                UploadId=upload_id,
                PartNumber=number,
                Body=RequestBody(body, self._root + key),
            )
        return arrived(answer["ETag"], sealed, subject=name)

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        with _in_upload("listing the parts of", self._name(key)):
            pages = self._client.get_paginator("list_parts").paginate(**self._at(key), UploadId=upload_id)
            return [part_info(part) async for page in pages for part in page.get("Parts", [])]

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        name, is_told = self._name(key), (await self.capabilities()).full_object
        check_sums(parts, size_bytes, crc64nvme, subject=name)
        with _in_upload("completing the upload of", name):
            try:
                answer = await self._client.complete_multipart_upload(
                    **self._at(key),
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
        with suppress(UploadMissing), _in_upload("aborting the upload of", self._name(key)):
            await self._client.abort_multipart_upload(**self._at(key), UploadId=upload_id)

    async def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        # By hand: SeaweedFS orders by upload id and gives no NextKeyMarker, which botocore's paginator needs.
        marker: dict[str, Any] = {}
        while True:
            with speaking("listing the uploads of", self._name(prefix)):
                page = await self._client.list_multipart_uploads(
                    Bucket=self._bucket, Prefix=self._root + prefix, **marker
                )
            for upload in page.get("Uploads", []):
                initiated_at = upload["Initiated"].timestamp() if "Initiated" in upload else None
                yield UploadInfo(self._relative(upload["Key"]), upload["UploadId"], initiated_at)
            if not page.get("IsTruncated"):
                return
            marker = given(
                KeyMarker=page.get("NextKeyMarker") or None,
                UploadIdMarker=page.get("NextUploadIdMarker") or None,
            )
            if not marker:
                raise StoreError(
                    "the store's listing stops halfway", doing="listing", subject=self._name(prefix)
                )

    async def capabilities(self) -> Capabilities:
        """What the store does; asked of it before the first write, once in a process.

        Raises:
            StoreError: it can't be asked.
        """
        async with self._asking:
            if self._capabilities is None:
                self._capabilities = await find_out(self._client, self._bucket, self._root, self._storage)
            if self._tell is not None:
                self._tell(self._capabilities)
                self._tell = None
            return self._capabilities

    async def _bucket_is_missing(self) -> bool:
        try:
            await self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            return status(error) == 404
        return False

    def _at(self, key: str) -> Any:
        return {"Bucket": self._bucket, "Key": self._root + key}

    def _relative(self, key: str) -> str:
        return key.removeprefix(self._root)

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._root}{key}"

    def _note_date(self, http_response: Any, **_: Any) -> None:
        date = http_response.headers.get("date")
        if date:
            self.answered_at = parsedate_to_datetime(date).timestamp()


@contextmanager
def _in_upload(doing: str, subject: str) -> Iterator[None]:
    """As ``speaking``. What Ceph calls a missing key is a missing upload."""
    try:
        with speaking(doing, subject):
            yield
    except ObjectMissing as error:
        raise answered("NoSuchUpload", doing=doing, subject=subject) from error


@contextmanager
def _receiving(target: memoryview) -> Iterator[None]:
    """Have the wire put the answer's body into ``target``."""
    token = into.set(target)
    try:
        yield
    finally:
        into.reset(token)


async def _filled(body: Any, target: memoryview) -> int:
    """How many bytes of an answer are in ``target``: the wire has put them there, or they are read now."""
    received = body.__wrapped__
    if isinstance(received, Received):
        return received.filled_bytes
    filled = 0
    async with body as stream:
        async for chunk, _ in stream.content.iter_chunks():
            target[filled : filled + len(chunk)] = chunk
            filled += len(chunk)
    return filled
