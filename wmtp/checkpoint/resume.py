"""Decide where a run goes on, take it over, and load: everything between ``--resume`` and the first step.

Order: look, decide, take a generation, fetch and verify, load, and only then write ``run.json`` and
supersede. A crash before that leaves a generation nobody used and nothing else changed.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from anyio import to_thread

from uploader import files, generation, layout, manifest
from uploader.buffers import PartBuffers
from uploader.errors import CorruptError, NothingToResume, StartRefused
from uploader.generation import Claim, GenerationFile, Lineage, Owner
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.restore import check, read_commit_record, restore
from uploader.run import RunFile
from uploader.store.base import ObjectStore
from uploader.watch import LocalStep, LocalSteps, read_step
from wmtp.checkpoint.fork import Load, Say, load_fork
from wmtp.settings.resume import Resume

log = logging.getLogger("wmtp.checkpoint")


@dataclass(frozen=True)
class Candidate:
    """A step that may be resumed from: on this disk, in the store, or both."""

    step: int
    generation: int
    local: LocalStep | None = None
    entry: Entry | None = None

    @property
    def name(self) -> str:
        return layout.step_name(self.step)


@dataclass(frozen=True)
class Found:
    """What there is of a run: the manifest's steps, and those on this disk.

    Attributes:
        claim: whose lineage decides which of the local steps are live.
        unreadable: an error for each local step whose record can't be read: nobody knows what it is.
    """

    uri: str
    manifest: Manifest
    local: list[LocalStep]
    claim: Claim
    unreadable: Sequence[CorruptError] = ()

    def live(self) -> list[Candidate]:
        """The steps that lead to now, newest first. The disk may know steps the manifest does not."""
        there = {(entry.step, entry.generation): entry for entry in self.manifest.live.values()}
        here = {
            (one.step, one.generation): one
            for one in self.local
            if (one.step, one.generation) in there or self.claim.is_live(one.step, one.generation)
        }
        keys = sorted({*there, *here}, reverse=True)
        return [Candidate(*key, here.get(key), there.get(key)) for key in keys]

    def superseded(self) -> list[Candidate]:
        """The steps that were left behind, newest first."""
        live = {(one.step, one.generation) for one in self.live()}
        there = {(entry.step, entry.generation): entry for entry in self.manifest.superseded.values()}
        here = {(one.step, one.generation): one for one in self.local}
        keys = sorted({*there, *here} - live, reverse=True)
        return [Candidate(*key, here.get(key), there.get(key)) for key in keys]


def decide(found: Found, resume: Resume | None, *, fresh: bool) -> list[Candidate]:
    """The steps to try, best first; none means to start from scratch. Pure.

    Raises:
        StartRefused: starting from scratch would leave checkpoints behind that nobody asked to leave.
        NothingToResume: there is no such step; the message lists those there are.
        CorruptError: nothing is live, but a step on this disk can't be read: that proves no absence.
    """
    live = found.live()
    if resume is not None and resume.kind == "step":
        return [_find(found, live, resume)]
    if found.unreadable and not live and not fresh:
        error, hint = found.unreadable[0], "bring that file back, or start over with --fresh"
        raise CorruptError(error.problem, doing=error.doing, subject=error.subject, hint=hint)
    if resume is None or resume.kind == "location":
        if (live or found.superseded()) and not fresh:
            there = layout.suggest_steps(one.step for one in live) if live else _superseded_only(found)
            raise StartRefused(
                f"the run has checkpoints already ({there})",
                doing="starting",
                subject=found.uri,
                hint="continue with --resume latest, choose another --run-name, or start over with --fresh",
            )
        return []
    if resume.kind == "latest" and not live:
        raise NothingToResume(
            "there is no checkpoint",
            doing="resuming",
            subject=found.uri,
            hint="start without --resume, or with --resume auto to start fresh where there is none",
        )
    return live


def _superseded_only(found: Found) -> str:
    return ", ".join(f"{layout.step_at(one.step, one.generation)}, superseded" for one in found.superseded())


def _find(found: Found, live: list[Candidate], resume: Resume) -> Candidate:
    steps = live if resume.generation is None else live + found.superseded()
    for one in steps:
        if one.step == resume.step and resume.generation in (None, one.generation):
            return one
    raise NothingToResume(
        f"there is no {resume.text}",
        doing="resuming",
        subject=found.uri,
        hint=f"there are: {layout.suggest_steps(one.step for one in live)}",
    )


@dataclass(frozen=True)
class Started:
    """How a run began.

    Attributes:
        step: the step it goes on after; 0 for a start from scratch.
        source: where the checkpoint came from, for people; empty for a start from scratch.
        skipped: newer steps that were passed over because they are corrupt, with the reason.
    """

    run: RunFile
    step: int
    source: str
    skipped: list[str]


def own_step(location: Location, run: Location, directory: Path) -> Resume | None:
    """A path or URI inside this very run as the step it names; None for any other place."""
    for root in (run, Location("", str(directory))):
        if location == root:
            return Resume("latest", "latest")
        step = layout.parse_step(location.name)
        if location.parent == root and step is not None:
            return Resume(layout.step_name(step), "step", step)
    return None


class Takeover:
    """Takes a run over for this process.

    Args:
        run: what ``run.json`` will say, but for generation, lineage and owner.
        store: the run's location; requests are repeated there.
        load: puts a verified checkpoint into the training state.
        say: tells a person what is happening.
    """

    def __init__(
        self,
        directory: RunDirectory,
        run: RunFile,
        store: ObjectStore,
        load: Load,
        say: Say,
    ) -> None:
        self._directory, self._run, self._store, self._load, self._say = directory, run, store, load, say
        self._keys = run.keys(directory.path)
        self._manifest = ManifestFile(store, run.run, self._keys)
        self._buffers = PartBuffers(run.upload.part_size_bytes, run.upload.parts_in_flight)

    async def start(self, resume: Resume | None, *, fresh: bool = False) -> Started:
        """Resume or start from scratch, and own the run from then on.

        Raises:
            StartRefused, NothingToResume: see ``decide``; or the checkpoint does not fit.
            CorruptError: no candidate is intact; or see ``decide``.
            OwnershipError: another start took the run at the same moment.
        """
        found = await self.look()
        if resume is not None and resume.location is not None:
            resume = own_step(resume.location, self._run.location, self._directory.path) or resume
        candidates = decide(found, resume, fresh=fresh)
        if resume is not None and resume.location is not None:
            claim = await self._take(found, None, forked_from=resume.text)
            step, source = await load_fork(resume.location, self._run, self._directory, self._load, self._say)
            return await self._adopt(claim, step, source, [])
        if not candidates:
            return await self._adopt(await self._take(found, None), 0, "", [])
        skipped: list[str] = []
        for candidate in candidates:
            claim = await self._take(found, candidate)
            try:
                source = await self._fetch_and_load(candidate, claim)
            except CorruptError as error:
                log.error("%s is passed over: %s", candidate.name, error)
                skipped.append(str(error))
                continue
            return await self._adopt(claim, candidate.step, source, skipped)
        raise CorruptError(
            f"no checkpoint is intact: {skipped[0]}",
            doing="resuming",
            subject=found.uri,
            hint="restore an older copy of the bucket, or start over with --fresh",
        )

    async def look(self) -> Found:
        """What there is, with one GET where there is a manifest. Absence is proven by an empty listing."""
        index = await self._manifest.read() or await self._manifest.from_records()
        local, errors = LocalSteps(self._directory, node=self._run.node).scan()
        for error in errors:
            self._say(f"passed over: {error}")
        here = RunFile.read(self._directory)
        claim: Claim = here or Claim()
        if index.generation > claim.generation:
            claim = await generation.read(self._store, index.generation)
        elif claim.generation:
            index = manifest.adopted(index, claim)  # a start that died just before it wrote this itself
        # Before the first trainer of ours there was no lineage: every step is live.
        return Found(self._store.uri, index, local, claim, errors)

    async def _take(
        self, found: Found, candidate: Candidate | None, forked_from: str | None = None
    ) -> GenerationFile:
        """Take the next generation, before anything is loaded: from now on the former owner is fenced off."""
        number = (
            max(await generation.newest(self._store), found.manifest.generation, found.claim.generation) + 1
        )
        lineage = Lineage.fresh(number)
        if candidate is not None:
            lineage = (await self._lineage_of(candidate, found)).child(number, after_step=candidate.step)
        file = GenerationFile(
            run=self._run.run,
            generation=number,
            lineage=lineage,
            owner=Owner.this_process(),
            created_at=datetime.now(UTC),
            forked_from=forked_from,
        )
        await generation.take(self._store, file)
        return file

    async def _lineage_of(self, candidate: Candidate, found: Found) -> Lineage:
        if candidate.generation == 0:
            return Lineage.fresh(0)
        if candidate.generation == found.claim.generation:
            return found.claim.lineage
        return (await generation.read(self._store, candidate.generation)).lineage

    async def _fetch_and_load(self, candidate: Candidate, claim: Claim) -> str:
        """Load the local copy if it is intact, else the one in the store; where it came from."""
        if candidate.local is not None:
            try:
                return await self._load_local(candidate.local)
            except CorruptError as error:
                if candidate.entry is None or self._keys.in_place:
                    raise
                self._say(f"{error}; using the copy in the store")
        assert candidate.entry is not None  # noqa: S101
        local = read_step(await self._download(candidate.entry, claim), node=self._run.node)
        self._load(local.path, local.record)
        return f"{self._store.uri}/{candidate.entry.record.rpartition('/')[0]}"

    async def _load_local(self, local: LocalStep) -> str:
        try:
            with files.held_for_reading(local.path):
                await to_thread.run_sync(check, local.path, local.record.files)
                self._load(local.path, local.record)
        except FileNotFoundError as error:
            problem = "it was pruned at this moment"
            raise CorruptError(problem, doing="resuming from", subject=str(local.path)) from error
        return str(local.path)

    async def _download(self, entry: Entry, claim: Claim) -> Path:
        """A verified copy of a stored step in the run directory, in place of whatever has its name."""
        record = await read_commit_record(self._store, entry)
        self._say(f"downloading {layout.step_name(entry.step)}, {record.size_bytes / 1e6:.1f} MB")
        target = self._directory.step(entry.step)
        await restore(
            self._store,
            self._keys.step_prefix(entry.step, entry.generation),
            record,
            self._directory.temporary(entry.step, claim.generation),
            target,
            self._directory.trash,
            self._buffers,
            lambda _: None,
        )
        return target

    async def _adopt(self, claim: GenerationFile, step: int, source: str, skipped: list[str]) -> Started:
        """Tell the uploader, then supersede what this start leaves behind.

        In this order the former start's uploader finds a successor to serve, not a stranger that owns its
        run. A crash in between leaves the superseding to the uploader's next round.
        """
        run = self._run.model_copy(
            update={"generation": claim.generation, "lineage": claim.lineage, "owner": claim.owner}
        )
        run.write(self._directory)
        await self._manifest.update(lambda index: manifest.adopted(index, claim))
        return Started(run, step, source, skipped)
