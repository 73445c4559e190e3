"""Every request is repeated while its error can heal, and no longer."""

from collections.abc import Awaitable, Callable

import pytest
from steps import Time

from uploader import checksum
from uploader.errors import ObjectMissing, StoreDenied, StoreUnavailable, WmtpError
from uploader.store.base import ObjectStore, PartInfo
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.retrying import RetryingStore

pytestmark = pytest.mark.anyio

DATA = b"data"
CRC = checksum.of_bytes(DATA)
PART = PartInfo(1, len(DATA), CRC, CRC)


async def listing(store: ObjectStore) -> list[str]:
    return [info.key async for info in store.list("k")]


async def upload_listing(store: ObjectStore) -> list[str]:
    return [upload.upload_id async for upload in store.list_uploads("k")]


REQUESTS: dict[str, Callable[[ObjectStore], Awaitable[object]]] = {
    "get": lambda store: store.get("key"),
    "get_range": lambda store: store.get_range("key", 1, memoryview(bytearray(2))),
    "head": lambda store: store.head("key"),
    "put": lambda store: store.put("key", b"new", crc64nvme=checksum.of_bytes(b"new"), if_match=CRC),
    "list": listing,
    "delete": lambda store: store.delete(["key"]),
    "create_upload": lambda store: store.create_upload("key"),
    "upload_part": lambda store: store.upload_part("key", "upload-1", 1, DATA, CRC),
    "list_parts": lambda store: store.list_parts("key", "upload-1"),
    "complete_upload": lambda store: store.complete_upload(
        "key", "upload-1", [PART], size_bytes=len(DATA), crc64nvme=CRC
    ),
    "abort_upload": lambda store: store.abort_upload("key", "upload-1"),
    "list_uploads": upload_listing,
}


async def filled() -> MemoryStore:
    store = MemoryStore()
    await store.put("key", DATA)
    await store.create_upload("key")
    await store.upload_part("key", "upload-1", 1, DATA, CRC)
    store.operations.clear()
    return store


@pytest.mark.parametrize("name", REQUESTS)
async def test_what_heals_is_repeated_with_the_same_result(name: str) -> None:
    expected = await REQUESTS[name](await filled())
    store, left, told = await filled(), [1, 2, 3], list[tuple[str, int]]()

    def faults(_: Operation) -> Fault | None:
        return Fault(StoreUnavailable(f"trouble {left.pop()}")) if left else None

    def on_retry(error: WmtpError, attempt: int, _: float) -> None:
        told.append((error.problem, attempt))

    store.faults = faults
    retrying = RetryingStore(store, Time().clocks.retry, on_retry)
    result = await REQUESTS[name](retrying)
    strip = (lambda both: (both[0], both[1].etag)) if name == "get" else lambda one: getattr(one, "etag", one)
    assert strip(result) == strip(expected)
    assert [one.name for one in store.operations] == [name] * 4
    assert told == [("trouble 3", 1), ("trouble 2", 2), ("trouble 1", 3)]


@pytest.mark.parametrize("name", REQUESTS)
async def test_what_does_not_heal_is_told_at_once(name: str) -> None:
    store = await filled()
    store.faults = lambda _: Fault(StoreDenied("no"))
    with pytest.raises(StoreDenied):
        await REQUESTS[name](RetryingStore(store, Time().clocks.retry))
    assert len(store.operations) == 1


async def test_a_listing_that_breaks_on_its_second_page_yields_nothing_twice() -> None:
    store = MemoryStore()
    for number in range(1500):
        store._keep(f"k{number:04}", b"")
    pages = [0]

    def faults(_: Operation) -> Fault | None:
        pages[0] += 1
        return Fault(StoreUnavailable("broken")) if pages[0] == 2 else None

    store.faults = faults
    assert await listing(RetryingStore(store, Time().clocks.retry)) == [f"k{n:04}" for n in range(1500)]


async def test_an_answer_is_an_answer() -> None:
    store = RetryingStore(MemoryStore(), Time().clocks.retry)
    assert store.uri == "memory://"
    with pytest.raises(ObjectMissing):
        await store.get("none")
