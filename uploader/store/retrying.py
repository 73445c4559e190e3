"""A store whose every request has a deadline and is tried again while its error can heal.

The rooms above never mention retries. They meet their traces only as the protocol's own answers: a create
that finds the object there, a completed upload that is no longer known, a manifest that has changed.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import anyio

from uploader.errors import StoreBusy, WmtpError
from uploader.retry import RetryPolicy, retrying
from uploader.store.base import NewObject, ObjectInfo, ObjectStore, PartInfo, UploadInfo
from uploader.store.body import Body

T = TypeVar("T")
OnRetry = Callable[[WmtpError, int, float], None]
OnSent = Callable[[int, float], None]

_AGAIN = "the store may answer later"
LONG = 5
"""Making an object of its parts may take the store as many times as long as another request."""


class RetryingStore:
    """``store`` with ``policy``.

    Args:
        on_retry: told of each error that is about to be repeated.
        on_sent: told of each body that the store took: its size in bytes, and for how many seconds it took.
    """

    def __init__(
        self,
        store: ObjectStore,
        policy: RetryPolicy,
        on_retry: OnRetry | None = None,
        on_sent: OnSent | None = None,
    ) -> None:
        self._store, self._policy, self._on_retry, self._on_sent = store, policy, on_retry, on_sent

    @property
    def uri(self) -> str:
        return self._store.uri

    async def _retry(
        self, doing: str, key: str, operation: Callable[[], Awaitable[T]], *, allowed_s: float | None = None
    ) -> T:
        limit_s = allowed_s or self._policy.request_timeout_s

        async def attempt() -> T:
            with self._deadline(doing, key, limit_s):
                return await operation()

        return await retrying(attempt, doing=doing, policy=self._policy, on_retry=self._on_retry)

    @contextmanager
    def _deadline(self, doing: str, key: str, limit_s: float) -> Iterator[anyio.CancelScope]:
        """Abandon what has not ended in time: the request may have had its effect, as with a lost answer."""
        with anyio.move_on_after(limit_s) as scope:
            yield scope
        if scope.cancelled_caught:
            raise StoreBusy(
                f"no end of it within {limit_s:.0f} s", doing=doing, subject=f"{self.uri}/{key}", hint=_AGAIN
            )

    async def _send(self, doing: str, key: str, body: Body, operation: Callable[[], Awaitable[str]]) -> str:
        async def send() -> str:
            began_s = self._policy.clock()
            etag = await operation()
            if self._on_sent is not None:
                self._on_sent(len(body), self._policy.clock() - began_s)
            return etag

        return await self._retry(doing, key, send, allowed_s=self._policy.allowed_s(len(body)))

    async def _collect(self, doing: str, prefix: str, listing: Callable[[], AsyncIterator[T]]) -> list[T]:
        """A whole listing, each page of which has the time of a request. One that breaks begins again."""
        limit_s = self._policy.request_timeout_s

        async def whole() -> list[T]:
            found: list[T] = []
            with self._deadline(doing, prefix, limit_s) as scope:
                async for one in listing():
                    found.append(one)
                    scope.deadline = anyio.current_time() + limit_s
            return found

        return await retrying(whole, doing=doing, policy=self._policy, on_retry=self._on_retry)

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        return await self._retry("reading", key, partial(self._store.get, key))

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        get = partial(self._store.get_range, key, start, into)
        await self._retry("reading", key, get, allowed_s=self._policy.allowed_s(len(into)))

    async def head(self, key: str) -> ObjectInfo:
        return await self._retry("looking at", key, partial(self._store.head, key))

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
        return await self._send("storing", key, body, put)

    async def put_some(self, objects: Sequence[NewObject]) -> int:
        """As the protocol says. ``on_sent`` hears of an average one; each has the time of a request."""
        sizes = [len(one.body) for one in objects]

        async def put() -> int:
            began_s = self._policy.clock()
            count = await self._store.put_some(objects)
            if self._on_sent is not None:
                self._on_sent(sum(sizes[:count]) // count, (self._policy.clock() - began_s) / count)
            return count

        limit_s = self._policy.allowed_s(sum(sizes)) + (len(sizes) - 1) * self._policy.request_timeout_s
        return await self._retry("storing", objects[0].key, put, allowed_s=limit_s)

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """Nothing is yielded twice."""
        for info in await self._collect("listing", prefix, partial(self._store.list, prefix)):
            yield info

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            limit_s = self._policy.request_timeout_s * (1 + len(keys) // 1000)  # a request for each thousand
            delete = partial(self._store.delete, keys)
            await self._retry("deleting", keys[0], delete, allowed_s=limit_s)

    async def purge(self, prefix: str) -> None:
        limit_s = self._policy.request_timeout_s * LONG  # a page of versions is two requests
        await self._retry("purging", prefix, partial(self._store.purge, prefix), allowed_s=limit_s)

    async def create_upload(self, key: str, *, crc64nvme: str | None = None) -> str:
        create = partial(self._store.create_upload, key, crc64nvme=crc64nvme)
        return await self._retry("uploading", key, create)

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        send = partial(self._store.upload_part, key, upload_id, number, body, crc64nvme)
        return await self._send("uploading", key, body, send)

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        parts = partial(self._store.list_parts, key, upload_id)
        return await self._retry("listing parts of", key, parts)

    async def complete_upload(
        self, key: str, upload_id: str, parts: Sequence[PartInfo], *, size_bytes: int, crc64nvme: str
    ) -> str:
        complete = partial(
            self._store.complete_upload, key, upload_id, parts, size_bytes=size_bytes, crc64nvme=crc64nvme
        )
        limit_s = self._policy.request_timeout_s * LONG
        return await self._retry("completing", key, complete, allowed_s=limit_s)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._retry("aborting", key, partial(self._store.abort_upload, key, upload_id))

    async def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        uploads = partial(self._store.list_uploads, prefix)
        for upload in await self._collect("listing uploads of", prefix, uploads):
            yield upload
