"""``manifest.json`` in its store: read, changed by compare-and-swap, rebuilt.

A decision is applied to what was just read and written only if that is still there. A lost answer and a lost
race are both met by reading again and deciding again.
"""

import logging
from collections.abc import Callable, Mapping

from uploader import generation, layout
from uploader.errors import CorruptError, ObjectMissing, PreconditionFailed, TooLarge
from uploader.generation import Claim
from uploader.layout import MANIFEST_KEY, RunKeys
from uploader.manifest import Entry, Manifest, rebuild
from uploader.record import CommitRecord, decode
from uploader.store.base import ObjectStore

log = logging.getLogger("uploader")

MAX_GROWN_BYTES = 96 * 1024**2
"""What is larger takes no further step. The rest, up to what is read, is room for what an entry may become
(superseded, deleting since), so it can always be pruned."""
_REBUILD = "rebuild it from the commit records with `wmtp checkpoints rebuild {uri}`"


def _log(error: CorruptError) -> None:
    log.warning("%s", error)


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
            TooLarge: it has no room for a further step; nothing was written.
        """
        while True:
            manifest, etag = await self._read()
            if manifest is None:
                manifest = await self.from_records()
            changed = decide(manifest)
            if changed == manifest and etag is not None:
                return manifest
            data = changed.encode()
            if len(data) > MAX_GROWN_BYTES and len(changed.names()) > len(manifest.names()):
                raise self._full(len(manifest.names()))
            try:
                await self._store.put(MANIFEST_KEY, data, if_absent=etag is None, if_match=etag)
            except (PreconditionFailed, ObjectMissing):
                continue  # someone else's change, or our own whose answer was lost: look again
            return changed

    def _full(self, count: int) -> TooLarge:
        return TooLarge(
            f"it lists {count} steps, and has no room for another one",
            doing="adding a step to",
            subject=f"{self._store.uri}/{MANIFEST_KEY}",
            hint="keep fewer steps (keep_last, keep_every, keep_for_s), or fewer and shorter metrics in each",
        )

    async def from_records(self, tell: Callable[[CorruptError], None] = _log) -> Manifest:
        """The manifest as the commit records and generation files in the store imply it.

        A record whose files are not all there makes no step: a request that was lost on its way created it
        after the step had been pruned, or somebody deleted a file.

        Args:
            tell: is told of each such record.

        Raises:
            CorruptError: a record or a generation file can't be read; the message names it.
        """
        generations, records, there = [], [], await self._listing()
        for key in there:
            number = layout.parse_generation_key(key)
            if number is not None:
                generations.append(await generation.read(self._store, number, run=self._run))
            elif layout.parse_commit_record_key(key) is not None:
                record = await self._read_record(key)
                if lost := self._lost(record, key, there):
                    tell(lost)
                else:
                    records.append(record)
        pinned = [one for key in there if (one := layout.parse_pin_key(key)) is not None]
        return rebuild(self._run, generations, records, self._keys, [layout.step_at(*one) for one in pinned])

    async def _listing(self, prefix: str = "") -> dict[str, int]:
        """What is in the store: the size of each object, by its key."""
        return {info.key: info.size_bytes async for info in self._store.list(prefix)}

    def _lost(self, record: CommitRecord, key: str, there: Mapping[str, int]) -> CorruptError | None:
        """An error if not all files of a commit record are there."""
        prefix = key.removesuffix(layout.COMMIT_RECORD_NAME)
        lost = [file for file in record.files if there.get(prefix + file.path) != file.size_bytes]
        if not lost:
            return None
        return CorruptError(
            f"{len(lost)} of its files are missing or have another size, {lost[0].path} among them: "
            "its step is left out",
            doing="looking at",
            subject=f"{self._store.uri}/{key}",
        )

    async def unlisted(self, index: Manifest, claim: Claim) -> tuple[list[Entry], list[CorruptError]]:
        """Steps that lead to a claim and were committed after all that the manifest knows.

        Their owner died between record and manifest, and its disk, which would tell, may be lost. A record
        may also be what a late request made of a step that was pruned: it names files that are gone. Reads
        whole listings, and so is for a start on another disk.

        Returns:
            Their entries, and an error for each record that can't be read or whose files are gone.
        """
        entries, errors, known = [], list[CorruptError](), index.names()
        latest = -1 if index.latest is None else index.latest
        there = await self._listing("step_")
        for key in there:
            step = layout.parse_step_key(key) if layout.parse_commit_record_key(key) is not None else None
            if (
                step is None
                or step[0] <= latest
                or not claim.is_live(*step)
                or layout.step_at(*step) in known
            ):
                continue
            try:
                record = await self._read_record(key)
            except CorruptError as error:
                errors.append(error)
                continue
            if lost := self._lost(record, key, there):
                errors.append(lost)
            else:
                entries.append(Entry.of(record, self._keys))
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

    async def rebuild(self, tell: Callable[[CorruptError], None] = _log) -> Manifest:
        """Write the manifest anew from the records, whatever is there now; see ``from_records``."""
        while True:
            try:
                _, info = await self._store.get(MANIFEST_KEY)
                etag: str | None = info.etag
            except ObjectMissing:
                etag = None
            manifest = await self.from_records(tell)
            try:
                await self._store.put(MANIFEST_KEY, manifest.encode(), if_absent=etag is None, if_match=etag)
            except (PreconditionFailed, ObjectMissing):
                continue  # it changed meanwhile, and so may have the records
            return manifest
