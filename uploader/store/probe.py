"""Finds out what a store really does, by trying: about ten small requests on one key, cleaned up afterwards.

Documentation and version numbers don't tell: a store may ignore a checksum or a condition that it does not
know, and answer 200. So each question is a request that a store which knows better must refuse.
"""

import hashlib
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, Final
from urllib.parse import urlsplit

import anyio

from uploader import checksum
from uploader.errors import BucketMissing, ChecksumMismatch, PreconditionFailed, StoreDenied, StoreError
from uploader.layout import PROBE_PREFIX
from uploader.settings import StorageSettings
from uploader.store.capabilities import ALL, Capabilities, Checksum
from uploader.store.s3_errors import speaking
from uploader.store.s3_seal import seal

log = logging.getLogger("uploader")

AWS_HOSTS = (".amazonaws.com", ".amazonaws.com.cn")

_BODY, _OTHER = b"Does this store verify and compare?", b"Other bytes than those that are sent."
_STALE = hashlib.md5(_OTHER, usedforsecurity=False).hexdigest()
_VERIFIED: Final[tuple[Checksum, ...]] = ("crc64nvme", "crc32c", "md5")
_CLEANING_TIMEOUT_S = 10.0


_found: dict[tuple[str, str], Capabilities] = {}
"""What was found out by this process, by bucket and by how it is reached."""


async def find_out(client: Any, bucket: str, root: str, storage: StorageSettings) -> Capabilities:
    """What the store does, asked once in a process; of AWS it is known.

    Raises: as ``probe`` does.
    """
    if (urlsplit(client.meta.endpoint_url).hostname or "").endswith(AWS_HOSTS):
        return ALL
    place = bucket, storage.model_dump_json()
    if place not in _found:
        _found[place] = await probe(client, bucket, root)
    return _found[place]


async def probe(client: Any, bucket: str, root: str) -> Capabilities:
    """What the store does that holds the bucket.

    Args:
        client: of botocore's S3.
        root: what the run's keys begin with.

    Raises:
        StoreUnavailable: it does not answer now.
        StoreDenied: these credentials may not write there.
        BucketMissing: the bucket does not exist.
        StoreError: it refuses plain writes.
    """
    key = _Key(client, bucket, f"{root}{PROBE_PREFIX}{secrets.token_hex(8)}")
    async with key.cleaned_up():
        verified, etag = await _checksum(key)
        create_once = isinstance(await key.put(IfNoneMatch="*"), PreconditionFailed)
        swaps, quoted = await _compare_and_swap(key, etag)
        found = Capabilities(
            verified, full_object=False, create_once=create_once, compare_and_swap=swaps, quoted_etags=quoted
        )
        return await _uploads(key, found)


async def _checksum(key: "_Key") -> tuple[Checksum, str]:
    """The strongest checksum that is verified on receipt, and the ETag of the object that is there then."""
    for by in _VERIFIED:
        if isinstance(await key.put(**await _fields(_OTHER, by)), ChecksumMismatch):
            right = await key.put(**await _fields(_BODY, by))
            if not isinstance(right, StoreError):
                return by, _bare(right["ETag"])
    etag = _bare(_done(await key.put())["ETag"])
    return "etag" if etag == (await seal(_BODY, None, "etag")).etag else "none", etag


async def _compare_and_swap(key: "_Key", etag: str) -> tuple[bool, bool]:
    """Whether a stale ETag is refused and the right one taken, and whether only in quotes."""
    if not isinstance(await key.put(IfMatch=_STALE), PreconditionFailed):
        return False, False
    for form in (etag, f'"{etag}"'):
        if not isinstance(await key.put(IfMatch=form), StoreError):
            return True, form != etag
    return False, False


async def _uploads(key: "_Key", found: Capabilities) -> Capabilities:
    """What becomes of checksums and conditions where an object is made of parts."""
    whole = found.checksum == "crc64nvme" and not isinstance(await key.begin(full_object=True), StoreError)
    if not whole:
        _done(await key.begin(full_object=False))
    fields = await _fields(_BODY, found.checksum)
    part = {"PartNumber": 1, "ETag": _done(await key.send(fields))["ETag"]}
    if whole:
        part |= fields
        wrong = await key.complete(part, **_whole(_OTHER))
        whole = isinstance(wrong, ChecksumMismatch)
        if not isinstance(wrong, StoreError):
            return found  # the object is made, and there is nothing left to ask
    again = await key.complete(part, **(_whole(_BODY) if whole else {}), IfNoneMatch="*")
    return replace(found, full_object=whole, complete_once=isinstance(again, PreconditionFailed))


class _Key:
    """One key and one upload to it, tried in many ways.

    Each request returns the store's answer, or the reason why it does not do as asked.
    """

    def __init__(self, client: Any, bucket: str, key: str) -> None:
        self._client, self._name = client, f"s3://{bucket}/{key}"
        self._at = {"Bucket": bucket, "Key": key}
        self._upload: dict[str, str] | None = None

    async def put(self, **fields: str) -> Any:
        return await self._ask(self._client.put_object(**self._at, Body=_BODY, **fields))

    async def begin(self, *, full_object: bool) -> Any:
        fields = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"} if full_object else {}
        answer = await self._ask(self._client.create_multipart_upload(**self._at, **fields))
        if not isinstance(answer, StoreError):
            self._upload = {**self._at, "UploadId": answer["UploadId"]}
        return answer

    async def send(self, fields: dict[str, str]) -> Any:
        upload: Any = self._upload
        return await self._ask(self._client.upload_part(**upload, PartNumber=1, Body=_BODY, **fields))

    async def complete(self, part: dict[str, Any], **fields: str) -> Any:
        upload: Any = self._upload
        parts = {"Parts": [part]}
        answer = await self._ask(
            self._client.complete_multipart_upload(**upload, MultipartUpload=parts, **fields)
        )
        if not isinstance(answer, StoreError):
            self._upload = None
        return answer

    @asynccontextmanager
    async def cleaned_up(self) -> AsyncIterator[None]:
        """Leave nothing behind, however the asking ends."""
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True), anyio.move_on_after(_CLEANING_TIMEOUT_S):
                if self._upload is not None:
                    await self._tidy(self._client.abort_multipart_upload(**self._upload))
                await self._tidy(self._client.delete_object(**self._at))

    async def _tidy(self, removal: Awaitable[object]) -> None:
        """What was found out is worth more than a clean prefix: a removal that fails is only told of."""
        try:
            with speaking("removing", self._name):
                await removal
        except StoreError as error:
            log.warning("%s", error)

    async def _ask(self, request: Awaitable[Any]) -> Any:
        """What says nothing about the store's abilities is raised."""
        try:
            with speaking("probing", self._name):
                return await request
        except StoreError as error:
            if error.heals or isinstance(error, StoreDenied | BucketMissing):
                raise
            return error


async def _fields(body: bytes, by: Checksum) -> Any:
    return (await seal(body, None, by)).fields


def _whole(body: bytes) -> dict[str, str]:
    return {"ChecksumCRC64NVME": checksum.of_bytes(body), "ChecksumType": "FULL_OBJECT"}


def _done(answer: Any) -> Any:
    """The answer to a request that every store must fulfil."""
    if isinstance(answer, StoreError):
        raise answer
    return answer


def _bare(etag: str) -> str:
    return etag.strip('"')
