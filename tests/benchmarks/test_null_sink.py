"""The sink must be an S3 server in all that an upload asks for, or the benchmarks measure something else."""

from collections.abc import Iterator

import anyio
import pytest

from benchmarks import null_sink
from benchmarks.null_bucket import CRC, MODIFIED, Answer, Bucket, Request, Stored
from benchmarks.null_sink import Rate
from uploader import checksum
from uploader.errors import ObjectMissing, PreconditionFailed, StoreDenied
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import PartInfo
from uploader.store.s3 import S3Store


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with null_sink.running() as url:
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


def test_it_counts_what_it_receives_and_under_which_checksum(url: str, storage: StorageSettings) -> None:
    async def talk() -> None:
        async with S3Store.open(Location("b", "counted"), storage) as store:
            await store.put("blob", bytes(3_000_000))

    before = null_sink.stats(url)
    anyio.run(talk)
    after = null_sink.stats(url)
    assert after["bytes_in"] - before["bytes_in"] >= 3_000_000
    checked = [one["checked_bytes"].get("crc64nvme", 0) for one in (before, after)]
    assert checked[1] - checked[0] >= 3_000_000


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({}, "none"),
        ({"x-amz-content-sha256": "UNSIGNED-PAYLOAD"}, "none"),
        ({"x-amz-content-sha256": "0" * 64, "content-md5": "AAAA"}, "md5+sha256"),
        ({"x-amz-checksum-crc64nvme": "AAAA", "x-amz-checksum-type": "FULL_OBJECT"}, "crc64nvme"),
        ({"x-amz-sdk-checksum-algorithm": "CRC32", "x-amz-trailer": "x-amz-checksum-crc32"}, "crc32"),
    ],
)
def test_it_tells_the_checksums_of_a_body(headers: dict[str, str], found: str) -> None:
    bucket = Bucket()
    bucket.answer(Request("PUT", "b/w", {}, headers, 10, None))
    assert bucket.stats()["checked_bytes"] == {found: 10}


def test_it_tells_when_an_object_was_stored_more_exactly_than_by_the_second() -> None:
    bucket = Bucket()
    bucket.answer(Request("PUT", "b/manifest.json", {}, {}, 2, b"{}"))
    stored_s = bucket.objects["b/manifest.json"].modified_s
    answer = bucket.answer(Request("GET", "b/manifest.json", {}, {}, 0, None))
    assert float(answer.headers[MODIFIED]) == pytest.approx(stored_s, abs=1e-5)


def test_all_connections_share_one_rate() -> None:
    rate = Rate(1000.0)
    assert rate.wait_s(500, 0.0) == pytest.approx(0.5)
    assert rate.wait_s(500, 0.1) == pytest.approx(0.9)  # another's bytes come after
    assert rate.wait_s(100, 5.0) == pytest.approx(0.1)  # what was not used is not saved up
    assert Rate(float("inf")).wait_s(10**12, 1.0) == 0.0


def test_a_slow_sink_takes_everything_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    with null_sink.running(100.0) as url:
        storage = StorageSettings(endpoint_url=url, region="us-east-1", addressing_style="path")

        async def talk() -> None:
            async with S3Store.open(Location("b", "slow"), storage) as store:
                async with anyio.create_task_group() as group:
                    for number in range(4):
                        group.start_soon(store.put, f"blob-{number}", bytes(5_000_000))
                assert [info.size_bytes async for info in store.list()] == [5_000_000] * 4

        anyio.run(talk)
        assert null_sink.stats(url)["bytes_in"] >= 20_000_000


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


def test_a_small_body_that_is_not_what_its_checksum_says_is_refused() -> None:
    bucket = Bucket()
    right, wrong = ({CRC: checksum.of_bytes(body)} for body in (b"body", b"other"))
    assert bucket.answer(Request("PUT", "b/w", {}, wrong, 4, b"body")).status == 400
    assert bucket.objects == {}
    assert bucket.answer(Request("PUT", "b/w", {}, right, 4, b"body")).status == 200


def test_an_object_is_what_its_parts_checksums_make_and_is_created_once() -> None:
    bucket = Bucket()
    bucket.answer(Request("POST", "b/w", {"uploads": ""}, {}, 0, b""))
    (upload_id,) = bucket.uploads
    crcs = [checksum.of_bytes(body) for body in (b"one", b"more")]
    for number, (crc, size_bytes) in enumerate(zip(crcs, (3, 4), strict=True), 1):
        query = {"uploadId": upload_id, "partNumber": str(number)}
        bucket.answer(Request("PUT", "b/w", query, {CRC: crc}, size_bytes, None))
    named = b"<PartNumber>1</PartNumber><PartNumber>2</PartNumber>"

    def complete(crc: str) -> int:
        headers = {CRC: crc, "if-none-match": "*"}
        return bucket.answer(Request("POST", "b/w", {"uploadId": upload_id}, headers, 0, named)).status

    assert complete(crcs[0]) == 400
    bucket.objects["b/w"] = Stored(1, "another", None)
    assert complete(checksum.of_bytes(b"onemore")) == 412
    del bucket.objects["b/w"]
    assert complete(checksum.of_bytes(b"onemore")) == 200
    assert (bucket.objects["b/w"].size_bytes, bucket.uploads) == (7, {})
