"""What is below a prefix, page after page: objects, and uploads that are neither completed nor aborted."""

from collections.abc import AsyncIterator
from typing import Any

from uploader.errors import StoreError
from uploader.store.base import ObjectInfo, UploadInfo
from uploader.store.s3_place import S3Place
from uploader.store.s3_shapes import given, object_info


async def list_objects(place: S3Place, prefix: str) -> AsyncIterator[ObjectInfo]:
    """Every object whose key begins with ``prefix``."""
    pages = aiter(place.client.get_paginator("list_objects_v2").paginate(**place.below(prefix)))
    while True:
        with place.speaking("listing", prefix):
            page = await anext(pages, None)
        if page is None:
            return
        for entry in page.get("Contents", []):
            yield object_info(place.relative(entry["Key"]), entry)


async def list_uploads(place: S3Place, prefix: str) -> AsyncIterator[UploadInfo]:
    """Every unfinished upload whose key begins with ``prefix``.

    By hand: SeaweedFS orders by upload id and gives no NextKeyMarker, which botocore's paginator needs.
    """
    marker: dict[str, Any] = {}
    while True:
        with place.speaking("listing the uploads of", prefix):
            page = await place.client.list_multipart_uploads(**place.below(prefix), **marker)
        for upload in page.get("Uploads", []):
            initiated_at = upload["Initiated"].timestamp() if "Initiated" in upload else None
            yield UploadInfo(place.relative(upload["Key"]), upload["UploadId"], initiated_at)
        if not page.get("IsTruncated"):
            return
        marker = given(
            KeyMarker=page.get("NextKeyMarker") or None,
            UploadIdMarker=page.get("NextUploadIdMarker") or None,
        )
        if not marker:
            problem = "the store's listing stops halfway"
            raise StoreError(problem, doing="listing", subject=place.name(prefix))
