"""The store, and the way to it: requests are refused, slow, repeated, late, and their answers lost."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Literal, TypeVar

import anyio
from anyio.abc import TaskGroup

from uploader.errors import StoreBusy, StoreDenied, StoreUnavailable, WmtpError
from uploader.store.base import NewObject, ObjectInfo, PartInfo, UploadInfo
from uploader.store.body import Body, pieces
from uploader.store.memory import MemoryStore

from .process import Process

T = TypeVar("T")
Trouble = Literal["refused", "busy", "denied", "lost", "late", "hangs"]

TROUBLES: tuple[Trouble, ...] = ("refused", "busy", "lost", "lost", "late", "late", "hangs")
LATEST_S = 300.0
"""A request that nobody waits for any more has its effect after so many seconds at most."""
CHANGES = ("put", "delete", "create_upload", "upload_part", "complete_upload", "abort_upload")


class SharedStore(MemoryStore):
    """The store that all processes share. ``changed`` is called right after each change, with the key."""

    def __init__(self, now: Callable[[], float]) -> None:
        super().__init__(now=now, uri="memory://bucket/run")
        self.changed: Callable[[str, str], None] = lambda *_: None
        self.kept: Callable[[str, bytes | None, bytes], None] = lambda *_: None
        self.came_late: Callable[[str], None] = lambda _: None

    def _keep(self, key: str, data: bytes) -> str:
        before = self._objects.get(key)
        self.kept(key, before[1] if before else None, data)
        return super()._keep(key, data)

    def peek(self, key: str) -> tuple[ObjectInfo, bytes] | None:
        """An object, at this very moment."""
        return self._objects.get(key)

    def all_keys(self) -> list[str]:
        return sorted(self._objects)

    def unfinished(self) -> list[str]:
        return sorted(f"{upload.key} ({upload_id})" for upload_id, upload in self._uploads.items())


@dataclass
class Weather:
    """How bad the network is: the share of requests that meet trouble, and of those that take a while."""

    trouble: float
    slow: float

    @classmethod
    def random(cls, rng: Random) -> "Weather":
        return cls(rng.choice((0.0, 0.02, 0.1, 0.25)), rng.choice((0.0, 0.1, 0.5)))


class Network:
    """All requests that are under way, also those that nobody waits for any more."""

    def __init__(self, store: SharedStore, rng: Random, tasks: TaskGroup) -> None:
        self.store, self.weather = store, Weather(0.0, 0.0)
        self._rng, self._tasks = rng, tasks
        self._under_way, self._arrived = 0, anyio.Event()

    def draw(self) -> tuple[Trouble | None, float]:
        """What happens to the next request, and how many seconds it takes."""
        rng = self._rng
        trouble = rng.choice(TROUBLES) if rng.random() < self.weather.trouble else None
        if trouble and rng.random() < 0.02:
            trouble = "denied"
        return trouble, 10 ** rng.uniform(-2, 1.6) if rng.random() < self.weather.slow else 0.0

    def send_late(self, key: str, effect: Callable[[], Awaitable[object]]) -> None:
        """Have an effect some time, whatever becomes of whoever asked for it."""
        self._under_way += 1
        after_s = 0.1 * (LATEST_S / 0.1) ** self._rng.random()
        self._tasks.start_soon(self._land, key, effect, after_s)

    async def _land(self, key: str, effect: Callable[[], Awaitable[object]], after_s: float) -> None:
        await anyio.sleep(after_s)
        self.store.came_late(key)
        try:
            await effect()
        except WmtpError as error:  # nobody hears of it
            del error
        self._under_way -= 1
        self._arrived.set()

    async def quiet(self) -> None:
        """Until nothing is under way."""
        while self._under_way:
            self._arrived = anyio.Event()
            await self._arrived.wait()


class Link:
    """The store as one process sees it; an ``ObjectStore``."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network, self._process, self._store = network, process, network.store

    @property
    def uri(self) -> str:
        return self._store.uri

    async def _ask(self, name: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        """One request: a point, some time on the way, its effect and its answer."""
        process, network = self._process, self._network
        what = f"{name} {key}"
        dies = process.reach(what)
        trouble, takes_s = network.draw()
        if (stalled_s := process.stalled_until_s - anyio.current_time()) > 0:
            await anyio.sleep(stalled_s)
        if takes_s:
            await anyio.sleep(takes_s)
        if trouble in ("refused", "busy", "denied"):
            process.note(process.name, f"{what}: {trouble}")
            raise _ERRORS[trouble](trouble, doing=name, subject=key)
        effect = partial(self._effect, name, key, call)
        if trouble in ("late", "hangs") or dies == "within":
            process.note(process.name, f"{what}: {trouble or 'in the network'}")
            if trouble != "hangs" and name in CHANGES:
                network.send_late(key, effect)
            if dies:
                process.perish(f"within {what}")
            if trouble == "hangs":
                await anyio.sleep_forever()
            raise StoreUnavailable("the connection broke", doing=name, subject=key)
        result = await effect()
        if dies:
            process.perish(f"after {what}")
        if trouble == "lost":
            raise StoreUnavailable("the answer was lost", doing=name, subject=key)
        return result

    async def _effect(self, name: str, key: str, call: Callable[[], Awaitable[T]]) -> T:
        try:
            result = await call()
        except Exception as error:
            self._process.note(self._process.name, f"{name} {key}: {type(error).__name__}")
            raise
        self._process.note(self._process.name, f"{name} {key}")
        if name in CHANGES:
            self._store.changed(name, key)
        return result

    async def get(self, key: str) -> tuple[bytes, ObjectInfo]:
        return await self._ask("get", key, partial(self._store.get, key))

    async def get_range(self, key: str, start: int, into: memoryview) -> None:
        await self._ask("get_range", key, partial(self._store.get_range, key, start, into))

    async def head(self, key: str) -> ObjectInfo:
        return await self._ask("head", key, partial(self._store.head, key))

    async def put(self, key: str, body: Body, **more: Any) -> str:
        return await self._ask("put", key, partial(self._store.put, key, _bytes(body), **more))

    async def put_some(self, objects: Sequence[NewObject]) -> int:
        first = objects[0]
        await self.put(first.key, first.body, crc64nvme=first.crc64nvme)
        return 1

    async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        for info in await self._ask("list", prefix, partial(_all, self._store.list, prefix)):
            yield info

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            await self._ask("delete", keys[0], partial(self._store.delete, keys))

    async def create_upload(self, key: str, *, crc64nvme: str | None = None) -> str:
        return await self._ask("create_upload", key, partial(self._store.create_upload, key))

    async def upload_part(self, key: str, upload_id: str, number: int, body: Body, crc64nvme: str) -> str:
        send = partial(self._store.upload_part, key, upload_id, number, _bytes(body), crc64nvme)
        return await self._ask("upload_part", key, send)

    async def list_parts(self, key: str, upload_id: str) -> Sequence[PartInfo]:
        return await self._ask("list_parts", key, partial(self._store.list_parts, key, upload_id))

    async def complete_upload(self, key: str, upload_id: str, parts: Sequence[PartInfo], **more: Any) -> str:
        complete = partial(self._store.complete_upload, key, upload_id, parts, **more)
        return await self._ask("complete_upload", key, complete)

    async def abort_upload(self, key: str, upload_id: str) -> None:
        await self._ask("abort_upload", key, partial(self._store.abort_upload, key, upload_id))

    async def list_uploads(self, prefix: str = "") -> AsyncIterator[UploadInfo]:
        for upload in await self._ask(
            "list_uploads", prefix, partial(_all, self._store.list_uploads, prefix)
        ):
            yield upload


_ERRORS: dict[str, type[Exception]] = {"refused": StoreUnavailable, "busy": StoreBusy, "denied": StoreDenied}


def _bytes(body: Body) -> bytes:
    """What a late request carries is what was sent, whatever becomes of the file."""
    return b"".join(map(bytes, pieces(body)))


async def _all(listing: Callable[[str], AsyncIterator[T]], prefix: str) -> list[T]:
    return [one async for one in listing(prefix)]
