"""The index of a run: ``manifest.json``, so that ``latest`` and any step are one GET away.

Changes are pure functions from manifest to manifest, each idempotent: applied to a manifest that holds its
effect it changes nothing. It is only an index: ``rebuild`` makes it again from generation files and commit
records.
"""

from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, Field, model_validator

from uploader import layout
from uploader.bounds import Count, Generation
from uploader.errors import CorruptError, OwnershipError
from uploader.generation import Claim, GenerationFile, Owner
from uploader.layout import RunKeys
from uploader.record import CommitRecord, Metrics
from uploader.retention import Committed
from uploader.seal import Sealed, sealed
from uploader.settings import SCHEMA_VERSION, Strict

_LAYOUTS = RunKeys(), RunKeys(in_place=True)


class Entry(Strict):
    """One committed step; ``record`` is the key of its commit record.

    Attributes:
        superseded_by: the generation that went on from an earlier step; None while the step is live.
        pinned: whether a person wants it to stay; the pin itself is an object of its own (``pins``).
        deleting_since: when at the latest it was marked ``deleting``, by the store's clock; None before
            that is known.
    """

    step: Count
    generation: Generation
    record: str
    size_bytes: Count
    created_at: AwareDatetime
    metrics: Metrics = {}
    superseded_by: Generation | None = None
    pinned: bool = False
    deleting_since: AwareDatetime | None = None

    @model_validator(mode="after")
    def _names_its_record(self) -> Self:
        if not any(self.record == one.commit_record(self.step, self.generation) for one in _LAYOUTS):
            raise ValueError(f"{self.record[:100]!r} is no commit record of {self.name}")
        return self

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


class Manifest(Sealed):
    """The index. ``latest`` is the highest live step.

    Attributes:
        live: by ``step_N``: the steps that lead to now.
        superseded: by ``step_N@gG``: left behind when a later generation resumed before them.
        deleting: by ``step_N@gG``: being pruned; their objects may be gone already.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    generation: Generation = 0
    owner: Owner | None = None
    latest: Count | None = None
    live: dict[str, Entry] = {}
    superseded: dict[str, Entry] = {}
    deleting: dict[str, Entry] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = {layout.step_name(entry.step): entry for entry in self.live.values()}
        if named != self.live or any(
            name != entry.name for name, entry in [*self.superseded.items(), *self.deleting.items()]
        ):
            raise ValueError("a step is listed under another name")
        if self.latest != max((entry.step for entry in self.live.values()), default=None):
            raise ValueError("latest is not the highest live step")
        if len(self.names()) != len(self.live) + len(self.superseded) + len(self.deleting):
            raise ValueError("a step is listed twice")
        return self

    def names(self) -> set[str]:
        """Every step it lists, as ``step_N@gG``."""
        return {*self.superseded, *self.deleting, *(entry.name for entry in self.live.values())}

    @property
    def newest(self) -> Entry | None:
        """The entry of ``latest``."""
        return None if self.latest is None else self.live[layout.step_name(self.latest)]

    def encode(self) -> bytes:
        return sealed(self.model_dump_json(indent=1).encode(), layout.MANIFEST_KEY)

    def find(self, name: str) -> Entry | None:
        """The entry a user means by ``latest``, ``step_N`` or ``step_N@gG``."""
        if name == "latest":
            name = "" if self.latest is None else layout.step_name(self.latest)
        live = {entry.name: entry for entry in self.live.values()}
        return self.live.get(name) or self.superseded.get(name) or live.get(name)

    def committed(self) -> list[Committed]:
        """The live steps as retention looks at them."""
        return [Committed(one.step, one.created_at, one.metrics, one.pinned) for one in self.live.values()]

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

    Of one step that two generations of the lineage wrote, the later one's is live.

    Raises:
        OwnershipError: a newer generation owns the run.
    """
    check_owner(manifest, claim)
    entries = [*manifest.live.values(), *manifest.superseded.values()]
    leading = [entry for entry in entries if claim.is_live(entry.step, entry.generation)]
    live = {entry.step: entry for entry in sorted(leading, key=lambda entry: entry.generation)}
    superseded = [entry for entry in entries if entry is not live.get(entry.step)]
    changed = manifest._with(
        (entry.model_copy(update={"superseded_by": None}) for entry in live.values()),
        (_superseded(entry, claim.generation) for entry in superseded),
        manifest.deleting.values(),
    )
    return changed.model_copy(update={"generation": claim.generation, "owner": claim.owner})


def _superseded(entry: Entry, by: int) -> Entry:
    return entry if entry.superseded_by is not None else entry.model_copy(update={"superseded_by": by})


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


def completed(manifest: Manifest, entries: Iterable[Entry], claim: Claim) -> Manifest:
    """Add what a claim's owner committed and did not live to list: steps that were found a while ago.

    Only those that are newer than ``latest`` now: neither retention nor a sweep takes such a step, so it is
    still there. An older one may have been listed, and pruned, since it was found. Where another owner has
    the run, that one has looked for itself.
    """
    latest = -1 if manifest.latest is None else manifest.latest
    if manifest.generation == claim.generation:
        for entry in entries:
            if entry.step > latest:
                manifest = committed(manifest, entry, claim)
    return manifest


def deleting(manifest: Manifest, names: Iterable[str], claim: Claim) -> Manifest:
    """Move entries (by ``step_N@gG``) to ``deleting``: from then on nobody begins to read them.

    Neither the latest step nor a pinned one ever goes, whoever asks.

    Raises:
        OwnershipError: a newer generation owns the run.
    """
    manifest = adopted(manifest, claim)
    listed = [*manifest.live.values(), *manifest.superseded.values()]
    stays = {entry.name for entry in listed if entry.pinned or entry is manifest.newest}
    chosen = set(names) - stays
    return manifest._with(
        [entry for entry in manifest.live.values() if entry.name not in chosen],
        [entry for entry in manifest.superseded.values() if entry.name not in chosen],
        [*manifest.deleting.values(), *(entry for entry in listed if entry.name in chosen)],
    )


def noted(manifest: Manifest, since: datetime, claim: Claim) -> Manifest:
    """Note a time, by the store's clock, at which entries were ``deleting`` already, where none is known.

    Raises:
        OwnershipError: a newer generation owns the run.
    """
    check_owner(manifest, claim)
    timed = [
        entry if entry.deleting_since else entry.model_copy(update={"deleting_since": since})
        for entry in manifest.deleting.values()
    ]
    return manifest._with(manifest.live.values(), manifest.superseded.values(), timed)


def dropped(manifest: Manifest, names: Iterable[str], claim: Claim) -> Manifest:
    """Forget entries of ``deleting`` whose objects are gone.

    Raises:
        OwnershipError: a newer generation owns the run.
    """
    check_owner(manifest, claim)
    chosen = set(names)
    rest = [entry for entry in manifest.deleting.values() if entry.name not in chosen]
    return manifest._with(manifest.live.values(), manifest.superseded.values(), rest)


def check_owner(manifest: Manifest, claim: Claim) -> None:
    """Raise ``OwnershipError`` if a newer generation owns the run; the message says whose and since when."""
    if manifest.generation > claim.generation:
        since = manifest.owner.told_since if manifest.owner is not None else ""
        raise OwnershipError(
            f"generation {manifest.generation} of {manifest.owner} owns it{since}; "
            f"this is generation {claim.generation}",
            subject=f"run {manifest.run}",
            hint="stop this process: the run goes on elsewhere",
        )


def rebuild(
    run: str,
    generations: Sequence[GenerationFile],
    records: Sequence[CommitRecord],
    keys: RunKeys,
    pins: Collection[str] = (),
) -> Manifest:
    """The manifest that generation files, commit records and pins (``step_N@gG``) imply. Pure.

    A generation that committed nothing may have failed before it superseded anything, so it supersedes
    nothing here; its next commit does.

    Raises:
        CorruptError: a generation that committed has no file, so nobody knows which steps lead to it.
    """
    claims: dict[int, Claim] = {0: Claim(), **{file.generation: file for file in generations}}
    manifest = Manifest(run=run)
    for number in sorted({record.generation for record in records}):
        if number not in claims:
            problem = f"{layout.generation_key(number)} is missing, but that generation committed steps"
            hint = "restore that file from a copy, or go on under another --run-name"
            raise CorruptError(problem, doing="rebuilding the index of", subject=f"run {run}", hint=hint)
        made = [Entry.of(record, keys) for record in records if record.generation == number]
        entries = [one.model_copy(update={"pinned": one.name in pins}) for one in made]
        known = [*manifest.live.values(), *manifest.superseded.values(), *entries]
        manifest = adopted(manifest._with([], known, []), claims[number])
    owner = claims[max(claims)]
    return manifest.model_copy(update={"generation": owner.generation, "owner": owner.owner})
