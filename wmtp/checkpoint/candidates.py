"""Which steps a start may go on from, best first. Pure: ``resume`` looks, and does what is decided here."""

from collections.abc import Sequence
from dataclasses import dataclass

from uploader import layout
from uploader.errors import CorruptError, NothingToResume, StartRefused
from uploader.generation import Claim
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.manifest import Entry, Manifest
from uploader.watch import LocalStep
from wmtp.settings.resume import Resume


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

    @property
    def full_name(self) -> str:
        """``step_N@gG``."""
        return layout.step_at(self.step, self.generation)


@dataclass(frozen=True)
class Found:
    """What there is of a run: the manifest's steps, and those on this disk.

    Attributes:
        manifest: as the store has it, and ``unlisted``.
        claim: whose lineage decides which of the local steps are live.
        unreadable: an error for each local step whose record can't be read: nobody knows what it is.
        unlisted: entries of committed steps that the manifest in the store does not know.
    """

    uri: str
    manifest: Manifest
    local: list[LocalStep]
    claim: Claim
    unreadable: Sequence[CorruptError] = ()
    unlisted: Sequence[Entry] = ()

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
        NothingToResume: there is no such step; the message lists those there are. Or the run went on from a
            step, and neither that one nor a later one is here: that proves no absence.
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
    if not live:
        _require_beginning(found)
    return live


def _require_beginning(found: Found) -> None:
    """That nothing is here proves no absence where the run went on from something: another disk may have it.

    Raises:
        NothingToResume: it did.
    """
    branches = found.claim.lineage.branches
    if branches and branches[-1].after_step is not None:
        there = f"name one of these ({_superseded_only(found)})" if found.superseded() else "bring its disk"
        raise NothingToResume(
            f"the run went on after step {branches[-1].after_step}, and neither that nor a later one is here",
            doing="resuming",
            subject=found.uri,
            hint=f"start where it ran last, {there}, or start over with --fresh",
        )


def _superseded_only(found: Found) -> str:
    return ", ".join(f"{one.full_name}, superseded" for one in found.superseded())


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


def own_step(location: Location, run: Location, directory: RunDirectory) -> Resume | None:
    """A path or URI inside this very run as the step it names; None for any other place."""
    for root in (run, Location("", str(directory.path))):
        if location == root:
            return Resume("latest", "latest")
        step = layout.parse_step(location.name)
        if location.parent == root and step is not None:
            return Resume(layout.step_name(step), "step", step)
    return None
