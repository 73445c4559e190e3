"""Object stores behind one protocol: ``base`` says what one does; ``s3``, ``local``, ``memory`` do it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import ObjectInfo, ObjectStore, PartInfo, UploadInfo
from uploader.store.body import Body, FileSlice

__all__ = ["Body", "FileSlice", "ObjectInfo", "ObjectStore", "PartInfo", "UploadInfo", "open_store"]


@asynccontextmanager
async def open_store(location: Location, storage: StorageSettings) -> AsyncIterator[ObjectStore]:
    """The store of ``location``, open while the context lasts. Nothing is sent yet."""
    if location.is_s3:
        from uploader.store.s3 import S3Store  # here, as aioboto3 takes a third of a second to import

        async with S3Store.open(location, storage) as store:
            yield store
    else:
        from uploader.store.local import LocalStore

        yield LocalStore(location.directory)
