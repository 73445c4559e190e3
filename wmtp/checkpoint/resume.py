"""Take a run over and load: everything between ``--resume`` and the first step.

Order: look, decide, wait until owners elsewhere are gone, take a generation, fetch and verify, load, and only
then write ``run.json`` and supersede. A crash before that leaves a generation nobody used and nothing else
changed.
"""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio

from uploader import generation, manifest
from uploader.errors import CorruptError, OwnershipError
from uploader.generation import Claim, GenerationFile, Lineage, Owner
from uploader.heartbeat import Heart, beating
from uploader.identity import identity
from uploader.layout import RunDirectory
from uploader.lease import Lease
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.run import RunFile
from uploader.store.base import ObjectStore
from wmtp.checkpoint.candidates import Candidate, Found, decide, own_step
from wmtp.checkpoint.fetch import Fetch, Load, Say
from wmtp.checkpoint.fork import load_fork
from wmtp.checkpoint.survey import Survey
from wmtp.settings.resume import Resume

log = logging.getLogger("wmtp.checkpoint")


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


class Takeover:
    """Takes a run over for this process, which holds the trainer's lock of the run directory.

    Args:
        run: what ``run.json`` will say, but for generation, lineage and owner.
        store: the run's location; requests are repeated there.
        load: puts a verified checkpoint into the training state.
        say: tells a person what is happening.
        lease: how owners on other machines are treated.
    """

    def __init__(
        self,
        directory: RunDirectory,
        run: RunFile,
        store: ObjectStore,
        load: Load,
        say: Say,
        *,
        lease: Lease | None = None,
    ) -> None:
        self._directory, self._run, self._store, self._load = directory, run, store, load
        self._keys, self._lease = run.keys(directory.path), lease or Lease()
        self._manifest = ManifestFile(store, run.run, self._keys)
        self._fetch = Fetch(directory, run, store, load, say)
        self._survey, self._say = Survey(directory, run, store, say), say
        self._watched = False

    async def start(self, resume: Resume | None, *, fresh: bool = False) -> Started:
        """Resume or start from scratch, and own the run from then on.

        Raises:
            StartRefused, NothingToResume: see ``decide``; or the checkpoint does not fit.
            CorruptError: no candidate is intact; or see ``decide``.
            OwnershipError: its owner on another machine lives, or another start took it at the same moment.
        """
        if resume is not None and resume.location is not None:
            resume = own_step(resume.location, self._run.location, self._directory) or resume
        found = await self.look()
        decide(found, resume, fresh=fresh)  # a wrong question is answered before anybody waits
        if await self._wait_for_owners(found):
            found = await self.look()
        passed_over: dict[str, str] = {}
        while True:
            candidates = decide(found, resume, fresh=fresh)
            left = [one for one in candidates if one.full_name not in passed_over]
            if candidates and not left:
                raise _nothing_intact(found, [*passed_over.values()])
            candidate = left[0] if left else None
            try:
                return await self._begin(found, candidate, resume, [*passed_over.values()])
            except CorruptError as error:
                if candidate is None:
                    raise
                log.error("%s is passed over: %s", candidate.name, error)
                passed_over[candidate.full_name] = str(error)
            found = await self.look()  # what was pruned meanwhile is no candidate any more

    async def look(self) -> Found:
        """See ``Survey.look``."""
        return await self._survey.look()

    async def _wait_for_owners(self, found: Found) -> bool:
        """See that nobody elsewhere has the run or is just starting on it; whether that took any time."""
        if self._keys.in_place:
            return False
        numbers = {found.manifest.generation, await generation.newest(self._store)} - {0}
        owners = [one for number in sorted(numbers) async for one in self._elsewhere(number, found)]
        self._watched = bool(owners) and not self._lease.forced
        return await self._lease.wait_for(self._store, self._run.run, owners, self._say)

    async def _elsewhere(self, number: int, found: Found) -> AsyncIterator[tuple[int, Owner | None]]:
        """Who took a generation, unless that was on this very directory: the lock is ours, so it is over."""
        here = self._survey.run_file() or Claim()
        owner = found.manifest.owner if number == found.manifest.generation else None
        directory = None
        try:
            file = await generation.read(self._store, number, run=self._run.run)
            owner, directory = file.owner, file.directory
        except CorruptError as error:
            self._survey.tell(f"{error}; whoever took it is waited for")
        if directory != identity(self._directory) and (number, owner) != (here.generation, here.owner):
            yield number, owner

    async def _begin(
        self, found: Found, candidate: Candidate | None, resume: Resume | None, skipped: list[str]
    ) -> Started:
        """Take the next generation, load, and go on as its owner.

        Raises:
            CorruptError: no copy of the candidate is intact; nothing was changed.
        """
        fork = resume if resume is not None and resume.location is not None else None
        claim = await self._take(found, candidate, forked_from=fork.text if fork is not None else None)
        step, source = 0, ""
        async with self._owning(claim):
            if candidate is not None:
                step, source = candidate.step, await self._fetch.load(candidate, claim.generation)
            elif fork is not None and fork.location is not None:
                step, source = await load_fork(
                    fork.location, self._run, self._directory, self._load, self._say
                )
            await self._require_unchanged(found, candidate)
            return await self._adopt(claim, step, source, skipped)

    async def _take(
        self, found: Found, candidate: Candidate | None, forked_from: str | None
    ) -> GenerationFile:
        """Take the next generation, before anything is loaded: nobody else can have its keys.

        Raises:
            StartRefused: there is no next one.
        """
        taken = await generation.newest(self._store)
        highest = max(taken, found.manifest.generation, found.claim.generation)
        number = generation.next_to(highest, self._store.uri)
        lineage = Lineage.fresh(number)
        if candidate is not None:
            lineage = (await self._lineage_of(candidate, found)).child(number, after_step=candidate.step)
        now = datetime.now(UTC)
        file = GenerationFile(
            run=self._run.run,
            generation=number,
            lineage=lineage,
            owner=Owner.this_process(since=now),
            created_at=now,
            forked_from=forked_from,
            directory=None if self._keys.in_place else identity(self._directory),
        )
        await generation.take(self._store, file)
        return file

    async def _lineage_of(self, candidate: Candidate, found: Found) -> Lineage:
        """The lineage that ends with the generation of a step. A live one's is the beginning of ours."""
        if candidate.generation == 0:
            return Lineage.fresh(0)
        known = found.claim.lineage.until(candidate.generation)
        if known is not None:
            return known
        return (await generation.read(self._store, candidate.generation, run=self._run.run)).lineage

    @asynccontextmanager
    async def _owning(self, claim: GenerationFile) -> AsyncIterator[None]:
        """Show others that this start lives. One that fails releases what it took."""
        heart = Heart(self._store, self._manifest, lambda: claim, self._run.upload.heartbeat_s)
        try:
            async with beating(None if self._keys.in_place else heart):
                yield
        except BaseException:
            if not self._keys.in_place:
                with anyio.CancelScope(shield=True):
                    await heart.release(claim.generation)
            raise

    async def _require_unchanged(self, found: Found, candidate: Candidate | None) -> None:
        """See that the run stood still while it was loaded: the former owner could write until now.

        Raises:
            OwnershipError: an owner elsewhere that was taken for dead has committed something.
            CorruptError: the step was pruned; whatever is newer now is the one to go on from.
        """
        if self._keys.in_place:
            return
        index = await self._complete(found)
        new = sorted(index.names() - found.manifest.names())
        if new and self._watched:
            raise OwnershipError(
                f"{index.owner} was taken for dead, but has committed {new[-1]} meanwhile",
                doing="starting on",
                subject=found.uri,
                hint="stop that trainer, then start again",
            )
        entry = candidate.entry if candidate is not None and candidate.local is None else None
        listed = index.names() - {*index.deleting}
        if entry is not None and entry.name not in listed:
            problem = "it was pruned while it was loaded"
            raise CorruptError(problem, doing="resuming from", subject=f"{found.uri}/{entry.record}")

    async def _complete(self, found: Found) -> Manifest:
        """The manifest, with what its owner did not live to list.

        Listed in that owner's name, before anybody can know of us: our own uploader, once it serves us,
        would sweep what does not lead to us and is not listed.
        """
        if found.unlisted:
            return await self._manifest.update(
                lambda index: manifest.completed(index, found.unlisted, found.claim)
            )
        return await self._manifest.read() or Manifest(run=self._run.run)

    async def _adopt(self, claim: GenerationFile, step: int, source: str, skipped: list[str]) -> Started:
        """Tell the uploader, then supersede what this start leaves behind.

        In this order the former start's uploader finds a successor to serve, not a stranger that owns its
        run. A crash in between leaves the superseding to the uploader's next round.
        """
        owned = {"generation": claim.generation, "lineage": claim.lineage, "owner": claim.owner}
        run = self._run.model_copy(update=owned)
        run.write(self._directory)
        await self._manifest.update(lambda index: manifest.adopted(index, claim))
        return Started(run, step, source, skipped)


def _nothing_intact(found: Found, reasons: list[str]) -> CorruptError:
    return CorruptError(
        f"no checkpoint is intact: {reasons[0]}",
        doing="resuming",
        subject=found.uri,
        hint="restore an older copy of the bucket, or start over with --fresh",
    )
