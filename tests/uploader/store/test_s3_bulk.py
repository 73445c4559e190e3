"""Files after the first: sent without botocore, and in nothing to be told from what it sends."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from fake_s3 import OK, FakeServer, Request, Talk, refusal, serving

from uploader import checksum
from uploader.errors import StoreBusy, StoreDenied
from uploader.location import Location
from uploader.store import FileSlice
from uploader.store.capabilities import ALL
from uploader.store.s3 import S3Store

pytestmark = pytest.mark.anyio

DATA = bytes(range(256)) * 64
CRC = checksum.of_bytes(DATA)
KEYS = ["run/a", "step_7/g1/model é+ ~(1).bin", "x/y=z&w", "run/b"]
OF_THE_REQUEST = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request", "expect"}


class Bucket:
    """Takes whatever it is sent; says ``refuse`` once, or for good, if there is one."""

    def __init__(self) -> None:
        self.got: list[Request] = []
        self.refuse: bytes | None = None
        self.for_good = False

    def talk(self, one: Talk) -> None:
        while request := one.request():
            self.got.append(request)
            said = self.refuse or OK
            self.refuse = self.refuse if self.for_good else None
            one.say(said)


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
        directory, storage_class="STANDARD_IA", tags={"team": "a b"}, sse_c_key_file=str(key)
    )
    async with S3Store.open(Location("bucket", ""), storage, capabilities=ALL) as store:
        sent: list[str] = []
        client = store._client
        client.meta.events.register("before-sign.s3", lambda operation_name, **_: sent.append(operation_name))
        yield store, sent


def lasting(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.headers.items() if name not in OF_THE_REQUEST}


async def test_every_file_is_sent_as_the_first_one(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    async with reaching(server, tmp_path) as (store, by_botocore):
        for key in KEYS:
            assert await store.put(key, body, crc64nvme=CRC) == "e"
        for number, upload_id in enumerate(["u", "a/b+c=="], 1):
            assert await store.upload_part("key", upload_id, number, body, CRC) == "e"
    assert by_botocore == ["PutObject", "UploadPart"]
    puts, parts = bucket.got[: len(KEYS)], bucket.got[len(KEYS) :]
    assert [request.path for request in puts] == [f"/bucket/{key}" for key in KEYS]
    for request in bucket.got:
        assert request.body == DATA
        assert request.headers["x-amz-checksum-crc64nvme"] == CRC
    for first, *others in (puts, parts):
        for request in others:
            assert lasting(request) == lasting(first)
            assert request.headers["x-amz-content-sha256"] == "UNSIGNED-PAYLOAD"
    assert puts[-1].headers["x-amz-tagging"] == "team=a%20b"
    assert parts[-1].headers["x-amz-server-side-encryption-customer-algorithm"] == "AES256"
    assert {name: parts[-1].query[name] for name in ("partNumber", "uploadId")} == {
        "partNumber": "2",
        "uploadId": "a/b+c==",
    }


async def test_a_refusal_is_the_stores(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    async with reaching(server, tmp_path) as (store, by_botocore):
        await store.put("a", body, crc64nvme=CRC)
        bucket.refuse = refusal("503 Slow Down", "SlowDown")
        with pytest.raises(StoreBusy, match="SlowDown") as caught:
            await store.put("b", body, crc64nvme=CRC)
        assert isinstance(caught.value.__cause__, ClientError)
        bucket.refuse = refusal("403 Forbidden", "AccessDenied")
        with pytest.raises(StoreDenied, match="AccessDenied"):
            await store.put("b", body, crc64nvme=CRC)
    assert by_botocore == ["PutObject"]


async def test_credentials_that_have_expired_are_left_to_botocore_which_renews_them(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    async with reaching(server, tmp_path) as (store, by_botocore):
        await store.put("a", body, crc64nvme=CRC)
        renewed = "[default]\naws_access_key_id = fresh\naws_secret_access_key = c\n"
        (tmp_path / "credentials").write_text(renewed)
        bucket.refuse = refusal("400 Bad Request", "ExpiredToken")
        assert await store.put("b", body, crc64nvme=CRC) == "e"
        assert by_botocore == ["PutObject", "PutObject"]
        bucket.refuse, bucket.for_good = refusal("400 Bad Request", "ExpiredToken"), True
        with pytest.raises(StoreDenied, match="expired credentials"):
            await store.put("c", body, crc64nvme=CRC)


async def test_what_has_a_condition_or_no_file_is_botocores(
    server: FakeServer, bucket: Bucket, body: FileSlice, tmp_path: Path
) -> None:
    async with reaching(server, tmp_path) as (store, by_botocore):
        await store.put("a", body, crc64nvme=CRC)
        await store.put("b", body, crc64nvme=CRC, if_absent=True)
        await store.put("c", DATA)
    assert by_botocore == ["PutObject"] * 3
    assert bucket.got[1].headers["if-none-match"] == "*"
