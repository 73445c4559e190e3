"""The index of a run: ``manifest.json``, so that ``latest`` and any step are one GET away.

Changes are pure functions from manifest to manifest; ``ManifestFile.update`` carries one out by
compare-and-swap. Every decision is idempotent: applied to a manifest that holds its effect it
changes nothing, so a lost answer and a lost race are both met by reading again and deciding again.
It is only an index: ``rebuild`` makes it again from generation files and commit records.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Self

from pydantic import AwareDatetime, Field

from uploader import generation, layout
from uploader.errors import CorruptError, ObjectMissing, OwnershipError, PreconditionFailed
from uploader.generation import Claim, GenerationFile, Owner
from uploader.layout import MANIFEST_KEY, RunKeys
from uploader.record import CommitRecord, Count, Metrics, decode
from uploader.retention import Committed
from uploader.settings import SCHEMA_VERSION, Strict
from uploader.store.base import ObjectStore

_REBUILD = "rebuild it from the commit records with `wmtp checkpoints rebuild {uri}`"


class Entry(Strict):
    """One committed step; ``record`` is the key of its commit record.

    Attributes:
        superseded_by: the generation that went on from an earlier step; None while the step is live.
    """

    step: Count
    generation: Count
    record: str
    size_bytes: Count
    created_at: AwareDatetime
    metrics: Metrics = {}
    superseded_by: Count | None = None

    @classmethod
    def of(cls, record: CommitRecord, keys: RunKeys) -> Self:
        return cls(
            step=record.step,
            generation=record.generation,
            record=keys.commit_record(record.step, record.generation),
            size_bytes=record.size_bytes,
            created_at=record.created_at,
            metrics=record.metrics,
        )

    @property
    def name(self) -> str:
        return layout.step_at(self.step, self.generation)


class Manifest(Strict):
    """The index. ``latest`` is the highest live step.

    Attributes:
        live: by ``step_N``: the steps that lead to now.
        superseded: by ``step_N@gG``: left behind when a later generation resumed before them.
        deleting: by ``step_N@gG``: being pruned; their objects may be gone already.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    generation: Count = 0
    owner: Owner | None = None
    latest: Count | None = None
    live: dict[str, Entry] = {}
    superseded: dict[str, Entry] = {}
    deleting: dict[str, Entry] = {}

    def encode(self) -> bytes:
        return json.dumps(self.model_dump(mode="json"), indent=1).encode() + b"\n"

    def find(self, name: str) -> Entry | None:
        """The entry a user means by ``latest``, ``step_N`` or ``step_N@gG``."""
        if name == "latest":
            name = "" if self.latest is None else layout.step_name(self.latest)
        return self.live.get(name) or self.superseded.get(name)

    def committed(self) -> list[Committed]:
        """The live steps as retention looks at them."""
        return [Committed(one.step, one.created_at, one.metrics) for one in self.live.values()]

    def _with(self, live: Iterable[Entry], superseded: Iterable[Entry], deleting: Iterable[Entry]) -> Self:
        newest_first = sorted(live, key=lambda entry: -entry.step)
        return self.model_copy(
            update={
                "latest": newest_first[0].step if newest_first else None,
                "live": {layout.step_name(entry.step): entry for entry in newest_first},
                "superseded": {entry.name: entry for entry in superseded},
                "deleting": {entry.name: entry for entry in deleting},
            }
        )


def adopted(manifest: Manifest, claim: Claim) -> Manifest:
    """Make a claim the owner's. Live steps that don't lead to it are superseded, and the other way round.

    Raises:
        OwnershipError: a newer generation owns the run.
    """
    _check_owner(manifest, claim.generation)
    live, superseded = [], []
    for entry in [*manifest.live.values(), *manifest.superseded.values()]:
        if claim.is_live(entry.step, entry.generation):
            live.append(entry.model_copy(update={"superseded_by": None}))
        else:
            by = claim.generation if entry.superseded_by is None else entry.superseded_by
            superseded.append(entry.model_copy(update={"superseded_by": by}))
    changed = manifest._with(live, superseded, manifest.deleting.values())
    return changed.model_copy(update={"generation": claim.generation, "owner": claim.owner})


def committed(manifest: Manifest, entry: Entry, claim: Claim) -> Manifest:
    """Add a step whose commit record exists.

    Raises:
        OwnershipError: a newer generation owns the run.
    """
    if entry.name in manifest.deleting:
        return adopted(manifest, claim)
    entries = {one.name: one for one in [*manifest.live.values(), *manifest.superseded.values()]}
    entries.setdefault(entry.name, entry)
    return adopted(manifest._with([], entries.values(), manifest.deleting.values()), claim)


def deleting(manifest: Manifest, names: Iterable[str], *, owned_by: int) -> Manifest:
    """Move entries (by ``step_N@gG``) to ``deleting``: from then on nobody begins to read them.

    The latest step never goes, whoever asks.
    """
    _check_owner(manifest, owned_by)
    chosen = set(names) - {entry.name for entry in manifest.live.values() if entry.step == manifest.latest}
    listed = [*manifest.live.values(), *manifest.superseded.values()]
    return manifest._with(
        [entry for entry in manifest.live.values() if entry.name not in chosen],
        [entry for entry in manifest.superseded.values() if entry.name not in chosen],
        [*manifest.deleting.values(), *(entry for entry in listed if entry.name in chosen)],
    )


def dropped(manifest: Manifest, names: Iterable[str], *, owned_by: int) -> Manifest:
    """Forget entries of ``deleting`` whose objects are gone."""
    _check_owner(manifest, owned_by)
    chosen = set(names)
    rest = [entry for entry in manifest.deleting.values() if entry.name not in chosen]
    return manifest._with(manifest.live.values(), manifest.superseded.values(), rest)


def _check_owner(manifest: Manifest, generation: int) -> None:
    if manifest.generation > generation:
        raise OwnershipError(
            f"generation {manifest.generation} of {manifest.owner} owns it; this is generation {generation}",
            subject=f"run {manifest.run}",
            hint="stop this process: the run goes on elsewhere",
        )


def rebuild(
    run: str, generations: Sequence[GenerationFile], records: Sequence[CommitRecord], keys: RunKeys
) -> Manifest:
    """The manifest that generation files and commit records imply. Pure.

    A generation that committed nothing may have failed before it superseded anything, so the lineage is
    that of the newest one that did; the next commit applies its own.
    """
    by_number = {file.generation: file for file in generations}
    manifest = Manifest(run=run)
    for record in records:
        entry = Entry.of(record, keys)
        manifest = manifest._with([], [*manifest.superseded.values(), entry], [])
    newest_committed = by_number.get(max((record.generation for record in records), default=0), Claim())
    manifest = adopted(
        manifest, Claim(generation=newest_committed.generation, lineage=newest_committed.lineage)
    )
    owner = by_number.get(max(by_number, default=0), Claim())
    return manifest.model_copy(update={"generation": owner.generation, "owner": owner.owner})


class ManifestFile:
    """``manifest.json`` of one run in its store: read it, change it by compare-and-swap, rebuild it."""

    def __init__(self, store: ObjectStore, run: str, keys: RunKeys) -> None:
        self._store, self._run, self._keys = store, run, keys

    async def read(self) -> Manifest | None:
        """The manifest with one GET; None where there is none.

        Raises:
            CorruptError: it can't be read; the message says how to rebuild it.
        """
        manifest, _ = await self._read()
        return manifest

    async def _read(self) -> tuple[Manifest | None, str | None]:
        try:
            data, info = await self._store.get(MANIFEST_KEY)
        except ObjectMissing:
            return None, None
        uri = self._store.uri
        manifest = decode(Manifest, data, subject=f"{uri}/{MANIFEST_KEY}", hint=_REBUILD.format(uri=uri))
        if manifest.run != self._run:
            raise CorruptError(
                f"it is the index of run {manifest.run!r}, not {self._run!r}", subject=f"{uri}/{MANIFEST_KEY}"
            )
        return manifest, info.etag

    async def update(self, decide: Callable[[Manifest], Manifest]) -> Manifest:
        """Apply a decision and return the manifest that holds its effect.

        Raises:
            OwnershipError: ``decide`` says that another generation owns the run.
            CorruptError: the manifest can't be read.
        """
        while True:
            manifest, etag = await self._read()
            if manifest is None:
                manifest = await self.from_records()
            changed = decide(manifest)
            if changed == manifest and etag is not None:
                return manifest
            try:
                await self._store.put(MANIFEST_KEY, changed.encode(), if_absent=etag is None, if_match=etag)
            except PreconditionFailed:
                continue  # someone else's change, or our own whose answer was lost: look again
            return changed

    async def from_records(self) -> Manifest:
        """The manifest as the commit records and generation files in the store imply it."""
        generations, records = [], []
        async for info in self._store.list():
            number = layout.parse_generation_key(info.key)
            if number is not None:
                generations.append(await generation.read(self._store, number))
            elif layout.parse_commit_record_key(info.key) is not None:
                data, _ = await self._store.get(info.key)
                records.append(decode(CommitRecord, data, subject=f"{self._store.uri}/{info.key}"))
        return rebuild(self._run, generations, records, self._keys)

    async def rebuild(self) -> Manifest:
        """Write the manifest anew from the records, whatever is there now."""
        try:
            _, info = await self._store.get(MANIFEST_KEY)
            etag: str | None = info.etag
        except ObjectMissing:
            etag = None
        manifest = await self.from_records()
        await self._store.put(MANIFEST_KEY, manifest.encode(), if_absent=etag is None, if_match=etag)
        return manifest
