"""A store whose every request is tried again while its error can heal.

The rooms above never mention retries. They meet their traces only as the protocol's own answers: a create
that finds the object there, a completed upload that is no longer known, a manifest that has changed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeVar

from uploader.errors import WmtpError
from uploader.retry import RetryPolicy, retrying
from uploader.store.base import ObjectInfo, ObjectStore, PartInfo, UploadInfo
from uploader.store.body import Body

T = TypeVar("T")
OnRetry = Callable[[WmtpError, int, float], None]


class RetryingStore:
    """``store`` with ``policy``; ``on_retry`` is told of each error that is about to be repeated."""

    def __init__(self, store: ObjectStore, policy: RetryPolicy, on_retry: OnRetry | None = None) -> None:
        self._store, self._policy, self._on_retry = store, policy, on_retry

    @property
    def uri(self) -> str:
        return self._store.uri

    async def _retry(self, doing: str, operation: Callable[[], Awaitable[T]]) -> T:
        return await retrying(operation, doing=doing, policy=self._policy, on_retry=self._on_retry)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        return await self._retry("reading", partial(self._store.get, key))

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        await self._retry("reading", partial(self._store.get_range, key, start, into))

    async def head(self, key: str) -> ObjectInfo:
        return await self._retry("looking at", partial(self._store.head, key))

    async def put(
        self,
        key: str,
        body: Body,
        *,
        crc64nvme: str | None = None,
        if_absent: bool = False,
        if_match: str | None = None,
    ) -> str:
        put = partial(self._store.put, key, body, crc64nvme=crc64nvme, if_absent=if_absent, if_match=if_match)
        return await self._retry("storing", put)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """A listing that breaks begins again; nothing is yielded twice."""

        async def whole() -> list[ObjectInfo]:
            return [info async for info in self._store.list(prefix)]

        for info in await self._retry("listing", whole):
            yield info

    async def delete(self, keys: Sequence[str]) -> None:
        await self._retry("deleting", partial(self._store.delete, keys))

    async def create_upload(self, key: str) -> str:
        return await self._retry("uploading", partial(self._store.create_upload, key))

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        send = partial(self._store.upload_part, key, upload_id, number, body, crc64nvme)
        return await self._retry("uploading", send)

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        return await self._retry("listing parts of", partial(self._store.list_parts, key, upload_id))

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        complete = partial(
            self._store.complete_upload, key, upload_id, parts, size_bytes=size_bytes, crc64nvme=crc64nvme
        )
        return await self._retry("completing", complete)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._retry("aborting", partial(self._store.abort_upload, key, upload_id))

    async def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        async def whole() -> list[UploadInfo]:
            return [upload async for upload in self._store.list_uploads(prefix)]

        for upload in await self._retry("listing uploads of", whole):
            yield upload
