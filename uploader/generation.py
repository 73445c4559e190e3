"""Generations: which start of the trainer owns a run, and which steps lead to now.

Each start takes the next number by creating ``generations/NNNN.json`` once. The file names the lineage:
from which step of which generation it goes on. A step is live if it lies on that chain; any other step
with a record is superseded.
"""

import getpass
import os
import socket
from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, Field

from uploader import layout
from uploader.bounds import MAX_GENERATIONS, Count, Generation
from uploader.errors import (
    CorruptError,
    ObjectMissing,
    OwnershipError,
    PreconditionFailed,
    StartRefused,
    plain,
)
from uploader.record import decode
from uploader.seal import Sealed
from uploader.settings import SCHEMA_VERSION, Strict
from uploader.store.base import ObjectStore


class Owner(Strict):
    """The process that owns a generation, in words a person can act on.

    Attributes:
        since: when it took the generation, by its own clock: for people, never compared.
    """

    host: str
    pid: int
    user: str
    since: AwareDatetime | None = None

    @classmethod
    def this_process(cls, since: datetime | None = None) -> Self:
        return cls(host=socket.gethostname(), pid=os.getpid(), user=_user(), since=since)

    def __str__(self) -> str:
        return plain(f"{self.user}@{self.host} (process {self.pid})")

    @property
    def told_since(self) -> str:
        """`` since …``, to follow what it owns; empty where that is unknown."""
        return f" since {self.since:%Y-%m-%d %H:%M:%S %Z}" if self.since is not None else ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under a uid that has no name
        return f"uid {os.getuid()}"


class Branch(Strict):
    """One generation of a lineage: it goes on after ``after_step``; None for a fresh start."""

    generation: Generation
    after_step: Count | None = None


class Lineage(Strict):
    """The chain of generations that leads to now, oldest first."""

    branches: list[Branch] = []

    def child(self, generation: int, *, after_step: int) -> "Lineage":
        """The lineage of a generation that goes on after a step of this lineage's last generation."""
        return Lineage(branches=[*self.branches, Branch(generation=generation, after_step=after_step)])

    @classmethod
    def fresh(cls, generation: int) -> "Lineage":
        return cls(branches=[Branch(generation=generation)])

    def until(self, generation: int) -> "Lineage | None":
        """The lineage of an earlier generation of this one; None of a generation that is not part of it."""
        numbers = [branch.generation for branch in self.branches]
        if generation not in numbers:
            return None
        return Lineage(branches=self.branches[: numbers.index(generation) + 1])

    def is_live(self, step: int, generation: int) -> bool:
        """Whether a step of a generation leads to now: it comes after its branch's begin, and no later branch
        left before it. So of one number there is one live step.
        """
        numbers = [branch.generation for branch in self.branches]
        if generation not in numbers:
            return False
        at = numbers.index(generation)
        after_step, later = self.branches[at].after_step, self.branches[at + 1 :]
        if after_step is not None and step <= after_step:
            return False  # up to there the step is that of an earlier branch
        return all(branch.after_step is not None and step <= branch.after_step for branch in later)


class Claim(Strict):
    """Who owns a run: the generation, the lineage that leads to it, and the process that took it."""

    generation: Generation = 0
    lineage: Lineage = Lineage()
    owner: Owner | None = None

    def is_live(self, step: int, generation: int) -> bool:
        """Whether a step leads to now. Generation 0 is a trainer that takes none: all its steps do."""
        return self.generation == 0 or self.lineage.is_live(step, generation)


class GenerationFile(Claim, Sealed):
    """``generations/NNNN.json``: created once, never changed.

    Attributes:
        forked_from: the checkpoint of another run that this one began with, as a path or URI.
        directory: the ``identity`` of the run directory it was taken for.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    created_at: AwareDatetime
    forked_from: str | None = None
    directory: str | None = None


async def newest(store: ObjectStore) -> int:
    """The highest generation taken so far; 0 where there is none."""
    numbers = [layout.parse_generation_key(info.key) async for info in store.list(layout.GENERATIONS_PREFIX)]
    return max((number for number in numbers if number is not None), default=0)


def next_to(taken: int, uri: str) -> int:
    """The number after the highest one that was taken.

    Raises:
        StartRefused: there is none: somebody has made a file with the last one.
    """
    if taken + 1 < MAX_GENERATIONS:
        return taken + 1
    raise StartRefused(
        f"generation {taken} is the last one there can be, and it is taken",
        doing="starting on",
        subject=uri,
        hint="no trainer of ours took it: see who made that file, or choose another --run-name",
    )


async def read(store: ObjectStore, generation: int, *, run: str | None = None) -> GenerationFile:
    """The file of one generation.

    Args:
        run: whose it has to be; None: anybody's.

    Raises:
        CorruptError: it is missing, can't be read, or is that of another generation or run.
    """
    key = layout.generation_key(generation)
    subject, hint = f"{store.uri}/{key}", "restore it from a copy, or start over with --fresh"
    try:
        data, _ = await store.get(key)
    except ObjectMissing as error:
        raise CorruptError("the object is missing", doing="reading", subject=subject, hint=hint) from error
    file = decode(GenerationFile, data, subject=subject, hint=hint)
    if file.generation != generation or run not in (None, file.run):
        problem = f"it is that of generation {file.generation} of run {file.run!r}"
        raise CorruptError(problem, doing="reading", subject=subject, hint=hint)
    return file


async def take(store: ObjectStore, file: GenerationFile) -> None:
    """Take a generation: create its file, once.

    A lost answer is told from a lost race by reading back what is there.

    Raises:
        OwnershipError: another start took this number; the message says whose.
    """
    key = layout.generation_key(file.generation)
    try:
        await store.put(key, file.encode(), if_absent=True)
    except PreconditionFailed:
        there = await read(store, file.generation)
        if there != file:
            raise OwnershipError(
                f"generation {file.generation} was taken by {there.owner}",
                doing="taking",
                subject=store.uri,
                hint="another trainer started on this run at the same moment; stop one, then start again",
            ) from None
