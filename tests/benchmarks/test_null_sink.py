"""The sink must be an S3 server in all that an upload asks for, or the benchmarks measure something else."""

import json
import urllib.request
from collections.abc import Iterator

import anyio
import pytest

from benchmarks.null_sink import Answer, Bucket, Request
from benchmarks.step_stall import null_sink
from uploader import checksum
from uploader.errors import ObjectMissing, PreconditionFailed, StoreDenied
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import PartInfo
from uploader.store.s3 import S3Store


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with null_sink() as url:
        yield url


@pytest.fixture
def storage(url: str, monkeypatch: pytest.MonkeyPatch) -> StorageSettings:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    return StorageSettings(endpoint_url=url, region="us-east-1", addressing_style="path")


def test_small_json_is_kept_and_written_conditionally(storage: StorageSettings) -> None:
    async def talk() -> None:
        async with S3Store.open(Location("b", "conditional"), storage) as store:
            etag = await store.put("manifest.json", b"{}", if_absent=True)
            with pytest.raises(PreconditionFailed):
                await store.put("manifest.json", b"[]", if_absent=True)
            await store.put("manifest.json", b"[1]", if_match=etag)
            with pytest.raises(PreconditionFailed):
                await store.put("manifest.json", b"[2]", if_match=etag)
            data, info = await store.get("manifest.json")
            assert (data, info.crc64nvme) == (b"[1]", checksum.of_bytes(b"[1]"))

    anyio.run(talk)


def test_a_multipart_upload_leaves_size_and_checksum_but_no_bytes(storage: StorageSettings) -> None:
    part = bytes(5 * 1024**2)
    crc = checksum.of_bytes(part)
    whole = checksum.combine([(crc, len(part))] * 2)

    async def talk() -> None:
        async with S3Store.open(Location("b", "multipart"), storage) as store:
            upload_id = await store.create_upload("w.safetensors")
            assert [one.upload_id async for one in store.list_uploads()] == [upload_id]
            for number in (1, 2):
                await store.upload_part("w.safetensors", upload_id, number, part, crc)
            parts = await store.list_parts("w.safetensors", upload_id)
            assert [(one.number, one.crc64nvme) for one in parts] == [(1, crc), (2, crc)]
            size_bytes = 2 * len(part)
            await store.complete_upload(
                "w.safetensors",
                upload_id,
                [PartInfo(one.number, one.size_bytes, one.etag, crc) for one in parts],
                size_bytes=size_bytes,
                crc64nvme=whole,
            )
            info = await store.head("w.safetensors")
            assert (info.size_bytes, info.crc64nvme) == (size_bytes, whole)
            assert [(one.key, one.size_bytes) async for one in store.list()] == [
                ("w.safetensors", size_bytes)
            ]
            with pytest.raises(StoreDenied):
                await store.get("w.safetensors")
            await store.delete(["w.safetensors"])
            with pytest.raises(ObjectMissing):
                await store.head("w.safetensors")

    anyio.run(talk)


def test_it_counts_what_it_receives(url: str, storage: StorageSettings) -> None:
    def received() -> int:
        with urllib.request.urlopen(f"{url}/__stats") as answer:  # noqa: S310
            return int(json.load(answer)["bytes_in"])

    async def talk() -> None:
        async with S3Store.open(Location("b", "counted"), storage) as store:
            await store.put("blob", bytes(3_000_000))

    before = received()
    anyio.run(talk)
    assert received() - before == 3_000_000


def test_framed_bodies_are_kept_without_their_frames() -> None:
    framed = b'3;chunk-signature=a\r\n{"a\r\n3\r\n":1\r\n1\r\n}\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n'
    headers = {"content-encoding": "aws-chunked", "x-amz-decoded-content-length": "7"}
    bucket = Bucket()
    bucket.answer(Request("PUT", "b/a.json", {}, headers, len(framed), framed))
    read = bucket.answer(Request("GET", "b/a.json", {}, {}, 0, b""))
    assert (read.body, bucket.objects["b/a.json"].size_bytes) == (b'{"a":1}', 7)


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_an_upload_that_is_gone_is_told_so(method: str) -> None:
    query = {"uploadId": "gone", "partNumber": "1"}
    answer: Answer = Bucket().answer(Request(method, "b/w", query, {}, 0, b""))
    assert (answer.status, b"NoSuchUpload" in answer.body) == (404, True)
