"""Six bugs that protocols like this one are known for, to be put into the code while a context lasts.

Each replaces one function of the code under test. The simulation has to find every one of them.
"""

from collections.abc import Callable, Iterator, Set
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

from uploader import backlog, files, service
from uploader import commit as commits
from uploader.manifest_file import ManifestFile
from uploader.queue import EventQueue
from uploader.used import UsedKeys

Bug = Callable[[], AbstractContextManager[object]]


def _replaced(target: object, name: str, put: object) -> AbstractContextManager[object]:
    return mock.patch.object(target, name, put)


@contextmanager
def marker_before_data() -> Iterator[None]:
    """The commit record is created first, then the files it names are sent."""
    upload, create = commits._upload_files, commits._create_commit_record

    async def commit(local: Any, store: Any, keys: Any, *rest: Any) -> Any:
        record = await create(local, store, keys)
        await upload(local, store, keys.step_prefix(local.step, local.generation), *rest)
        return record

    with _replaced(service, "commit", commit):
        yield


@contextmanager
def prune_before_commit() -> Iterator[None]:
    """Local steps go when a newer one is on this disk, before it or they are durable."""

    def discard(steps: list[Any], kept: Set[str], *_: Any) -> list[Any]:
        return sorted(steps, key=lambda one: one.step)[:-1]

    with _replaced(backlog, "_discard", discard):
        yield


@contextmanager
def no_directory_fsync() -> Iterator[None]:
    """Files are synced, the names they got are not."""
    with _replaced(files, "fsync_directory", lambda _: None):
        yield


@contextmanager
def swap_without_reading_again() -> Iterator[None]:
    """A lost race for the manifest is met with the new ETag, and with what was decided before."""

    async def update(self: Any, decide: Callable[[Any], Any]) -> Any:
        manifest, etag = await self._read()
        changed = decide(manifest if manifest is not None else await self.from_records())
        while changed != manifest or etag is None:
            try:
                await self._store.put(
                    "manifest.json", changed.encode(), if_absent=etag is None, if_match=etag
                )
            except service.StoreError:
                etag = (await self._store.head("manifest.json")).etag
                continue
            break
        return changed

    with _replaced(ManifestFile, "update", update):
        yield


@contextmanager
def event_acknowledged_early() -> Iterator[None]:
    """Events are done with as soon as they were read."""
    receive = EventQueue.receive

    def received(self: Any) -> list[Any]:
        events = receive(self)
        for event in events:
            self.acknowledge(event)
        return events

    with _replaced(EventQueue, "receive", received):
        yield


def keys_used_twice() -> AbstractContextManager[object]:
    """What the store has pruned is uploaded again where a disk has kept it and a trainer goes back to it."""
    return _replaced(UsedKeys, "note", lambda *_: None)


BUGS: dict[str, Bug] = {
    bug.__name__: bug
    for bug in (
        marker_before_data,
        prune_before_commit,
        no_directory_fsync,
        swap_without_reading_again,
        event_acknowledged_early,
        keys_used_twice,
    )
}
