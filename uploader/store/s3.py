"""A bucket's prefix as an ``ObjectStore``, over aioboto3; the only importer of it and of botocore.

Every call is one request, never repeated by the client. Checksums are ours (CRC64-NVME), given with each body
and asked for with each answer, so that a payload is neither signed nor hashed a second time.
"""

import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aioboto3
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.exceptions import ClientError  # type: ignore[import-untyped]
from botocore.httpsession import get_cert_path  # type: ignore[import-untyped]
from botocore.utils import get_environ_proxies  # type: ignore[import-untyped]

from uploader.errors import ChecksumMismatch, CorruptError, SettingsError, StoreError
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import ObjectInfo, PartInfo, UploadInfo
from uploader.store.body import Body
from uploader.store.body import crc64nvme as checksum_of
from uploader.store.s3_body import RequestBody
from uploader.store.s3_errors import answered, speaking
from uploader.store.s3_wire import Pace, Received, Wire, into

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

DELETE_BATCH = 1000
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

    def __init__(self, client: "S3Client", location: Location, storage: StorageSettings) -> None:
        self.answered_at: float | None = None
        self._client, self._location, self._bucket = client, location, location.bucket
        self._root = f"{location.path}/" if location.path else ""
        self._sse = _given(ServerSideEncryption=storage.sse, SSEKMSKeyId=storage.sse_kms_key_id)
        client.meta.events.register("after-call.s3", self._note_date)
        client.meta.events.register("before-sign.s3.DeleteObjects", _add_content_md5)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, location: Location, storage: StorageSettings, *, pace: Pace = _at_once
    ) -> AsyncIterator["S3Store"]:
        """The store of ``location``, its connections open while the context lasts. Nothing is sent yet.

        Args:
            pace: how long to wait before so many bytes of a file are sent.

        Raises:
            SettingsError: the credentials file or the CA bundle can't be read.
            StoreDenied: there is no such profile, or the AWS files can't be read.
        """
        _check_files(storage)
        async with AsyncExitStack() as stack:
            with speaking("connecting to", str(location)):
                session = _make_session(storage)
                client = await stack.enter_async_context(_make_client(session, storage))
                _lay_wire(client, session, storage, pace, stack)
            yield cls(client, location, storage)

    @property
    def uri(self) -> str:
        return str(self._location)

    async def create_bucket(self) -> None:
        """Create the bucket unless it is there: for the development server and for tests."""
        with speaking("creating", f"s3://{self._bucket}"):
            try:
                await self._client.create_bucket(Bucket=self._bucket)
            except ClientError as error:
                if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                    raise

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        with speaking("reading", self._name(key)):
            answer = await self._client.get_object(**self._at(key), ChecksumMode="ENABLED")
            async with answer["Body"] as stream:
                data = await stream.read()
            return data, _info(key, answer)

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
                return _info(key, await self._client.head_object(**self._at(key), ChecksumMode="ENABLED"))
            except ClientError as error:
                # An answer to HEAD has no body: a missing bucket and a missing key look the same.
                if _status(error) == 404 and await self._bucket_is_missing():
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
        with speaking("writing", self._name(key)):
            answer = await self._client.put_object(
                **self._at(key),
                **self._sse,
                **_given(IfNoneMatch="*" if if_absent else None, IfMatch=if_match),
                Body=RequestBody(body),
                ChecksumCRC64NVME=crc64nvme or checksum_of(body),
            )
            return _bare(answer["ETag"])

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
                yield _info(self._relative(entry["Key"]), entry)

    async def delete(self, keys: Sequence[str]) -> None:
        for start in range(0, len(keys), DELETE_BATCH):
            batch = keys[start : start + DELETE_BATCH]
            with speaking("deleting", self._name(batch[0])):
                answer = await self._client.delete_objects(
                    Bucket=self._bucket,
                    Delete={"Objects": [{"Key": self._root + key} for key in batch], "Quiet": True},
                )
            for failed in answer.get("Errors", []):
                if failed["Code"] != "NoSuchKey":
                    key = self._relative(failed["Key"])
                    raise answered(failed["Code"], doing="deleting", subject=self._name(key))

    async def create_upload(self, key: str) -> str:
        with speaking("beginning the upload of", self._name(key)):
            answer = await self._client.create_multipart_upload(
                **self._at(key), **self._sse, ChecksumAlgorithm="CRC64NVME", ChecksumType="FULL_OBJECT"
            )
            return answer["UploadId"]

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        with speaking(f"uploading part {number} of", self._name(key)):
            answer = await self._client.upload_part(
                **self._at(key),
                UploadId=upload_id,
                PartNumber=number,
                Body=RequestBody(body),
                ChecksumCRC64NVME=crc64nvme,
            )
            return _bare(answer["ETag"])

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        with speaking("listing the parts of", self._name(key)):
            pages = self._client.get_paginator("list_parts").paginate(**self._at(key), UploadId=upload_id)
            return [
                PartInfo(part["PartNumber"], part["Size"], _bare(part["ETag"]), part.get("ChecksumCRC64NVME"))
                async for page in pages
                for part in page.get("Parts", [])
            ]

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        named = [
            {"PartNumber": part.number, "ETag": part.etag, **_given(ChecksumCRC64NVME=part.crc64nvme)}
            for part in sorted(parts, key=lambda part: part.number)
        ]
        with speaking("completing the upload of", self._name(key)):
            if sum(part.size_bytes for part in parts) != size_bytes:  # some stores ignore MpuObjectSize
                raise ChecksumMismatch(
                    "the parts make another size", doing="completing", subject=self._name(key)
                )
            answer = await self._client.complete_multipart_upload(
                **self._at(key),
                UploadId=upload_id,
                MultipartUpload={"Parts": named},  # type: ignore[typeddict-item]
                ChecksumCRC64NVME=crc64nvme,
                ChecksumType="FULL_OBJECT",
                MpuObjectSize=size_bytes,
            )
            return _bare(answer["ETag"])

    async def abort_upload(self, key: str, upload_id: str) -> None:
        with speaking("aborting the upload of", self._name(key)):
            try:
                await self._client.abort_multipart_upload(**self._at(key), UploadId=upload_id)
            except self._client.exceptions.NoSuchUpload:
                return

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
            marker = _given(
                KeyMarker=page.get("NextKeyMarker") or None,
                UploadIdMarker=page.get("NextUploadIdMarker") or None,
            )
            if not marker:
                raise StoreError(
                    "the store's listing stops halfway", doing="listing", subject=self._name(prefix)
                )

    async def _bucket_is_missing(self) -> bool:
        try:
            await self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            return _status(error) == 404
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


def _make_session(storage: StorageSettings) -> AioSession:
    """Settings and credentials of the AWS chain, and nothing else."""
    session = AioSession()
    if storage.credentials_file:
        session.set_config_variable("credentials_file", storage.credentials_file)
    return session


def _make_client(session: AioSession, storage: StorageSettings) -> Any:
    """An S3 client that repeats nothing and hashes nothing."""
    # A profile named outright outranks AWS_ACCESS_KEY_ID, as a file named outright must too.
    profile = storage.profile or ("default" if storage.credentials_file else None)
    config = AioConfig(
        s3={"payload_signing_enabled": False, "addressing_style": storage.addressing_style},
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=CONNECTIONS,
        connect_timeout=storage.connect_timeout_s,
        read_timeout=storage.read_timeout_s,
    )
    made = aioboto3.Session(botocore_session=session, profile_name=profile, region_name=storage.region)
    return made.client("s3", endpoint_url=storage.endpoint_url, verify=storage.ca_bundle, config=config)


def _lay_wire(
    client: Any, session: AioSession, storage: StorageSettings, pace: Pace, stack: AsyncExitStack
) -> None:
    """Let bulk bytes pass by aiohttp; behind a proxy, which only aiohttp knows how to pass, they don't."""
    if get_environ_proxies(client.meta.endpoint_url):
        return
    authorities = get_cert_path(storage.ca_bundle or session.get_config_variable("ca_bundle") or True)
    wire = Wire(
        tls=ssl.create_default_context(cafile=authorities),
        connect_timeout_s=storage.connect_timeout_s,
        timeout_s=storage.read_timeout_s,
        connections=CONNECTIONS,
        pace=pace,
    )
    client.meta.events.register("before-send.s3", wire.send)
    stack.callback(wire.close)


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


def _check_files(storage: StorageSettings) -> None:
    """Read the named files now: later the client would take their absence for another trouble."""
    try:
        if storage.credentials_file:
            Path(storage.credentials_file).read_bytes()
    except OSError as error:
        raise _unreadable("storage.credentials_file", storage.credentials_file) from error
    try:
        if storage.ca_bundle:
            ssl.create_default_context(cafile=storage.ca_bundle)
    except OSError as error:
        raise _unreadable("storage.ca_bundle", storage.ca_bundle) from error


def _unreadable(field: str, path: str | None) -> SettingsError:
    return SettingsError(f"{path} can't be read", subject=field, hint="correct the path or the file")


def _add_content_md5(request: Any, **_: Any) -> None:
    """Older stores want Content-MD5 with DeleteObjects, where botocore gives only a newer checksum."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()


def _info(key: str, answer: Mapping[str, Any]) -> ObjectInfo:
    size_bytes = answer["Size"] if "Size" in answer else answer["ContentLength"]
    modified = answer.get("LastModified")
    return ObjectInfo(
        key,
        size_bytes,
        _bare(answer["ETag"]),
        answer.get("ChecksumCRC64NVME"),
        modified.timestamp() if modified else None,
    )


def _given(**fields: Any) -> Any:
    return {name: value for name, value in fields.items() if value is not None}


def _bare(etag: str) -> str:
    return etag.strip('"')


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
