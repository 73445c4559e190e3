"""Machines that start a run: each with its own disk and its own clock, on one store."""

import shutil
from collections.abc import Callable
from pathlib import Path

from toys import keys_of, make_step, no_wait, upload

from uploader import layout
from uploader.layout import RunDirectory, RunKeys
from uploader.lease import Lease
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.record import NodeRecord
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.store.memory import MemoryStore
from uploader.store.retrying import RetryingStore
from uploader.watch import LocalStep, LocalSteps
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.settings.resume import Resume

LATEST, AUTO = Resume("latest", "latest"), Resume("auto", "auto")


def step_named(step: int, number: int | None = None) -> Resume:
    text = layout.step_name(step) if number is None else layout.step_at(step, number)
    return Resume(text, "step", step, number)


class Machine:
    """One machine's directory, and a process on it that starts the run and says what it loaded."""

    def __init__(self, path: Path, store: MemoryStore, *, destination: str = "s3://bucket/run") -> None:
        path.mkdir(parents=True)
        self.directory, self.store = RunDirectory(path), store
        self.run = RunFile(run="run", destination=destination)
        self.loaded: list[str] = []
        self.said: list[str] = []
        self.refuse: Callable[[Path], None] = lambda _: None
        self.watched_s = 0.0

    async def _watch(self, delay_s: float) -> None:
        self.watched_s += delay_s
        await no_wait(delay_s)

    def load(self, path: Path, record: NodeRecord) -> None:
        self.refuse(path)
        self.loaded.append((path / record.files[0].path).read_text())

    def takeover(self, *, forced: bool = False) -> Takeover:
        """A start that retries what heals, on a clock of its own."""
        store = RetryingStore(self.store, RetryPolicy(sleep=no_wait))
        lease = Lease(forced=forced, sleep=self._watch, clock=lambda: self.watched_s)
        return Takeover(self.directory, self.run, store, self.load, self.said.append, lease=lease)

    async def start(
        self, resume: Resume | None = LATEST, *, fresh: bool = False, forced: bool = False
    ) -> Started:
        return await self.takeover(forced=forced).start(resume, fresh=fresh)

    def save(self, step: int) -> LocalStep:
        """Train up to a step and save it, as the present generation."""
        run = RunFile.read(self.directory)
        assert run is not None
        return make_step(self.directory, step, run.generation)

    async def upload(self, *steps: LocalStep) -> None:
        run = RunFile.read(self.directory)
        assert run is not None
        await upload(self.store, run, *steps)

    async def trained(self, *steps: int) -> None:
        """A run with these steps, here and in the store."""
        await self.start(None)
        await self.upload(*[self.save(step) for step in steps])

    async def keys(self) -> list[str]:
        return await keys_of(self.store)

    def local(self) -> list[str]:
        return [one.name for one in LocalSteps(self.directory).scan()[0]]

    def forget(self) -> None:
        """The disk is lost."""
        shutil.rmtree(self.directory.path)
        self.directory.path.mkdir()

    @property
    def owner(self) -> RunFile:
        run = RunFile.read(self.directory)
        assert run is not None
        return run


async def index_of(store: MemoryStore) -> Manifest:
    found = await ManifestFile(store, "run", RunKeys()).read()
    assert found is not None
    return found


async def live(store: MemoryStore) -> list[str]:
    return [entry.name for entry in (await index_of(store)).live.values()]


def said(step: int, number: int = 1) -> str:
    return f"step {step} of generation {number}"
