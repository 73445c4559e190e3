"""Which unfinished uploads go on and which are aborted; ages by the store's clock alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.checksum import BLOCK_SIZE_BYTES, of_bytes
from uploader.journal import Journal, Unfinished
from uploader.layout import RunDirectory
from uploader.store.base import UploadInfo
from uploader.store.local import LocalStore
from uploader.store.memory import MemoryStore
from uploader.unfinished import (
    CLOCK_KEY,
    abort_debris,
    continued,
    give_up_unwanted,
    stale,
    store_now_s,
)

pytestmark = pytest.mark.anyio

WEEK_S = 7 * 86_400.0


async def begun(store: MemoryStore, key: str, journal: Journal | None = None) -> Unfinished:
    """An upload that somebody began, and wrote down if there is a journal."""
    upload = Unfinished(
        destination=store.uri,
        key=key,
        upload_id=await store.create_upload(key),
        size_bytes=0,
        crc64nvme=of_bytes(b""),
        part_size_bytes=BLOCK_SIZE_BYTES,
    )
    if journal is not None:
        journal.begin(upload)
    return upload


async def there(store: MemoryStore) -> list[str]:
    return [one.key async for one in store.list_uploads()]


async def test_the_upload_of_a_step_that_nobody_wants_is_aborted_and_forgotten(
    directory: RunDirectory,
) -> None:
    store, journal = MemoryStore(), Journal(directory)
    for key in ("step_1/g1/a", "step_2/g1/a", "step_2/g2/a", "strange"):
        await begun(store, key, journal)
    await begun(store, "step_1/g1/b")  # another node's
    assert await give_up_unwanted(store, journal, {"step_2@g1"}) == 3
    assert [one.key for one in journal.all()] == ["step_2/g1/a"]
    assert await there(store) == ["step_1/g1/b", "step_2/g1/a"]


async def test_stale_is_told_by_the_stores_clock(directory: RunDirectory) -> None:
    clock = [1000.0]
    store, journal = MemoryStore(now=lambda: clock[0]), Journal(directory)
    await begun(store, "step_1/g1/ours", journal)
    await begun(store, "step_1/g1/nobodys")
    await begun(store, "step_1/g1/debris", journal)
    await begun(store, "notes/a")  # nothing of ours
    await begun(store, CLOCK_KEY)  # who asked the time died
    for now_s, left in (
        (1000.0 + WEEK_S, ["notes/a", "step_1/g1/nobodys", "step_1/g1/ours"]),
        (1001.0 + WEEK_S, ["notes/a", "step_1/g1/ours"]),
    ):
        clock[0] = now_s
        await abort_debris(store, journal, lambda key: key.endswith("debris"), WEEK_S)
        assert await there(store) == left
    assert [one.key for one in journal.all()] == ["step_1/g1/ours"]


async def test_where_nothing_is_in_question_nobody_asks_the_time(directory: RunDirectory) -> None:
    store, journal = MemoryStore(), Journal(directory)
    await begun(store, "step_1/g1/ours", journal)
    store.operations.clear()
    assert await abort_debris(store, journal, lambda _: False, WEEK_S) == 0
    assert [one.name for one in store.operations] == ["list_uploads"]


async def test_the_clock_of_a_store_leaves_nothing_behind(directory: RunDirectory) -> None:
    store = MemoryStore(now=lambda: 77.0)
    assert await store_now_s(store) == 77.0
    assert await there(store) == []
    elsewhere = LocalStore(directory.path / "store")
    before_s = directory.path.stat().st_mtime
    assert (await store_now_s(elsewhere) or 0) >= before_s
    assert [one async for one in elsewhere.list_uploads()] == []


@given(st.lists(st.one_of(st.none(), st.floats(0, 1e6))), st.one_of(st.none(), st.floats(0, 1e6)))
def test_what_has_no_age_is_never_stale(ages: list[float | None], now_s: float | None) -> None:
    uploads = [UploadInfo("step_1/g1/a", str(at), age) for at, age in enumerate(ages)]
    chosen = stale(uploads, now_s, 100.0)
    assert all(one.initiated_at is not None and now_s is not None for one in chosen)
    assert all(now_s - one.initiated_at > 100 for one in chosen)  # type: ignore[operator]
    if now_s is not None:
        assert [
            one for one in uploads if one.initiated_at is not None and now_s - one.initiated_at > 100
        ] == chosen


async def test_an_upload_goes_on_by_destination_key_and_id() -> None:
    store = MemoryStore()
    upload = await begun(store, "step_1/g1/a")
    (listed,) = [one async for one in store.list_uploads()]
    assert continued(listed, store.uri, [upload])
    assert not continued(listed, "memory://other", [upload])
    assert not continued(UploadInfo(listed.key, "another"), store.uri, [upload])
    assert not continued(listed, store.uri, [])
