"""Carry out retention: in the store the record first, then the objects; on disk by way of the trash.

The order makes a crash harmless. A step marked ``deleting`` is not begun to be read; without its commit
record it does not exist; its entry is dropped only when no object is left, so a restart finds the rest.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime

import anyio
from anyio import to_thread

from uploader import below, files, layout, manifest
from uploader.generation import Claim
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.retention import Retention, steps_to_keep
from uploader.store.base import ObjectStore
from uploader.unfinished import abort_debris
from uploader.watch import LocalStep

Remove = Callable[[Entry], Awaitable[bool]]


def superfluous(
    index: Manifest, policy: Retention, *, now: datetime, long_ago: Collection[int] = ()
) -> list[str]:
    """The entries (``step_N@gG``) that retention lets go.

    Args:
        long_ago: the generations that began so long ago that what they superseded may go.
    """
    keep = steps_to_keep(index.committed(), policy, now=now)
    live = [entry.name for entry in index.live.values() if entry.step not in keep]
    return live + [entry.name for entry in index.superseded.values() if entry.superseded_by in long_ago]


async def store_times(
    store: ObjectStore, index: Manifest, policy: Retention, keep_superseded_s: float, now: datetime
) -> tuple[datetime, set[int]]:
    """The present, and the generations that began more than ``keep_superseded_s`` ago, by the store's clock.

    The store is asked only where age matters: something is superseded, or is kept for its age. ``now``
    serves elsewhere.
    """
    generations = {one.superseded_by for one in index.superseded.values() if one.superseded_by}
    if not generations and policy.keep_for_s is None:
        return now, set()
    present_s = (await store.head(layout.MANIFEST_KEY)).modified_at or now.timestamp()
    long_ago = set()
    for generation in generations:
        began_s = (await store.head(layout.generation_key(generation))).modified_at or present_s
        if present_s - began_s >= keep_superseded_s:
            long_ago.add(generation)
    return datetime.fromtimestamp(present_s, UTC), long_ago


async def prune_store(
    file: ManifestFile, names: Iterable[str], claim: Claim, remove: Remove, grace_s: float
) -> list[Entry]:
    """Delete steps from the store, and finish what an earlier prune left.

    Returns:
        The entries that are gone.

    Raises:
        OwnershipError: a newer generation owns the run; nothing was deleted.
    """
    chosen = list(names)
    index = await file.update(lambda one: manifest.deleting(one, chosen, claim))
    if not index.deleting:
        return []
    await anyio.sleep(grace_s)
    gone = [entry for entry in index.deleting.values() if await remove(entry)]
    await file.update(lambda one: manifest.dropped(one, [entry.name for entry in gone], claim))
    return gone


async def remove_objects(store: ObjectStore, keys: RunKeys, entry: Entry) -> bool:
    """Delete a step's commit record, then all else below its prefix."""
    await store.delete([entry.record])
    prefix = keys.step_prefix(entry.step, entry.generation)
    await store.delete([info.key async for info in store.list(prefix)])
    async for upload in store.list_uploads(prefix):
        await store.abort_upload(upload.key, upload.upload_id)
    return True


async def remove_directory(directory: RunDirectory, local: Iterable[LocalStep], entry: Entry) -> bool:
    """Delete a step in place; False while a loader holds it. Another generation's step is not touched."""
    mine = [one for one in local if (one.step, one.generation) == (entry.step, entry.generation)]
    return len(await discard_local(directory, mine)) == len(mine)


async def discard_local(directory: RunDirectory, steps: Iterable[LocalStep]) -> list[int]:
    """Move local steps to the trash, empty it, and return which went.

    A step that a loader holds (a shared lock on its directory) is left for the next time.
    """
    gone = [local.step for local in steps if await to_thread.run_sync(_discard, directory, local)]
    with files.disk_errors("emptying", directory.trash):
        await to_thread.run_sync(files.empty_trash, directory.trash)
    return gone


def _discard(directory: RunDirectory, local: LocalStep) -> bool:
    """Only the step that is meant goes: a rewind may have put another one in its place."""

    def meant() -> bool:
        return below.read_small(local.path / layout.node_record(local.record.node)) == local.encoded

    with files.disk_errors("pruning", local.path):
        return files.discard_unless_read(local.path, directory.trash, meant=meant)


async def sweep(
    store: ObjectStore,
    index: Manifest,
    claim: Claim,
    pending: Iterable[LocalStep],
    journal: Journal,
    stale_upload_s: float,
) -> int:
    """Delete what nothing names: files and unfinished uploads of steps that never will be committed.

    Those are steps of superseded branches, and steps older than the oldest live one, that are neither in
    the manifest nor waiting on this disk. What a newer generation writes is not looked at. An upload that
    nobody has gone on with for ``stale_upload_s`` goes, too.

    Returns:
        How many objects and uploads went.
    """
    known = index.names() | {local.name for local in pending}
    oldest = min((entry.step for entry in index.live.values()), default=0)

    def is_debris(key: str) -> bool:
        step, generation = layout.parse_step_key(key) or (0, claim.generation + 1)
        if generation > claim.generation or layout.step_at(step, generation) in known:
            return False
        return step < oldest or not claim.is_live(step, generation)

    debris = [info.key async for info in store.list("step_") if is_debris(info.key)]
    records = [key for key in debris if layout.parse_commit_record_key(key) is not None]
    await store.delete(records)
    await store.delete([key for key in debris if key not in {*records}])
    return len(debris) + await abort_debris(store, journal, is_debris, stale_upload_s)
