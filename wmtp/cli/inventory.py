"""What there is of a run: its steps on this disk and in its store, together."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uploader import layout, pins
from uploader.errors import NothingToResume, WmtpError
from uploader.files import disk_errors
from uploader.manifest import Manifest
from uploader.patterns import Found, choose
from uploader.record import CommitRecord, NodeRecord
from uploader.restore import damage, read_commit_record
from uploader.sighting import checkpoints_in
from uploader.status import read_status
from uploader.store import ObjectStore
from uploader.tree import look_at
from uploader.watch import LocalStep, LocalSteps
from wmtp.cli.places import Place, open_place
from wmtp.cli.steps import Seen, Step, merged, with_seen


@dataclass
class Inventory:
    """A run as far as it can be seen from here.

    Attributes:
        steps: newest first.
        store: open; None where there is none or it could not be asked.
        errors: what could not be read.
    """

    place: Place
    steps: list[Step]
    index: Manifest
    store: ObjectStore | None = None
    errors: list[WmtpError] = field(default_factory=list)

    @property
    def latest(self) -> Step | None:
        """The newest live step of which there is a copy."""
        return next((step for step in self.steps if step.live and step.intact), None)

    def find(self, name: str) -> Step:
        """The step a user means by ``latest``, ``step_N`` or ``step_N@gG``.

        Raises:
            NothingToResume: there is no such step; the message lists those there are.
        """
        for step in [self.latest] if name == "latest" else self.steps:
            if step is not None and name in ("latest", step.name, step.full_name):
                return step
        names = [step.name for step in self.steps]
        more = f" and {len(names) - 12} more" if len(names) > 12 else ""
        there = ", ".join(names[:12]) + more if names else "no steps at all"
        raise NothingToResume(
            f"there is no {name}", doing="looking in", subject=str(self.place), hint=f"there are: {there}"
        )

    def identity(self) -> dict[str, Any]:
        """Which run this is, and what of it could not be read."""
        return {
            "run": self.place.run,
            "directory": str(self.place.directory.path) if self.place.directory else None,
            "store": str(self.place.location) if self.place.location else None,
            "errors": [str(error) for error in self.errors],
        }

    def as_json(self) -> dict[str, Any]:
        latest = self.latest.name if self.latest else None
        return {**self.identity(), "latest": latest, "steps": [step.as_json() for step in self.steps]}

    async def describe(self, step: Step) -> dict[str, Any]:
        """The fields of a step and of its record.

        Raises:
            CorruptError: the record can't be read.
            NothingToResume: there is no copy of the step.
        """
        where, record = await self._read_record(step)
        return {
            **self.identity(),
            **step.as_json(),
            "local": str(step.path) if step.path else None,
            "pin": await self._read_pin(step),
            "record": where,
            "world_size": record.world_size,
            "fingerprints": record.fingerprints,
            "files": [file.model_dump(exclude={"blocks"}) for file in record.files],
        }

    async def _read_pin(self, step: Step) -> dict[str, str] | None:
        """Who pinned it, when and why."""
        if not (step.pinned and step.entry and self.store):
            return None
        pin = await pins.read(self.store, step.entry)
        return None if pin is None else pin.model_dump(mode="json", include={"by", "at", "note"})

    async def _read_record(self, step: Step) -> tuple[str, CommitRecord | NodeRecord]:
        """Where the record of a step is, and what it says; the store's before the disk's."""
        if step.durable and step.entry and self.store:
            record = await read_commit_record(self.store, step.entry)
            return f"{self.store.uri}/{step.entry.record}", record
        if step.local is None:
            problem = step.damaged or "its objects are being deleted"
            if step.seen is not None:
                problem = "another trainer wrote it, and there is no record of it before it is uploaded"
            raise NothingToResume(problem, doing="showing", subject=step.name)
        return str(step.local.path / layout.node_record(step.local.record.node)), step.local.record


@asynccontextmanager
async def take_inventory(place: Place) -> AsyncIterator[Inventory]:
    """Look at the disk, then at the store, with one GET where there is a manifest.

    A store that can't be read hides nothing of the disk: its error is among ``errors``.

    Raises:
        WmtpError: nothing of the run is on this disk, and its store can't be read.
        NothingToResume: there is no such run.
    """
    local, damaged, errors = _look_at_disk(place)
    seen = _look_at_others(place, errors)
    found = Inventory(place, [], Manifest(run=place.run), None, errors)
    async with AsyncExitStack() as stack:
        try:
            if place.location is not None:
                store = await stack.enter_async_context(open_place(place))
                file = place.manifest_file(store)
                found.index = await file.read() or await file.from_records()
                found.store = store
        except WmtpError as error:
            if place.directory is None:
                raise place.explained(error) from None
            found.errors.append(place.explained(error))
        if place.directory is None and found.store and found.index == Manifest(run=place.run):
            raise await no_run(found.store)
        found.steps = with_seen(merged(found.index, local, damaged, place.claim), seen)
        yield found


def _look_at_disk(place: Place) -> tuple[list[LocalStep], dict[str, str], list[WmtpError]]:
    """The steps on this disk; by ``step_N@gG`` (``step_N`` if unknown) what is wrong with which; errors."""
    if place.directory is None:
        return [], {}, []
    steps, unreadable = LocalSteps(place.directory, node=place.node).scan()
    damaged = {Path(error.subject).parent.name: str(error) for error in unreadable}
    for step in steps:
        with disk_errors("looking at", step.path):
            error = next(damage(step.path, step.record.files, deep=False), None)
        if error is not None:
            damaged[step.name] = str(error)
    try:
        with disk_errors("reading", place.directory.status_file):
            status = read_status(place.directory.status_file)
    except WmtpError as error:
        return steps, damaged, [error]
    names = {step.name for step in steps}
    told = {name: reason for name, reason in status.failed_steps.items() if name in names} if status else {}
    return steps, told | damaged, []


def _look_at_others(place: Place, errors: list[WmtpError]) -> list[Seen]:
    """The checkpoints of another trainer, complete or not: one for each step."""
    if place.directory is None or place.run_file is not None:
        return []
    names: dict[int, list[tuple[str, Found]]] = {}
    with disk_errors("looking at", place.directory.path):
        for path, found in checkpoints_in(place.directory.path):
            names.setdefault(found.step, []).append((path.name, found))
    seen = []
    for step, several in names.items():
        path = place.directory.path / choose(several)
        try:
            with disk_errors("looking at", path):
                tree = look_at(path)
        except WmtpError as error:
            errors.append(error)
            continue
        size_bytes = sum(file.size_bytes for file in tree.files.values())
        seen.append(Seen(step, path, size_bytes, tree.created_at, {}))
    return seen


async def no_run(store: ObjectStore) -> NothingToResume:
    """There is nothing here; perhaps below."""
    suffix = f"/{layout.MANIFEST_KEY}"
    runs = [info.key.removesuffix(suffix) async for info in store.list() if info.key.endswith(suffix)]
    hint = f"runs below it: {', '.join(runs[:12])}" if runs else "check its spelling"
    return NothingToResume("there is no run", doing="looking in", subject=store.uri, hint=hint)
