"""Every store keeps the one protocol: memory, a directory, S3 over HTTP and over TLS, and Ceph.

Ceph's gateway verifies no checksum but MD5 and tells none: what it lacks the probe finds out, and the store
makes up for it, so that the same tests pass.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from uploader import checksum
from uploader.errors import (
    BucketMissing,
    ChecksumMismatch,
    CorruptError,
    ObjectMissing,
    PreconditionFailed,
    StoreDenied,
    StoreUnavailable,
    UploadMissing,
    WmtpError,
)
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store import ObjectStore, PartInfo, open_store
from uploader.store.memory import MemoryStore

pytestmark = pytest.mark.anyio

Place = tuple[Location, StorageSettings]
SERVERS = {"s3": "s3_place", "s3-tls": "s3_tls_place", "ceph": "ceph_place"}
PART = bytes(range(256)) * 4 * 1024 * 5  # 5 MiB, the smallest part S3 takes
LAST = b"the last part may be short"


@pytest.fixture(params=["memory", "local", *SERVERS])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place | None:
    """Where the store is; None is memory."""
    match request.param:
        case "memory":
            return None
        case "local":
            return Location("", str(tmp_path / "remote")), StorageSettings()
        case kind:
            found: Place = request.getfixturevalue(SERVERS[kind])
            return found


@pytest.fixture
async def store(place: Place | None) -> AsyncIterator[ObjectStore]:
    if place is None:
        yield MemoryStore()
    else:
        async with open_store(*place) as opened:
            yield opened


@pytest.fixture(params=SERVERS)
def s3(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(SERVERS[request.param])
    return found


async def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def uploads(store: ObjectStore, prefix: str = "") -> set[tuple[str, str]]:
    return {(upload.key, upload.upload_id) async for upload in store.list_uploads(prefix)}


async def send(store: ObjectStore, key: str, upload_id: str, number: int, body: bytes) -> PartInfo:
    crc = checksum.of_bytes(body)
    return PartInfo(number, len(body), await store.upload_part(key, upload_id, number, body, crc), crc)


async def test_an_object_comes_back_as_it_was_put(store: ObjectStore) -> None:
    body = bytes(range(256)) * 3000
    etag = await store.put("step_1/g1/model.bin", memoryview(body), crc64nvme=checksum.of_bytes(body))
    data, info = await store.get("step_1/g1/model.bin")
    assert data == body
    assert (info.key, info.size_bytes, info.etag) == ("step_1/g1/model.bin", len(body), etag)
    assert info.crc64nvme == checksum.of_bytes(body)
    assert info.modified_at is not None
    assert await store.head("step_1/g1/model.bin") == info


async def test_an_empty_object_is_an_object(store: ObjectStore) -> None:
    await store.put("empty", b"")
    data, info = await store.get("empty")
    assert (data, info.size_bytes) == (b"", 0)


async def test_a_put_replaces(store: ObjectStore) -> None:
    first = await store.put("key", b"one")
    second = await store.put("key", b"two")
    assert first != second
    assert (await store.get("key"))[0] == b"two"


async def test_what_is_not_there_is_missing(store: ObjectStore) -> None:
    await store.put("there", b"x")
    with pytest.raises(ObjectMissing):
        await store.get("not there")
    with pytest.raises(ObjectMissing):
        await store.head("not there")
    with pytest.raises(ObjectMissing):
        await store.get_range("not there", 0, memoryview(bytearray(1)))
    assert await keys(store, "not") == []


async def test_a_range_fills_the_callers_memory(store: ObjectStore) -> None:
    body = bytes(range(256)) * 8192
    await store.put("key", body)
    memory = bytearray(len(body))
    await store.get_range("key", 0, memoryview(memory)[:1_000_000])
    await store.get_range("key", 1_000_000, memoryview(memory)[1_000_000:])
    assert memory == body
    await store.get_range("key", 5, memoryview(bytearray()))


@pytest.mark.parametrize("start", [1, 4, 100])
async def test_a_range_beyond_the_end_is_corrupt(store: ObjectStore, start: int) -> None:
    await store.put("key", b"four")
    with pytest.raises(CorruptError):
        await store.get_range("key", start, memoryview(bytearray(4)))


async def test_a_wrong_checksum_is_refused_and_nothing_written(store: ObjectStore) -> None:
    with pytest.raises(ChecksumMismatch):
        await store.put("key", b"these bytes", crc64nvme=checksum.of_bytes(b"other bytes"))
    with pytest.raises(ObjectMissing):
        await store.head("key")


async def test_only_one_of_eight_creates(store: ObjectStore) -> None:
    won: list[int] = []

    async def create(number: int) -> None:
        try:
            await store.put("generations/0001.json", str(number).encode(), if_absent=True)
            won.append(number)
        except PreconditionFailed:
            pass

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(create, number)
    assert len(won) == 1
    assert (await store.get("generations/0001.json"))[0] == str(won[0]).encode()


async def test_if_match_replaces_only_what_was_read(store: ObjectStore) -> None:
    first = await store.put("manifest.json", b"1")
    second = await store.put("manifest.json", b"2", if_match=first)
    with pytest.raises(PreconditionFailed):
        await store.put("manifest.json", b"3", if_match=first)
    assert (await store.get("manifest.json"))[0] == b"2"
    assert (await store.head("manifest.json")).etag == second
    with pytest.raises((PreconditionFailed, ObjectMissing)):  # AWS says 404 where there is nothing to match
        await store.put("absent", b"3", if_match=first)
    assert await keys(store) == ["manifest.json"]


async def test_compare_and_swap_loses_no_change(store: ObjectStore) -> None:
    await store.put("counter", b"0")

    async def increment() -> None:
        while True:
            data, info = await store.get("counter")
            try:
                await store.put("counter", str(int(data) + 1).encode(), if_match=info.etag)
                return
            except (PreconditionFailed, StoreUnavailable):  # Ceph answers some losers with 500
                continue

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(increment)
    assert (await store.get("counter"))[0] == b"4"


async def test_a_listing_is_in_key_order_and_only_below_its_prefix(store: ObjectStore) -> None:
    names = ["run10/a", "run1/b/c", "run1/c.txt", "run1/a", "run1/b/d", "run1/ä"]
    for name in names:
        await store.put(name, name.encode())
    infos = [info async for info in store.list("run1/")]
    assert [info.key for info in infos] == sorted(name for name in names if name.startswith("run1/"))
    assert [info.size_bytes for info in infos] == [len(info.key.encode()) for info in infos]
    assert await keys(store, "run1/b/") == ["run1/b/c", "run1/b/d"]
    assert len(await keys(store)) == len(names)


async def test_deleting_takes_what_is_named_and_no_more(store: ObjectStore) -> None:
    for name in ("a/1", "a/2", "b/1"):
        await store.put(name, b"x")
    await store.delete(["a/1", "a/2", "never there"])
    assert await keys(store) == ["b/1"]
    await store.delete(["a/1"])
    await store.delete([])
    assert await keys(store) == ["b/1"]


async def test_parts_in_any_order_make_the_object(store: ObjectStore) -> None:
    crcs = [checksum.of_bytes(PART), checksum.of_bytes(LAST)]
    whole = checksum.combine([(crcs[0], len(PART)), (crcs[1], len(LAST))])
    upload_id = await store.create_upload("big", crc64nvme=whole)
    last = await send(store, "big", upload_id, 2, LAST)
    first = await send(store, "big", upload_id, 1, PART)
    stored = await store.list_parts("big", upload_id)
    assert [(p.number, p.size_bytes, p.etag) for p in stored] == [
        (p.number, p.size_bytes, p.etag) for p in (first, last)
    ]
    assert await keys(store) == []

    size_bytes = len(PART) + len(LAST)
    etag = await store.complete_upload(
        "big", upload_id, [last, first], size_bytes=size_bytes, crc64nvme=whole
    )
    info = await store.head("big")
    assert (info.size_bytes, info.crc64nvme, info.etag) == (size_bytes, whole, etag)
    assert (await store.get("big"))[0] == PART + LAST
    assert await uploads(store) == set()
    with pytest.raises(UploadMissing):
        await store.list_parts("big", upload_id)

    # The answer was lost and it is completed again: S3 may remember it, and then says the same.
    try:
        again = await store.complete_upload(
            "big", upload_id, [first, last], size_bytes=size_bytes, crc64nvme=whole
        )
    except UploadMissing:
        again = etag
    assert again == etag


async def test_a_part_sent_again_replaces_the_first(store: ObjectStore) -> None:
    upload_id = await store.create_upload("key")
    await send(store, "key", upload_id, 1, b"first try")
    part = await send(store, "key", upload_id, 1, b"second")
    # SeaweedFS lists both; only the ETag tells which is which.
    assert (1, part.etag) in [(p.number, p.etag) for p in await store.list_parts("key", upload_id)]
    crc = checksum.of_bytes(b"second")
    await store.complete_upload("key", upload_id, [part], size_bytes=6, crc64nvme=crc)
    assert (await store.get("key"))[0] == b"second"


async def test_a_part_with_a_wrong_checksum_is_refused(store: ObjectStore) -> None:
    upload_id = await store.create_upload("key")
    with pytest.raises(ChecksumMismatch):
        await store.upload_part("key", upload_id, 1, b"these", checksum.of_bytes(b"other"))
    assert await store.list_parts("key", upload_id) == []


async def test_completing_refuses_other_bytes_and_other_parts(store: ObjectStore) -> None:
    upload_id = await store.create_upload("key")
    part = await send(store, "key", upload_id, 1, LAST)
    right = checksum.of_bytes(LAST)
    unknown = PartInfo(1, len(LAST), "00000000000000000000000000000000", None)
    with pytest.raises(ChecksumMismatch):
        await store.complete_upload(
            "key", upload_id, [part], size_bytes=len(LAST), crc64nvme=checksum.of_bytes(b"x")
        )
    with pytest.raises(ChecksumMismatch):
        await store.complete_upload("key", upload_id, [part], size_bytes=len(LAST) + 1, crc64nvme=right)
    with pytest.raises(ChecksumMismatch):
        await store.complete_upload("key", upload_id, [unknown], size_bytes=len(LAST), crc64nvme=right)
    with pytest.raises(ObjectMissing):
        await store.head("key")
    await store.complete_upload("key", upload_id, [part], size_bytes=len(LAST), crc64nvme=right)
    assert (await store.get("key"))[0] == LAST


async def test_an_aborted_upload_is_gone(store: ObjectStore) -> None:
    upload_id = await store.create_upload("key")
    part = await send(store, "key", upload_id, 1, LAST)
    await store.abort_upload("key", upload_id)
    await store.abort_upload("key", upload_id)
    crc = checksum.of_bytes(LAST)
    with pytest.raises(UploadMissing):
        await store.upload_part("key", upload_id, 1, LAST, crc)
    with pytest.raises(UploadMissing):
        await store.list_parts("key", upload_id)
    with pytest.raises(UploadMissing):
        await store.complete_upload("key", upload_id, [part], size_bytes=len(LAST), crc64nvme=crc)
    assert await uploads(store) == set()


async def test_unfinished_uploads_are_listed_below_their_prefix(store: ObjectStore) -> None:
    begun = {(key, await store.create_upload(key)) for key in ("run1/a", "run1/b/c", "run10/a", "run1/a")}
    assert await uploads(store) == begun
    assert await uploads(store, "run1/") == {
        (key, upload_id) for key, upload_id in begun if key[:5] == "run1/"
    }
    assert await uploads(store, "run2") == set()
    assert all([upload.initiated_at async for upload in store.list_uploads()])


async def test_wrong_credentials_are_denied(s3: Place, tmp_path: Path) -> None:
    location, storage = s3
    known = (await anyio.Path(str(storage.credentials_file)).read_text()).splitlines()
    for lines in (
        [*known[:2], "aws_secret_access_key = wrong"],
        ["[default]", "aws_access_key_id = who", known[2]],
    ):
        (tmp_path / "credentials").write_text("\n".join(lines) + "\n")
        wrong = storage.model_copy(update={"credentials_file": str(tmp_path / "credentials")})
        async with open_store(location, wrong) as store:
            for attempt in (
                store.get("key"),
                store.head("key"),
                store.put("key", b"x"),
                store.create_upload("key"),
            ):
                with pytest.raises(StoreDenied) as caught:
                    await attempt
                assert "credentials" in str(caught.value)
                assert "wrong" not in str(caught.value).replace("wrong secret key", "")
            with pytest.raises(StoreDenied):
                await keys(store)


async def test_a_missing_bucket_is_named_by_every_method(s3: Place) -> None:
    location, storage = Location("no-such-bucket", "run"), s3[1]
    crc = checksum.of_bytes(b"x")
    async with open_store(location, storage) as store:
        for attempt in (
            store.get("key"),
            store.get_range("key", 0, memoryview(bytearray(1))),
            store.head("key"),
            store.put("key", b"x"),
            store.delete(["key"]),
            store.create_upload("key"),
            keys(store),
            uploads(store),
        ):
            with pytest.raises(BucketMissing, match="no-such-bucket"):
                await attempt
        with pytest.raises((BucketMissing, UploadMissing)):
            await store.upload_part("key", "upload", 1, b"x", crc)


async def test_a_dead_endpoint_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[default]\naws_access_key_id = a\naws_secret_access_key = secret-b\n"
    )
    storage = StorageSettings(
        endpoint_url="http://127.0.0.1:1",  # tcpmux: nobody listens there
        credentials_file=str(tmp_path / "credentials"),
        connect_timeout_s=1,
    )
    async with open_store(Location("bucket", "run"), storage) as store:
        for attempt in (store.get("key"), store.put("key", b"x"), keys(store), store.delete(["key"])):
            with pytest.raises(StoreUnavailable) as caught:
                await attempt
            assert caught.value.heals
            assert "storage.endpoint_url" in caught.value.hint
            assert "secret-b" not in str(caught.value)


async def test_an_untrusted_certificate_says_what_to_set(s3_tls_place: Place) -> None:
    location, storage = s3_tls_place
    async with open_store(location, storage.model_copy(update={"ca_bundle": None})) as store:
        with pytest.raises(WmtpError, match=r"storage\.ca_bundle") as caught:
            await store.get("key")
    assert not caught.value.heals
