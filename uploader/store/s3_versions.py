"""The versions of objects in a bucket that keeps them: a deletion only hides an object there.

Needs ``s3:ListBucketVersions`` and ``s3:DeleteObjectVersion``. A store that knows no versions has none.
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html
"""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from uploader.store.s3_errors import answered, speaking
from uploader.store.s3_shapes import code, status

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

NOT_OFFERED = (405, 501)


async def purge(client: "S3Client", bucket: str, prefix: str) -> None:
    """Delete every version and delete marker whose key begins with ``prefix``, page after page.

    Raises:
        StoreDenied: not allowed, or an object lock holds a version; the message names its key.
    """
    name = f"s3://{bucket}/{prefix}"
    async for versions in _pages(client, bucket, prefix, name):
        with speaking("purging", name):
            answer = await client.delete_objects(Bucket=bucket, Delete={"Objects": versions, "Quiet": True})
        for failed in answer.get("Errors", []):
            if failed.get("Code") not in ("NoSuchKey", "NoSuchVersion"):
                subject = f"s3://{bucket}/{failed.get('Key', prefix)}"
                raise answered(failed.get("Code", ""), doing="purging a version of", subject=subject)


async def _pages(client: "S3Client", bucket: str, prefix: str, name: str) -> AsyncIterator[list[Any]]:
    """At most a thousand versions a page: as many as one request may delete."""
    marker: dict[str, str] = {}
    while True:
        with speaking("listing the versions of", name):
            try:
                page: Any = await client.list_object_versions(Bucket=bucket, Prefix=prefix, **marker)  # type: ignore[arg-type]
            except ClientError as error:
                if status(error) in NOT_OFFERED or code(error) == "NotImplemented":
                    return
                raise
        listed = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        if listed:
            yield [{"Key": one["Key"], "VersionId": one["VersionId"]} for one in listed]
        if not page.get("IsTruncated"):
            return
        marker = {"KeyMarker": page["NextKeyMarker"], "VersionIdMarker": page["NextVersionIdMarker"]}
