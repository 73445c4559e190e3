"""A request that never ends is abandoned and sent again; on a clock that jumps."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio.lowlevel
import pytest
from virtual_time import VIRTUAL

from uploader import checksum
from uploader.errors import StoreBusy, WmtpError
from uploader.retry import RetryPolicy
from uploader.store.base import ObjectInfo, PartInfo
from uploader.store.memory import MemoryStore
from uploader.store.retrying import LONG, RetryingStore

pytestmark = pytest.mark.anyio
DATA = b"d" * 1_000_000
CRC = checksum.of_bytes(DATA)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return VIRTUAL


class Hanging(MemoryStore):
    """The first request of each kind is never answered, although it had its effect."""

    hung = False

    async def _hang(self) -> None:
        if not self.hung:
            self.hung = True
            await anyio.sleep_forever()


def hanging(name: str) -> Callable[..., Awaitable[Any]]:
    async def request(self: Hanging, *args: Any, **more: Any) -> Any:
        answer = await getattr(MemoryStore, name)(self, *args, **more)
        await self._hang()
        return answer

    return request


for name in ("get", "head", "put", "upload_part", "complete_upload", "delete", "create_upload"):
    setattr(Hanging, name, hanging(name))

CASES: dict[str, tuple[Callable[[RetryingStore], Awaitable[object]], float]] = {
    "get": (lambda store: store.get("key"), 60.0),
    "head": (lambda store: store.head("key"), 60.0),
    "put": (lambda store: store.put("key", DATA, crc64nvme=CRC), 60.0 + 1_000_000 / 65_536),
    "upload_part": (
        lambda store: store.upload_part("key", "upload-1", 1, DATA, CRC),
        60.0 + 1_000_000 / 65_536,
    ),
    "delete": (lambda store: store.delete([f"k{number}" for number in range(2500)]), 180.0),
    "create_upload": (lambda store: store.create_upload("key"), 60.0),
}


def retrying(store: MemoryStore, told: list[str]) -> RetryingStore:
    def on_retry(error: WmtpError, attempt: int, wait_s: float) -> None:
        assert isinstance(error, StoreBusy)
        told.append(str(error))

    async def at_once(_: float) -> None:
        await anyio.lowlevel.checkpoint()

    return RetryingStore(store, RetryPolicy(sleep=at_once, clock=anyio.current_time), on_retry)


@pytest.mark.parametrize("name", CASES)
async def test_a_request_that_hangs_is_abandoned_and_repeated(name: str) -> None:
    ask, allowed_s = CASES[name]
    store, told = Hanging(), list[str]()
    store.hung = True
    await store.put("key", DATA)
    await store.create_upload("key")
    store.hung = False
    began_s = anyio.current_time()
    await ask(retrying(store, told))
    assert anyio.current_time() - began_s == pytest.approx(allowed_s)
    assert len(told) == 1
    assert "memory:///k" in told[0]
    assert f"no end of it within {allowed_s:.0f} s" in told[0]


async def test_a_trickle_is_given_up_although_something_moves() -> None:
    class Trickling(MemoryStore):
        tries = 0

        async def upload_part(self, *args: Any) -> str:
            self.tries += 1
            for _ in range(10_000 if self.tries == 1 else 0):
                await anyio.sleep(59)  # never silent for a minute: one more byte
            return await super().upload_part(*args)

    store, told = Trickling(), list[str]()
    await store.create_upload("key")
    began_s = anyio.current_time()
    await retrying(store, told).upload_part("key", "upload-1", 1, DATA, CRC)
    assert store.tries == 2
    assert anyio.current_time() - began_s < 60 + 2 * len(DATA) / 65_536


async def test_a_long_listing_has_the_time_it_takes_but_no_page_has() -> None:
    class Slow(MemoryStore):
        pause_s = 50.0

        async def list(self, prefix: str = "") -> AsyncIterator[ObjectInfo]:
            async for info in super().list(prefix):
                await anyio.sleep(self.pause_s)
                yield info

    store, told = Slow(), list[str]()
    for key in "abcdef":
        await store.put(key, b"")
    assert len([info async for info in retrying(store, told).list()]) == 6
    assert told == []
    store.pause_s = 61.0
    listing = aiter(retrying(store, told).list())
    with anyio.move_on_after(200):
        await anext(listing)
    assert len(told) == 3


async def test_completing_may_take_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    store, told = Hanging(), list[str]()
    store.hung = True
    await store.create_upload("key")
    part = PartInfo(1, len(DATA), await store.upload_part("key", "upload-1", 1, DATA, CRC), CRC)
    store.hung = False
    began_s = anyio.current_time()
    with pytest.raises(WmtpError, match="completed or aborted"):  # its answer was lost: not for this room
        await retrying(store, told).complete_upload(
            "key", "upload-1", [part], size_bytes=len(DATA), crc64nvme=CRC
        )
    assert anyio.current_time() - began_s == pytest.approx(60 * LONG)
