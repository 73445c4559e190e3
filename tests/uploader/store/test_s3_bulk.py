"""Files after the first: sent without botocore, and in nothing to be told from what it sends."""

import base64
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from fake_s3 import OK, FakeServer, Request, Talk, answer, refusal, serving
from key_process import giving_keys

from uploader import checksum
from uploader.errors import CorruptError, ObjectMissing, StoreBusy, StoreDenied
from uploader.location import Location
from uploader.store import FileSlice, NewObject, ObjectInfo
from uploader.store.capabilities import ALL
from uploader.store.s3 import S3Store

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 64
CRC = checksum.of_bytes(DATA)
KEYS = ["run/a", "step_7/g1/model é+ ~(1).bin", "x/y=z&w", "run/b"]
MAKING = {
    "x-amz-storage-class": "STANDARD_IA",
    "x-amz-tagging": "team=a%20b",
    "x-amz-acl": "bucket-owner-full-control",
}
EVERYWHERE = {
    "x-amz-request-payer": "requester",
    "x-amz-server-side-encryption-customer-algorithm": "AES256",
    "x-amz-server-side-encryption-customer-key": base64.b64encode(b"k" * 32).decode(),
}
OF_THE_REQUEST = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request", "expect"}
OF_THE_REQUEST |= {"accept", "accept-encoding"}  # aiohttp adds these


class Bucket:
    """Takes whatever it is sent; of ``refusals`` each is said once, where there is one."""

    def __init__(self) -> None:
        self.got: list[Request] = []
        self.refusals: list[bytes | None] = []

    def talk(self, one: Talk) -> None:
        while request := one.request():
            self.got.append(request)
            one.say((self.refusals.pop(0) if self.refusals else None) or OK)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


@pytest.fixture(params=["http", "tls"])
def server(request: pytest.FixtureRequest, bucket: Bucket) -> Iterator[FakeServer]:
    with ExitStack() as stack:
        certificates = request.getfixturevalue("certificates") if request.param == "tls" else None
        yield stack.enter_context(serving(bucket.talk, certificates))


@pytest.fixture
def body(tmp_path: Path) -> Iterator[FileSlice]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    descriptor = os.open(path, os.O_RDONLY)
    yield FileSlice(descriptor, 0, len(DATA), str(path))
    os.close(descriptor)


@asynccontextmanager
async def reaching(server: FakeServer, directory: Path) -> AsyncIterator[tuple[S3Store, list[str]]]:
    """The store, and the operations that botocore sends."""
    key = directory / "key"
    key.write_bytes(b"k" * 32)
    storage = server.storage(
        directory,
        storage_class="STANDARD_IA",
        tags={"team": "a b"},
        acl="bucket-owner-full-control",
        requester_pays=True,
        sse_c_key_file=str(key),
    )
    async with S3Store.open(Location("bucket", ""), storage, capabilities=ALL) as store:
        sent: list[str] = []
        client = store._client
        client.meta.events.register("before-sign.s3", lambda operation_name, **_: sent.append(operation_name))
        yield store, sent


def lasting(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name not in OF_THE_REQUEST}


async def put(store: S3Store, *keys: str, body: FileSlice) -> int:
    return await store.put_some([NewObject(key, body, CRC) for key in keys])


async def test_every_file_is_sent_as_the_first_one(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    async with reaching(server, tmp_path) as (store, by_botocore):
        assert await put(store, *KEYS, body=body) == 1  # botocore shows how
        assert await put(store, *KEYS[1:], body=body) == len(KEYS) - 1
        for number, upload_id in enumerate(["u", "a/b+c=="], 1):
            assert await store.upload_part("key", upload_id, number, body, CRC) == "e"
    assert by_botocore == ["PutObject", "UploadPart"]
    puts, parts = bucket.got[: len(KEYS)], bucket.got[len(KEYS) :]
    assert [request.path for request in puts] == [f"/bucket/{key}" for key in KEYS]
    for request in bucket.got:
        assert request.body == DATA
        assert request.headers["x-amz-checksum-crc64nvme"] == CRC
        assert request.headers.items() >= EVERYWHERE.items()
    for first, *others in (puts, parts):
        for request in others:
            assert lasting(request) == lasting(first)
            assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert puts[-1].headers.items() >= MAKING.items()
    assert {name: parts[-1].query[name] for name in ("partNumber", "uploadId")} == {
        "partNumber": "2",
        "uploadId": "a/b+c==",
    }


async def test_several_files_go_in_turn_over_one_connection(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    async with reaching(server, tmp_path) as (store, _):
        await put(store, "first", body=body)
        connections = len(server.connections)
        assert await put(store, *KEYS, body=body) == len(KEYS)
        assert len(server.connections) == connections
    assert [request.path for request in bucket.got[1:]] == [f"/bucket/{key}" for key in KEYS]


async def test_what_fails_in_a_row_ends_it_and_says_why_when_it_is_first(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    short = replace(body, size_bytes=len(DATA) + 1)
    async with reaching(server, tmp_path) as (store, _):
        await put(store, "first", body=body)
        row = [NewObject("a", body, CRC), NewObject("b", short, CRC), NewObject("c", body, CRC)]
        assert await store.put_some(row) == 1
        with pytest.raises(CorruptError, match=f"ends at byte {len(DATA)}"):
            await store.put_some(row[1:])
        bucket.refusals = [None, refusal("503 Slow Down", "SlowDown")]
        assert await put(store, "d", "e", "f", body=body) == 1
        bucket.refusals = [refusal("503 Slow Down", "SlowDown")]
        with pytest.raises(StoreBusy, match="SlowDown"):
            await put(store, "e", "f", body=body)
        assert await put(store, "e", "f", body=body) == 2
    whole = [request for request in bucket.got if request.headers["content-length"] == str(len(DATA))]
    assert [request.path for request in whole] == [
        f"/bucket/{key}" for key in ("first", "a", "d", "e", "e", "e", "f")
    ]


async def test_a_refusal_is_the_stores(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    async with reaching(server, tmp_path) as (store, by_botocore):
        await put(store, "a", body=body)
        bucket.refusals = [refusal("503 Slow Down", "SlowDown")]
        with pytest.raises(StoreBusy, match="SlowDown") as caught:
            await put(store, "b", body=body)
        assert isinstance(caught.value.__cause__, ClientError)
        bucket.refusals = [refusal("403 Forbidden", "AccessDenied")]
        with pytest.raises(StoreDenied, match="AccessDenied"):
            await put(store, "b", body=body)
    assert by_botocore == ["PutObject"]


async def test_a_clock_that_differs_is_named_with_both_times(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    said = b"<Error><Code>RequestTimeTooSkewed</Code></Error>"
    async with reaching(server, tmp_path) as (store, _):
        await put(store, "a", body=body)
        bucket.refusals = [answer("403 Forbidden", said, Date="Thu, 01 Jan 2026 00:20:00 GMT")]
        with pytest.raises(StoreDenied, match="clock skew") as caught:
            await put(store, "b", body=body)
    assert "2026-01-01 00:20:00 there" in str(caught.value)


async def test_credentials_that_have_expired_are_left_to_botocore_which_renews_them(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    expired = refusal("400 Bad Request", "ExpiredToken")
    async with reaching(server, tmp_path) as (store, by_botocore):
        await put(store, "a", body=body)
        renewed = "[default]\naws_access_key_id = fresh\naws_secret_access_key = c\naws_session_token = t\n"
        (tmp_path / "credentials").write_text(renewed)
        bucket.refusals = [expired, expired]  # ours, then botocore's own
        assert await put(store, "b", "c", body=body) == 1
        assert by_botocore == ["PutObject", "PutObject", "PutObject"]
        assert await put(store, "c", "d", body=body) == 2
        assert by_botocore == ["PutObject"] * 3
        for request in bucket.got[-2:]:
            assert "Credential=fresh/" in request.headers["authorization"]
            assert request.headers["x-amz-security-token"] == "t"
        bucket.refusals = [expired] * 9
        with pytest.raises(StoreDenied, match="expired credentials"):
            await put(store, "e", body=body)


async def test_a_token_that_is_replaced_in_time_is_the_one_that_is_sent(
    bucket: Bucket, body: FileSlice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a process gives is about to expire, so before each request it is asked again."""
    aws = giving_keys(tmp_path)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(aws / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(aws / "none"))
    with serving(bucket.talk) as server:
        storage = server.storage(tmp_path, credentials_file=None, profile="agent")
        async with S3Store.open(Location("bucket", ""), storage, capabilities=ALL) as store:
            for key in "abc":
                await put(store, key, body=body)
            for number in (1, 2):
                await store.upload_part("key", "u", number, body, CRC)
    tokens = [request.headers["x-amz-security-token"] for request in bucket.got]
    signed_with = [request.headers["authorization"].partition("=")[2] for request in bucket.got]
    assert len({*tokens}) == len(tokens) == 5
    for token, credential in zip(tokens, signed_with, strict=True):
        assert credential.startswith(f"KEY{token.removeprefix('TOKEN')}/")


async def test_small_objects_are_put_and_got_as_the_first_one(
    server: FakeServer, bucket: Bucket, tmp_path: Path
) -> None:
    said = answer("200 OK", b"{}", ETag='"g"', x_amz_checksum_crc64nvme=CRC)
    async with reaching(server, tmp_path) as (store, by_botocore):
        for key in KEYS:
            assert await store.put(key, DATA) == "e"
        bucket.refusals = [said] * len(KEYS)
        for key in KEYS:
            data, info = await store.get(key)
            assert (data, info) == (b"{}", ObjectInfo(key, 2, "g", CRC))
        bucket.refusals = [refusal("404 Not Found", "NoSuchKey")]
        with pytest.raises(ObjectMissing, match="NoSuchKey"):
            await store.get("key")
    assert by_botocore == ["PutObject", "GetObject"]
    puts, gets = bucket.got[: len(KEYS)], bucket.got[len(KEYS) : -1]
    assert [request.path for request in puts] == [request.path for request in gets]
    for first, *others in (puts, gets):
        for request in others:
            assert lasting(request) == lasting(first)
    assert {request.body for request in puts} == {DATA}
    assert not any(request.query for request in bucket.got)
    assert {request.headers["x-amz-checksum-mode"] for request in gets} == {"ENABLED"}


async def test_what_is_asked_for_once_is_botocores_and_nobodys_example(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    part = answer("206 Partial Content", b"d", ETag='"e"')
    async with reaching(server, tmp_path) as (store, by_botocore):
        for _ in range(2):
            await store.put("a", DATA, if_absent=True)
            await store.put("b", DATA, if_match="e")
            bucket.refusals = [part]
            await store.get_range("c", 7, memoryview(bytearray(1)))
        for _ in range(2):
            await store.put("d", DATA)
            await put(store, "e", body=body)
            await store.get("f")
    assert by_botocore == ["PutObject", "PutObject", "GetObject"] * 2 + ["PutObject", "GetObject"]
    for request in bucket.got[6:]:
        assert not request.headers.keys() & {"if-none-match", "if-match", "range"}
