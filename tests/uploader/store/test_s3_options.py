"""Each storage setting: which requests carry it, and which combinations are refused."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from fake_s3 import Request, serving
from pydantic import ValidationError
from quirky_s3 import QuirkyS3

from uploader import checksum, presets
from uploader.errors import SettingsError
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import PartInfo
from uploader.store.capabilities import ALL
from uploader.store.s3 import S3Store

pytestmark = pytest.mark.anyio

BODY = b"some bytes"
CRC = checksum.of_bytes(BODY)
KEY = bytes(range(32))
SSE_C = {
    "x-amz-server-side-encryption-customer-algorithm": "AES256",
    "x-amz-server-side-encryption-customer-key": base64.b64encode(KEY).decode(),
    "x-amz-server-side-encryption-customer-key-md5": base64.b64encode(
        hashlib.md5(KEY, usedforsecurity=False).digest()
    ).decode(),
}
MAKING = {"put", "create_upload"}
ON_OBJECTS = MAKING | {"part", "list_parts", "complete", "get", "get_range", "head"}
EVERYWHERE = ON_OBJECTS | {"abort", "list", "uploads", "delete"}


async def each_request(directory: Path, **settings: object) -> dict[str, Request]:
    """What is sent for each method of a store with these settings."""
    server = QuirkyS3()
    sent: dict[str, Request] = {}
    with serving(server.talk) as at:
        storage = at.storage(directory, **settings)
        async with S3Store.open(Location("bucket", ""), storage, capabilities=ALL) as store:

            def now(name: str) -> None:
                sent[name] = server.requests[-1]

            await store.put("key", BODY)
            now("put")
            await store.get("key")
            now("get")
            with pytest.raises(Exception, match="ranges"):  # which this server does not know
                await store.get_range("key", 0, memoryview(bytearray(1)))
            now("get_range")
            await store.head("key")
            now("head")
            upload_id = await store.create_upload("big")
            now("create_upload")
            etag = await store.upload_part("big", upload_id, 1, BODY, CRC)
            now("part")
            with pytest.raises(Exception, match="parts"):  # nor ListParts
                await store.list_parts("big", upload_id)
            now("list_parts")
            parts = [PartInfo(1, len(BODY), etag, CRC)]
            await store.complete_upload("big", upload_id, parts, size_bytes=len(BODY), crc64nvme=CRC)
            now("complete")
            await store.abort_upload("big", upload_id)
            now("abort")
            assert [info async for info in store.list()] == []
            now("list")
            assert [upload async for upload in store.list_uploads()] == []
            now("uploads")
            await store.delete(["key"])
            now("delete")
    return sent


@pytest.mark.parametrize(
    ("settings", "headers", "where"),
    [
        ({"sse": "AES256"}, {"x-amz-server-side-encryption": "AES256"}, MAKING),
        (
            {"sse": "aws:kms", "sse_kms_key_id": "name"},
            {
                "x-amz-server-side-encryption": "aws:kms",
                "x-amz-server-side-encryption-aws-kms-key-id": "name",
            },
            MAKING,
        ),
        ({"storage_class": "STANDARD_IA"}, {"x-amz-storage-class": "STANDARD_IA"}, MAKING),
        ({"tags": {"team": "a b", "x&y": "1=2"}}, {"x-amz-tagging": "team=a%20b&x%26y=1%3D2"}, MAKING),
        ({"acl": "bucket-owner-full-control"}, {"x-amz-acl": "bucket-owner-full-control"}, MAKING),
        ({"requester_pays": True}, {"x-amz-request-payer": "requester"}, EVERYWHERE),
        ({"sse_c_key_file": "key"}, SSE_C, ON_OBJECTS),
        ({}, {}, set()),
    ],
)
async def test_a_setting_goes_with_the_requests_that_take_it(
    settings: dict[str, Any], headers: dict[str, str], where: set[str], tmp_path: Path
) -> None:
    if "sse_c_key_file" in settings:
        (tmp_path / "key").write_bytes(base64.b64encode(KEY) + b"\n")
        settings = {"sse_c_key_file": str(tmp_path / "key")}
    sent = await each_request(tmp_path, **settings)
    assert set(sent) == EVERYWHERE
    known = (*SSE_C, "x-amz-server-side-encryption", "x-amz-server-side-encryption-aws-kms-key-id",
             "x-amz-storage-class", "x-amz-tagging", "x-amz-acl", "x-amz-request-payer")  # fmt: skip
    for name, request in sent.items():
        found = {header: request.headers[header] for header in known if header in request.headers}
        assert found == (headers if name in where else {}), name


@pytest.mark.parametrize("held", [KEY, base64.b64encode(KEY), base64.b64encode(KEY) + b"\n"])
async def test_a_customers_key_is_read_raw_or_base64(held: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(held)
    sent = await each_request(tmp_path, sse_c_key_file=str(tmp_path / "key"))
    assert sent["head"].headers.items() >= SSE_C.items()


@pytest.mark.parametrize("held", [b"", b"0123456789", base64.b64encode(KEY[:-1]), b"\xff" * 33, None])
async def test_another_file_is_refused_and_not_repeated(held: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "the-file"
    if held is not None:
        path.write_bytes(held)
    storage = StorageSettings(endpoint_url="http://127.0.0.1:1", sse_c_key_file=str(path))
    with pytest.raises(SettingsError, match="the-file") as caught:
        async with S3Store.open(Location("bucket", ""), storage):
            pass
    assert caught.value.subject == "storage.sse_c_key_file"
    assert not held or held.decode("latin-1") not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"preset": "r2", "endpoint_url": "https://a.r2", "acl": "private"}, "acl can't be used with r2"),
        ({"preset": "r2", "endpoint_url": "https://a.r2", "tags": {"a": "b"}}, "tags can't be used with r2"),
        ({"preset": "r2", "endpoint_url": "https://a.r2", "sse": "AES256"}, "sse can't be used with r2"),
        (
            {"preset": "r2", "endpoint_url": "https://a.r2", "storage_class": "GLACIER"},
            "storage_class GLACIER is unknown to r2: it knows STANDARD, STANDARD_IA",
        ),
        ({"preset": "r2"}, "endpoint_url is not set"),
        ({"preset": "b2"}, "region or endpoint_url is not set"),
        ({"preset": "b2", "region": "us-west-004", "tags": {"a": "b"}}, "tags can't be used with b2"),
        ({"preset": "b2", "region": "us-west-004", "sse": "aws:kms"}, "sse aws:kms is unknown to b2"),
        ({"preset": "gcs", "sse_c_key_file": "key"}, "sse_c_key_file can't be used with gcs"),
        ({"preset": "gcs", "requester_pays": True}, "requester_pays can't be used with gcs"),
        (
            {"preset": "minio", "endpoint_url": "http://m:9000", "acl": "private"},
            "acl can't be used with minio",
        ),
        ({"sse": "AES256", "sse_c_key_file": "key"}, "sse and sse_c_key_file are two encryptions"),
        ({"sse_kms_key_id": "key"}, "sse_kms_key_id has no effect"),
        ({"sse_c_key_file": "key", "endpoint_url": "http://store:80"}, "endpoint_url must be https"),
        ({"tags": {f"tag{number}": "" for number in range(11)}}, "tags"),
        ({"acl": "everybody"}, "acl"),
        ({"preset": "tape"}, "preset"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError) as caught:
        StorageSettings.model_validate(settings)
    assert problem in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "[::1]"])
def test_on_this_machine_a_customers_key_may_go_unencrypted(host: str) -> None:
    StorageSettings(sse_c_key_file="key", endpoint_url=f"http://{host}:9000")


@pytest.mark.parametrize(
    ("settings", "filled"),
    [
        ({"preset": "r2", "endpoint_url": "https://a.r2"}, ("https://a.r2", "auto", "auto")),
        ({"preset": "b2", "region": "us-west"}, ("https://s3.us-west.backblazeb2.com", "us-west", "auto")),
        ({"preset": "gcs"}, ("https://storage.googleapis.com", "auto", "auto")),
        ({"preset": "minio", "endpoint_url": "http://m:9000"}, ("http://m:9000", "us-east-1", "path")),
        ({"preset": "ceph", "endpoint_url": "http://c"}, ("http://c", "us-east-1", "path")),
        (
            {"preset": "ceph", "endpoint_url": "http://c", "region": "eu", "addressing_style": "virtual"},
            ("http://c", "eu", "virtual"),
        ),
        ({"preset": "aws", "region": "eu-west-1"}, (None, "eu-west-1", "auto")),
        ({}, (None, None, "auto")),
    ],
)  # fmt: skip
def test_a_preset_fills_what_is_not_set(settings: dict[str, Any], filled: tuple[str | None, ...]) -> None:
    found = presets.filled(StorageSettings.model_validate(settings))
    assert (found.endpoint_url, found.region, found.addressing_style) == filled


@pytest.mark.parametrize(
    ("settings", "region"),
    [
        ({"preset": "r2"}, "auto"),
        ({"preset": "b2", "region": "us-west-004"}, "us-west-004"),
        ({"preset": "gcs"}, "auto"),
        ({"preset": "minio"}, "us-east-1"),
        ({"preset": "ceph"}, "us-east-1"),
        ({"preset": "ceph", "region": "eu"}, "eu"),
    ],
)
async def test_a_preset_signs_for_its_region_and_deletes_as_its_store_can(
    settings: dict[str, Any], region: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_REGION", "of-somebody-else")
    server = QuirkyS3()
    with serving(server.talk) as at:
        storage = at.storage(tmp_path, addressing_style="auto", **settings)
        async with S3Store.open(Location("bucket", ""), storage, capabilities=ALL) as store:
            await store.put("key", BODY)
            await store.delete(["key", "other"])
    put, *deletions = server.requests
    assert put.path == "/bucket/key"
    assert f"/{region}/s3/aws4_request" in put.headers["authorization"]
    singly = settings["preset"] == "gcs"
    assert [one.method for one in deletions] == (["DELETE"] * 2 if singly else ["POST"])


async def test_aws_is_known_and_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    storage = StorageSettings(region="eu-central-1", connect_timeout_s=0.001)
    async with S3Store.open(Location("bucket", "run"), storage) as store:
        assert await store.capabilities() is ALL


async def test_the_region_is_signed_and_the_style_is_followed(tmp_path: Path) -> None:
    sent = await each_request(tmp_path, region="mars-1")
    assert "/mars-1/s3/aws4_request" in sent["put"].headers["authorization"]
    assert sent["put"].path == "/bucket/key"
