"""``manifest.json`` in its store: read, changed by compare-and-swap, rebuilt.

A decision is applied to what was just read and written only if that is still there. A lost answer and a lost
race are both met by reading again and deciding again.
"""

from collections.abc import Callable

from uploader import generation, layout
from uploader.errors import CorruptError, ObjectMissing, PreconditionFailed
from uploader.generation import Claim
from uploader.layout import MANIFEST_KEY, RunKeys
from uploader.manifest import Entry, Manifest, rebuild
from uploader.record import CommitRecord, decode
from uploader.store.base import ObjectStore

_REBUILD = "rebuild it from the commit records with `wmtp checkpoints rebuild {uri}`"


class ManifestFile:
    """The manifest of one run."""

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
            except (PreconditionFailed, ObjectMissing):
                continue  # someone else's change, or our own whose answer was lost: look again
            return changed

    async def from_records(self) -> Manifest:
        """The manifest as the commit records and generation files in the store imply it.

        Raises:
            CorruptError: one of them can't be read; the message names it.
        """
        generations, records, pins = [], [], set()
        async for info in self._store.list():
            number = layout.parse_generation_key(info.key)
            pinned = layout.parse_pin_key(info.key)
            if pinned is not None:
                pins.add(layout.step_at(*pinned))
            if number is not None:
                generations.append(await generation.read(self._store, number, run=self._run))
            elif layout.parse_commit_record_key(info.key) is not None:
                records.append(await self._read_record(info.key))
        return rebuild(self._run, generations, records, self._keys, pins)

    async def unlisted(self, index: Manifest, claim: Claim) -> tuple[list[Entry], list[CorruptError]]:
        """Steps that lead to a claim and were committed after all that the manifest knows.

        Their owner died between record and manifest, and its disk, which would tell, may be lost. An older
        record may be what a late request made of a step that was pruned: it names files that are gone. Reads
        whole listings, and so is for a start on another disk.

        Returns:
            Their entries, and an error for each record that can't be read.
        """
        entries, errors, known = [], [], index.names()
        latest = -1 if index.latest is None else index.latest
        async for info in self._store.list("step_"):
            key = layout.parse_step_key(info.key)
            if key is None or key[0] <= latest or not claim.is_live(*key) or layout.step_at(*key) in known:
                continue
            if layout.parse_commit_record_key(info.key) is not None:
                try:
                    entries.append(Entry.of(await self._read_record(info.key), self._keys))
                except CorruptError as error:
                    errors.append(error)
        return entries, errors

    async def _read_record(self, key: str) -> CommitRecord:
        subject = f"{self._store.uri}/{key}"
        data, _ = await self._store.get(key)
        hint = "if there is no copy of it, delete it: its step is given up then"
        record = decode(CommitRecord, data, subject=subject, hint=hint)
        if record.run != self._run or self._keys.commit_record(record.step, record.generation) != key:
            name = layout.step_at(record.step, record.generation)
            problem = f"it is the record of {name} of run {record.run!r}"
            raise CorruptError(problem, doing="reading", subject=subject, hint=hint)
        return record

    async def rebuild(self) -> Manifest:
        """Write the manifest anew from the records, whatever is there now."""
        while True:
            try:
                _, info = await self._store.get(MANIFEST_KEY)
                etag: str | None = info.etag
            except ObjectMissing:
                etag = None
            manifest = await self.from_records()
            try:
                await self._store.put(MANIFEST_KEY, manifest.encode(), if_absent=etag is None, if_match=etag)
            except (PreconditionFailed, ObjectMissing):
                continue  # it changed meanwhile, and so may have the records
            return manifest
