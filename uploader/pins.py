"""Pins: a person's word that a step stays, whatever retention says.

The truth is an object of its own, ``pins/step_N@gG.json``, created once, so that a rebuild of the manifest
finds it. The manifest's entry says it too, by compare-and-swap: whichever of pin and prune changes the
manifest first has won. A pin changes that one flag and is no claim to the run: anybody may set it.
"""

import getpass
import os
import socket
from collections.abc import Mapping, Set
from datetime import datetime
from typing import Annotated, Self

from pydantic import AwareDatetime, Field

from uploader import layout
from uploader.bounds import Count, Generation
from uploader.errors import NothingToResume, ObjectMissing, PreconditionFailed
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.record import decode
from uploader.seal import Sealed
from uploader.settings import SCHEMA_VERSION
from uploader.store.base import ObjectStore

MAX_NOTE_CHARACTERS = 1000


class Pin(Sealed):
    """Who pinned a step, when (by that machine's clock), and why."""

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    step: Count
    generation: Generation
    by: Annotated[str, Field(max_length=500)]
    at: AwareDatetime
    note: Annotated[str, Field(max_length=MAX_NOTE_CHARACTERS)] = ""

    @classmethod
    def of(cls, run: str, entry: Entry, *, note: str, at: datetime) -> Self:
        """A pin by the user of this process."""
        return cls(run=run, step=entry.step, generation=entry.generation, by=_this_user(), at=at, note=note)

    def __str__(self) -> str:
        return f"by {self.by} at {self.at:%Y-%m-%d %H:%M:%S %Z}" + (f": {self.note}" if self.note else "")


def _this_user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a uid that has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


async def pin(store: ObjectStore, file: ManifestFile, entry: Entry, wanted: Pin) -> Pin:
    """Pin a step; returns the pin that holds: another's, where the step was pinned before.

    The object comes first: a prune that looks between the two finds it. A step that a prune has marked by
    then loses its pin again.

    Raises:
        NothingToResume: the step is being pruned, or is not in the manifest.
    """
    key = layout.pin_key(entry.step, entry.generation)
    marked(await file.read() or Manifest(run=wanted.run), entry, pinned=True)
    try:
        await store.put(key, wanted.encode(), if_absent=True)
    except PreconditionFailed:
        wanted = await read(store, entry) or wanted
    try:
        await file.update(lambda index: marked(index, entry, pinned=True))
    except NothingToResume:
        await store.delete([key])
        raise
    return wanted


async def unpin(store: ObjectStore, file: ManifestFile, entry: Entry) -> bool:
    """Let retention decide again; whether the step was pinned. The object goes first, as it is the truth.

    Raises:
        NothingToResume: the step is being pruned, or is not in the manifest.
    """
    there = entry.name in await names(store)
    await store.delete([layout.pin_key(entry.step, entry.generation)])
    await file.update(lambda index: marked(index, entry, pinned=False))
    return there or entry.pinned


async def read(store: ObjectStore, entry: Entry) -> Pin | None:
    """The pin of a step; None where it has none.

    Raises:
        CorruptError: it can't be read.
    """
    key = layout.pin_key(entry.step, entry.generation)
    try:
        data, _ = await store.get(key)
    except ObjectMissing:
        return None
    hint = "unpin the step, and pin it anew"
    return decode(Pin, data, subject=f"{store.uri}/{key}", hint=hint)


async def names(store: ObjectStore) -> set[str]:
    """Every pinned step, as ``step_N@gG``, whether its manifest knows or not."""
    found = [layout.parse_pin_key(info.key) async for info in store.list(layout.PINS_PREFIX)]
    return {layout.step_at(*one) for one in found if one is not None}


def marked(index: Manifest, entry: Entry, *, pinned: bool) -> Manifest:
    """The manifest with one flag of one entry changed, whoever owns the run. Pure and idempotent.

    Raises:
        NothingToResume: the step is being pruned, or is not listed.
    """
    if entry.name not in index.names() - {*index.deleting}:
        problem = "it is being pruned" if entry.name in index.deleting else "the manifest does not list it"
        hint = "pin a step while it is there: `wmtp checkpoints ls` shows the states"
        raise NothingToResume(
            f"{problem}: its objects may be gone", doing="pinning", subject=entry.name, hint=hint
        )

    def mark(entries: Mapping[str, Entry]) -> dict[str, Entry]:
        change = {"pinned": pinned}
        return {
            name: one.model_copy(update=change) if one.name == entry.name else one
            for name, one in entries.items()
        }

    return index.model_copy(update={"live": mark(index.live), "superseded": mark(index.superseded)})


def all_marked(index: Manifest, names: Set[str]) -> Manifest:
    """The manifest in which those of its entries are pinned whose names (``step_N@gG``) are given. Pure."""
    for entry in [*index.live.values(), *index.superseded.values()]:
        if entry.name in names and not entry.pinned:
            index = marked(index, entry, pinned=True)
    return index
