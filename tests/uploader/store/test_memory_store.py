"""The faults and the record of operations, which only the store in memory has."""

from collections.abc import Callable

import pytest

from uploader.errors import ObjectMissing, StoreUnavailable
from uploader.store.memory import PAGE, Fault, MemoryStore, Operation

pytestmark = pytest.mark.anyio


def once(name: str, fault: Fault) -> Callable[[Operation], Fault | None]:
    """A fault that strikes the first operation of this name."""
    left = [fault]
    return lambda operation: left.pop() if operation.name == name and left else None


async def test_a_refused_request_has_no_effect() -> None:
    error = StoreUnavailable("the store is unavailable")
    store = MemoryStore(faults=once("put", Fault(error)))
    with pytest.raises(StoreUnavailable) as caught:
        await store.put("key", b"x")
    assert caught.value is error
    with pytest.raises(ObjectMissing):
        await store.get("key")
    await store.put("key", b"x")
    assert (await store.get("key"))[0] == b"x"


async def test_a_lost_answer_has_its_effect() -> None:
    store = MemoryStore(faults=once("put", Fault(StoreUnavailable("the connection broke"), "after")))
    with pytest.raises(StoreUnavailable):
        await store.put("key", b"x", if_absent=True)
    assert (await store.get("key"))[0] == b"x"


async def test_a_lost_answer_to_complete_leaves_the_object_and_no_upload() -> None:
    fault = Fault(StoreUnavailable("the connection broke"), "after")
    store = MemoryStore(faults=once("complete_upload", fault))
    upload_id = await store.create_upload("key")
    await store.put("other", b"part")
    crc = (await store.head("other")).etag
    await store.upload_part("key", upload_id, 1, b"part", crc)
    parts = await store.list_parts("key", upload_id)
    with pytest.raises(StoreUnavailable):
        await store.complete_upload("key", upload_id, parts, size_bytes=4, crc64nvme=crc)
    assert (await store.get("key"))[0] == b"part"
    assert [upload async for upload in store.list_uploads()] == []


async def test_operations_are_counted_as_requests() -> None:
    store = MemoryStore()
    names = [f"{number:05}" for number in range(PAGE + 1)]
    for name in names:
        await store.put(name, b"")
    store.operations.clear()
    assert [info.key async for info in store.list()] == names
    await store.delete(names)
    upload_id = await store.create_upload("key")
    await store.upload_part("key", upload_id, 3, b"", "AAAAAAAAAAA=")
    assert store.operations == [
        Operation("list", ""),
        Operation("list", ""),
        Operation("delete", "00000"),
        Operation("delete", "01000"),
        Operation("create_upload", "key"),
        Operation("upload_part", "key", 3),
    ]


async def test_times_come_from_the_injected_clock() -> None:
    store = MemoryStore(now=lambda: 1234.5)
    await store.put("key", b"x")
    await store.create_upload("big")
    assert (await store.head("key")).modified_at == 1234.5
    assert [upload.initiated_at async for upload in store.list_uploads()] == [1234.5]
