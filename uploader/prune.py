"""Carry out retention in the store: the record first, then the objects. And sweep what nothing names.

The order makes a crash harmless. A step marked ``deleting`` is not begun to be read; without its commit
record it does not exist; its entry is dropped only when no object is left, so a restart finds the rest.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from uploader import layout, manifest, pins
from uploader.errors import ObjectMissing
from uploader.generation import Claim
from uploader.journal import Journal
from uploader.layout import RunKeys
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.retention import Committed, Retention, steps_to_keep, why_kept
from uploader.store.base import ObjectStore
from uploader.unfinished import abort_debris, store_now_s
from uploader.watch import LocalStep

STALE_PROBE_S = 3600.0
"""No probe of a store takes so long: what one left behind is debris."""


class Ages:
    """When things came into the store, and the present, by its clock; asked only where an age decides."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._stored_at: dict[str, datetime] = {}
        self._long_ago: set[int] = set()
        self.now = datetime.min.replace(tzinfo=UTC)

    async def look(self, index: Manifest, policy: Retention, keep_superseded_s: float, now: datetime) -> None:
        """Ask for what decides now. A commit record never changes, so each is asked for once.

        Args:
            keep_superseded_s: how long what was superseded stays.
            now: serves where no age decides.
        """
        self.now, self._long_ago = now, set()
        generations = {one.superseded_by for one in index.superseded.values() if one.superseded_by}
        if not generations and policy.keep_for_s is None:
            return
        self.now = await self._modified_at(layout.MANIFEST_KEY, now)
        for generation in generations:
            began = await self._modified_at(layout.generation_key(generation), self.now)
            if (self.now - began).total_seconds() >= keep_superseded_s:
                self._long_ago.add(generation)
        if policy.keep_for_s is not None:
            await self._look_at_records(index, policy)

    async def _look_at_records(self, index: Manifest, policy: Retention) -> None:
        sure = steps_to_keep(index.committed(), policy.model_copy(update={"keep_for_s": None}), now=self.now)
        for entry in index.live.values():
            if entry.step not in sure and entry.name not in self._stored_at:
                self._stored_at[entry.name] = await self._modified_at(entry.record, entry.created_at)
        self._stored_at = {name: self._stored_at[name] for name in self._stored_at.keys() & index.names()}

    async def _modified_at(self, key: str, otherwise: datetime) -> datetime:
        """When an object was stored, where it is there and the store tells."""
        try:
            modified_at_s = (await self._store.head(key)).modified_at
        except ObjectMissing:
            return otherwise
        return otherwise if modified_at_s is None else datetime.fromtimestamp(modified_at_s, UTC)

    def committed(self, index: Manifest) -> list[Committed]:
        """The live steps as retention looks at them, each as old as it is in the store."""
        stored_at = [self._stored_at.get(entry.name, entry.created_at) for entry in index.live.values()]
        return [replace(one, created_at=at) for one, at in zip(index.committed(), stored_at, strict=True)]

    def is_long_ago(self, entry: Entry) -> bool:
        """Whether a superseded step has stayed for as long as it was to."""
        return entry.superseded_by in self._long_ago


def why_stays(index: Manifest, policy: Retention, ages: Ages) -> Mapping[str, tuple[str, ...]]:
    """The steps of the store (``step_N@gG``) that stay, each with the rules that keep it. Pure."""
    kept = why_kept(ages.committed(index), policy, now=ages.now)
    reasons = {one.name: kept[one.step] for one in index.live.values() if one.step in kept}
    for one in index.superseded.values():
        if one.pinned or not ages.is_long_ago(one):
            reasons[one.name] = ("pinned",) if one.pinned else ("superseded lately",)
    return reasons


def superfluous(index: Manifest, policy: Retention, ages: Ages) -> list[str]:
    """The entries (``step_N@gG``) that retention lets go. Pure."""
    stays = why_stays(index, policy, ages)
    listed = [*index.live.values(), *index.superseded.values()]
    return [one.name for one in listed if one.name not in stays]


async def mark(
    store: ObjectStore,
    file: ManifestFile,
    names: Iterable[str],
    claim: Claim,
    grace_s: float,
    now: datetime,
) -> Manifest:
    """Mark steps ``deleting``, but those that are pinned by now; with a grace, note when they were.

    A pin is made visible before it claims to hold: it is in the listing, or in the manifest that is swapped,
    or whoever makes it finds the step marked. What died between its object and the manifest is finished.

    Args:
        now: serves where the store does not tell the time.

    Raises:
        OwnershipError: a newer generation owns the run; nothing was marked.
    """
    chosen = set(names)
    pinned = chosen & await pins.names(store) if chosen else set()
    index = await file.update(lambda one: manifest.deleting(pins.all_marked(one, pinned), chosen, claim))
    if grace_s and any(entry.deleting_since is None for entry in index.deleting.values()):
        written_s = (await store.head(layout.MANIFEST_KEY)).modified_at
        since = datetime.fromtimestamp(written_s, UTC) if written_s is not None else now
        index = await file.update(lambda one: manifest.noted(one, since, claim))
    return index


async def due_in_s(store: ObjectStore, index: Manifest, grace_s: float, now: datetime) -> dict[str, float]:
    """For each step that is marked, after how many seconds by the store's clock its objects may go.

    Args:
        now: serves where the store does not tell the time.
    """
    if not grace_s or not index.deleting:
        return dict.fromkeys(index.deleting, 0.0)
    now_s = await store_now_s(store)
    present = now if now_s is None else datetime.fromtimestamp(now_s, UTC)
    return {
        name: max(0.0, grace_s - (present - (entry.deleting_since or present)).total_seconds())
        for name, entry in index.deleting.items()
    }


async def remove_objects(store: ObjectStore, keys: RunKeys, entry: Entry, *, purge: bool = False) -> None:
    """Delete a step's commit record, then all else below its prefix.

    Args:
        purge: of a bucket that keeps versions, delete these too.

    Raises:
        StoreError: the store refused; without its record the step does not exist any more, else it is whole.
    """
    prefix = keys.step_prefix(entry.step, entry.generation)
    await store.delete([entry.record])
    if purge:
        await store.purge(entry.record)
    await store.delete([info.key async for info in store.list(prefix)])
    if purge:
        await store.purge(prefix)
    async for upload in store.list_uploads(prefix):
        await store.abort_upload(upload.key, upload.upload_id)


async def sweep(
    store: ObjectStore,
    index: Manifest,
    claim: Claim,
    pending: Iterable[LocalStep],
    journal: Journal,
    stale_upload_s: float,
) -> int:
    """Delete what nothing names: files and unfinished uploads of steps that never will be committed.

    Those are steps of former generations, and steps older than the oldest live one, that are neither in the
    manifest nor waiting on this disk. What leads to now and is newer than ``latest`` stays: a start elsewhere
    may be going on from it (``manifest.completed``). What a newer generation writes is not looked at. An
    upload that nobody has gone on with for ``stale_upload_s`` goes, too, and so does what a probe left that
    died.

    Returns:
        How many objects and uploads went.
    """
    known = index.names() | {local.name for local in pending}
    oldest = min((entry.step for entry in index.live.values()), default=0)
    latest = -1 if index.latest is None else index.latest

    def is_debris(key: str) -> bool:
        step, generation = layout.parse_step_key(key) or (0, claim.generation + 1)
        if generation > claim.generation or layout.step_at(step, generation) in known:
            return False
        if claim.is_live(step, generation):
            return step < oldest or (step <= latest and generation < claim.generation)
        return True

    debris = [info.key async for info in store.list("step_") if is_debris(info.key)]
    records = [key for key in debris if layout.parse_commit_record_key(key) is not None]
    await store.delete(records)
    await store.delete([key for key in debris if key not in {*records}])
    probes = await _stale_probes(store)
    await store.delete(probes)
    return len(debris) + len(probes) + await abort_debris(store, journal, is_debris, stale_upload_s)


async def _stale_probes(store: ObjectStore) -> list[str]:
    """What probes left that died, and not what one is at work on."""
    left = [info async for info in store.list(layout.PROBE_PREFIX)]
    now_s = await store_now_s(store) if left else None
    return [
        info.key
        for info in left
        if now_s is not None and info.modified_at is not None and now_s - info.modified_at > STALE_PROBE_S
    ]
