"""Object stores behind one protocol: ``base`` says what one does; ``s3``, ``local``, ``memory`` do it."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from uploader.flow import Flow
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.base import NewObject, ObjectInfo, ObjectStore, PartInfo, UploadInfo
from uploader.store.body import Body, FileSlice, at_once
from uploader.store.capabilities import ALL, Capabilities

__all__ = [
    "Body",
    "Capabilities",
    "FileSlice",
    "NewObject",
    "ObjectInfo",
    "ObjectStore",
    "PartInfo",
    "UploadInfo",
    "open_store",
]


@asynccontextmanager
async def open_store(
    location: Location,
    storage: StorageSettings,
    flow: Flow | None = None,
    tell: Callable[[Capabilities], None] | None = None,
) -> AsyncIterator[ObjectStore]:
    """The store of ``location``, open while the context lasts. Nothing is sent yet.

    Args:
        flow: the bounds on what is sent.
        tell: told what the store can do, once that is known: an S3 store is asked before the first write.
    """
    if location.is_s3:
        from uploader.store.s3 import S3Store  # here, as aioboto3 takes a third of a second to import

        bounds: Any = {} if flow is None else {"pace": flow.pace, "connections": flow.connections}
        async with S3Store.open(location, storage, **bounds, tell=tell) as store:
            yield store
    else:
        from uploader.store.local import LocalStore

        if tell is not None:
            tell(ALL)
        yield LocalStore(location.directory, at_once if flow is None else flow.pace)
