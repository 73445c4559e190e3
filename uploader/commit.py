"""Commit one checkpoint: every file, then the node record, then the commit record, created once.

A step exists remotely if and only if its commit record exists. A crash before that leaves objects that
nothing names, and uploads that the journal names: the next attempt keeps what is whole and goes on with the
rest.
"""

from collections.abc import Callable, Sequence, Set
from functools import partial

from anyio import to_thread

from uploader import layout
from uploader.bundle import Member, bundled, upload_bundle
from uploader.errors import CorruptError, OwnershipError, PreconditionFailed
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import RunKeys
from uploader.multipart import Progress, is_stored, upload_file
from uploader.record import CommitRecord, FileRecord
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side
from uploader.watch import LocalStep

HasStored = Callable[[str, FileRecord], bool]
"""Whether the store is known to have taken a file under a key."""


async def commit(
    local: LocalStep,
    store: ObjectStore,
    keys: RunKeys,
    flow: Flow,
    journal: Journal,
    progress: Progress,
    has_stored: HasStored = lambda key, file: False,
) -> CommitRecord | None:
    """Upload what this node wrote of a step and create its commit record.

    Args:
        has_stored: spares the question for what a head start has sent.

    Returns:
        The commit record; None while other nodes' records are missing: the last one there creates it.

    Raises:
        CorruptError: a local file is not what its record says, or no longer; nothing was committed.
        StoreError: a file could not be stored; nothing was committed.
    """
    prefix = keys.step_prefix(local.step, local.generation)
    if keys.in_place:
        _check_in_place(local)
    else:
        await _upload_files(local, store, prefix, flow, journal, progress, has_stored)
    return await _create_commit_record(local, store, keys)


async def is_committed(local: LocalStep, store: ObjectStore, keys: RunKeys) -> bool:
    """Whether the store has a step's commit record and every file of this node: nothing is to be sent."""
    prefix = keys.step_prefix(local.step, local.generation)
    there = {info.key: info.size_bytes async for info in store.list(prefix)}
    whole = all(there.get(prefix + file.path) == file.size_bytes for file in local.record.files)
    return whole and keys.commit_record(local.step, local.generation) in there


async def _upload_files(
    local: LocalStep,
    store: ObjectStore,
    prefix: str,
    flow: Flow,
    journal: Journal,
    progress: Progress,
    has_stored: HasStored,
) -> None:
    """Files in parallel, the node record after all of them. What a former attempt stored stays.

    The record takes no slot: what is small never waits behind bulk.
    """
    there = {info.key: info.size_bytes async for info in store.list(prefix)}
    begun = there.keys() | {upload.key for upload in journal.all()}

    async def go_on(file: FileRecord) -> None:
        key = prefix + file.path
        listed = there.get(key) == file.size_bytes
        if listed and (has_stored(key, file) or await is_stored(store, key, file)):
            progress(file.size_bytes)
        else:
            await upload_file(store, key, local.path / file.path, file, flow, journal, progress)

    async def upload(files: Sequence[FileRecord]) -> None:
        if len(files) == 1:
            await go_on(files[0])
        else:
            members = [Member(prefix + file.path, local.path / file.path, file) for file in files]
            await upload_bundle(members, store, flow, journal, progress)

    new = [file for file in local.record.files if prefix + file.path not in begun]
    known = [[file] for file in local.record.files if prefix + file.path in begun]
    together = bundled(new, flow.part_size_bytes, flow.parts_limit)
    await side_by_side(partial(upload, files) for files in [*known, *together])
    await to_thread.run_sync(local.check)
    await _end_uploads({prefix + file.path for file in local.record.files}, store, prefix, journal)
    await store.put(prefix + layout.node_record(local.record.node), local.encoded)


async def _end_uploads(mine: Set[str], store: ObjectStore, prefix: str, journal: Journal) -> None:
    """All files are there, so an upload of one is debris: nobody heard of its begin, or wrote it down.

    Other nodes' uploads are below this prefix, too.
    """
    async for debris in store.list_uploads(prefix):
        if debris.key in mine:
            await store.abort_upload(debris.key, debris.upload_id)
    for upload in journal.all():
        if upload.key in mine:
            journal.forget(upload.key)


def _check_in_place(local: LocalStep) -> None:
    for file in local.record.files:
        path = local.path / file.path
        size_bytes = path.stat().st_size if path.exists() else -1
        if size_bytes != file.size_bytes:
            problem = "it is missing" if size_bytes < 0 else f"{size_bytes} of {file.size_bytes} bytes"
            raise CorruptError(problem, doing="committing", subject=str(path))


async def _create_commit_record(local: LocalStep, store: ObjectStore, keys: RunKeys) -> CommitRecord | None:
    encoded = [local.encoded]
    if local.record.nodes > 1:
        prefix = keys.step_prefix(local.step, local.generation)
        there = [info.key async for info in store.list(prefix)]
        records = [key for key in there if layout.is_node_record(key.removeprefix(prefix))]
        if len(records) < local.record.nodes:
            return None
        encoded = [(await store.get(key))[0] for key in records]
    record = CommitRecord.merge(encoded)
    await create_once(store, keys.commit_record(record.step, record.generation), record.encode())
    return record


async def create_once(store: ObjectStore, key: str, data: bytes) -> None:
    """Create an object that nobody may change. Finding it there, byte for byte, is success.

    Raises:
        OwnershipError: something else has this key.
    """
    try:
        await store.put(key, data, if_absent=True)
    except PreconditionFailed:
        there, _ = await store.get(key)
        if there != data:
            raise OwnershipError(
                "another process committed something else under this key",
                doing="committing",
                subject=f"{store.uri}/{key}",
                hint="two trainers write to one run: stop one, or give it another --run-name",
            ) from None
