"""Buckets that keep versions: a deletion hides, a purge deletes, and a lock is told by its key."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from uploader.errors import StoreDenied
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.s3 import S3Store
from uploader.store.s3_versions import purge

pytestmark = pytest.mark.anyio

Place = tuple[Location, StorageSettings]


@pytest.fixture
async def versioned(s3_server: Place) -> AsyncIterator[S3Store]:
    """A run in a bucket that keeps versions."""
    async with S3Store.open(Location("versioned", "run"), s3_server[1]) as store:
        await store.create_bucket()
        enabled: Any = {"Status": "Enabled"}
        await store._client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration=enabled)
        yield store


async def versions(store: S3Store, bucket: str, prefix: str) -> tuple[int, int]:
    """How many versions there are, and how many delete markers."""
    page: Any = await store._client.list_object_versions(Bucket=bucket, Prefix=f"run/{prefix}")
    return len(page.get("Versions", [])), len(page.get("DeleteMarkers", []))


async def test_a_deletion_hides_and_a_purge_deletes(versioned: S3Store) -> None:
    for body in (b"one", b"two"):
        await versioned.put("step_1/g1/model", body)
    await versioned.put("step_10/g1/model", b"another step's")
    await versioned.delete(["step_1/g1/model"])
    assert [info.key async for info in versioned.list("step_1/")] == []
    assert await versions(versioned, "versioned", "step_1/") == (2, 1)
    for _ in range(2):  # what is gone is no error
        await versioned.purge("step_1/")
        assert await versions(versioned, "versioned", "step_1/") == (0, 0)
    assert (await versioned.get("step_10/g1/model"))[0] == b"another step's"


async def test_an_object_lock_is_told_by_its_key(s3_server: Place) -> None:
    rule: Any = {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 1}}
    async with S3Store.open(Location("locked", "run"), s3_server[1]) as store:
        await store._client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
        await store._client.put_object_lock_configuration(
            Bucket="locked", ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": rule}
        )
        await store.put("step_1/g1/model", b"kept for a day")
        await store.delete(["step_1/g1/model"])
        with pytest.raises(StoreDenied, match="s3://locked/run/step_1/g1/model: access denied"):
            await store.purge("step_1/")
        assert (await versions(store, "locked", ""))[0] >= 1


class Pages:
    """A client whose listing of versions has two pages."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses, self.asked, self.deleted = refuses, list[dict[str, str]](), list[list[dict[str, str]]]()

    async def list_object_versions(self, **asked: str) -> dict[str, Any]:
        self.asked.append(asked)
        if self.refuses:
            answer = {"Error": {"Code": self.refuses}, "ResponseMetadata": {"HTTPStatusCode": 501}}
            raise ClientError(answer, "ListObjectVersions")  # type: ignore[arg-type]
        version = {"Key": "run/a", "VersionId": str(len(self.asked))}
        if "KeyMarker" in asked:
            return {"DeleteMarkers": [version]}
        more = {"IsTruncated": True, "NextKeyMarker": "run/a", "NextVersionIdMarker": "1"}
        return {"Versions": [version], **more}

    async def delete_objects(self, Bucket: str, Delete: Any) -> dict[str, Any]:
        self.deleted.append(Delete["Objects"])
        return {"Errors": [{"Key": "run/a", "Code": "NoSuchVersion"}]}


async def test_every_page_is_purged() -> None:
    client: Any = Pages()
    await purge(client, "bucket", "run/")
    assert [[one["VersionId"] for one in batch] for batch in client.deleted] == [["1"], ["2"]]
    assert client.asked[1]["VersionIdMarker"] == "1"


async def test_a_store_without_versions_has_none_to_purge() -> None:
    client: Any = Pages("NotImplemented")
    await purge(client, "bucket", "run/")
    assert client.deleted == []
