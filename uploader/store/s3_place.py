"""A prefix of a bucket, at an endpoint: its keys, their names in messages, and what failures there mean."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from uploader.errors import ObjectMissing
from uploader.location import Location
from uploader.store.s3_errors import answered, speaking

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client


class S3Place:
    """``s3://bucket/prefix`` as ``client`` reaches it."""

    def __init__(self, client: "S3Client", location: Location) -> None:
        self.client, self.uri = client, str(location)
        self.bucket, self.root = location.bucket, f"{location.path}/" if location.path else ""

    def at(self, key: str) -> Any:
        """What names an object to botocore."""
        return {"Bucket": self.bucket, "Key": self.root + key}

    def below(self, prefix: str) -> Any:
        """What names all objects with a prefix."""
        return {"Bucket": self.bucket, "Prefix": self.root + prefix}

    def relative(self, key: str) -> str:
        """A key of the bucket, as this store has it."""
        return key.removeprefix(self.root)

    def name(self, key: str) -> str:
        """An object in a message."""
        return f"s3://{self.bucket}/{self.root}{key}"

    @contextmanager
    def speaking(self, doing: str, key: str) -> Iterator[None]:
        """Turn any failure of S3 inside the block into one of ``uploader.errors`` about the key."""
        with speaking(doing, self.name(key), endpoint_url=self.client.meta.endpoint_url):
            yield

    @contextmanager
    def in_upload(self, doing: str, key: str) -> Iterator[None]:
        """As ``speaking``. What Ceph calls a missing key is a missing upload."""
        try:
            with self.speaking(doing, key):
                yield
        except ObjectMissing as error:
            raise answered("NoSuchUpload", doing=doing, subject=self.name(key)) from error
