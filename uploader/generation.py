"""Generations: which start of the trainer owns a run, and which steps lead to now.

Each start takes the next number by creating ``generations/NNNN.json`` once. The file names the lineage:
from which step of which generation it goes on. A step is live if it lies on that chain; any other step
with a record is superseded.
"""

import getpass
import os
import socket
from typing import Annotated, Self

from pydantic import AwareDatetime, Field

from uploader import layout
from uploader.bounds import Count, Generation
from uploader.errors import OwnershipError, PreconditionFailed
from uploader.record import decode
from uploader.settings import SCHEMA_VERSION, Strict
from uploader.store.base import ObjectStore


class Owner(Strict):
    """The process that owns a generation, in words a person can act on."""

    host: str
    pid: int
    user: str

    @classmethod
    def this_process(cls) -> Self:
        return cls(host=socket.gethostname(), pid=os.getpid(), user=_user())

    def __str__(self) -> str:
        return f"{self.user}@{self.host} (process {self.pid})"


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


class GenerationFile(Claim):
    """``generations/NNNN.json``: created once, never changed.

    Attributes:
        forked_from: the checkpoint of another run that this one began with, as a path or URI.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    created_at: AwareDatetime
    forked_from: str | None = None


async def newest(store: ObjectStore) -> int:
    """The highest generation taken so far; 0 where there is none."""
    numbers = [layout.parse_generation_key(info.key) async for info in store.list(layout.GENERATIONS_PREFIX)]
    return max((number for number in numbers if number is not None), default=0)


async def read(store: ObjectStore, generation: int) -> GenerationFile:
    """The file of one generation.

    Raises:
        ObjectMissing: nobody took it.
        CorruptError: it can't be read.
    """
    key = layout.generation_key(generation)
    data, _ = await store.get(key)
    return decode(GenerationFile, data, subject=f"{store.uri}/{key}")


async def take(store: ObjectStore, file: GenerationFile) -> None:
    """Take a generation: create its file, once.

    A lost answer is told from a lost race by reading back what is there.

    Raises:
        OwnershipError: another start took this number; the message says whose.
    """
    key = layout.generation_key(file.generation)
    try:
        await store.put(key, file.model_dump_json().encode() + b"\n", if_absent=True)
    except PreconditionFailed:
        there = await read(store, file.generation)
        if there != file:
            raise OwnershipError(
                f"generation {file.generation} was taken by {there.owner}",
                doing="taking",
                subject=store.uri,
                hint="another trainer started on this run at the same moment; stop one, then start again",
            ) from None
