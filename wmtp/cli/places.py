"""Which run a path or URI means, and how its store is reached.

A run directory says so itself, in ``run.json``; of everything else the config does.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from uploader import layout
from uploader.errors import CorruptError, NothingToResume, SettingsError, StoreUnavailable, WmtpError
from uploader.files import disk_errors
from uploader.generation import Claim
from uploader.host import is_run_directory
from uploader.layout import MANIFEST_KEY, RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest_file import ManifestFile
from uploader.retry import RetryPolicy
from uploader.run import RunFile, is_in_place
from uploader.settings import StorageSettings
from uploader.sighting import checkpoints_in
from uploader.status import read_status
from uploader.store import ObjectStore, open_store
from uploader.store.retrying import RetryingStore
from wmtp.cli.access import storage_from_config

STORE_TIMEOUT_S = 5.0
"""How long a store that does not answer is asked again: a person waits for it."""


@dataclass(frozen=True)
class Place:
    """Where a run is: on this disk, in a store, or both.

    Attributes:
        directory: its run directory here; None where only its store is known.
        location: its store; None where nobody has said yet which.
        run_file: what its trainer wrote here; None if none did.
    """

    run: str
    directory: RunDirectory | None
    location: Location | None
    storage: StorageSettings
    run_file: RunFile | None = None

    @property
    def store(self) -> Location:
        """Where its store is.

        Raises:
            SettingsError: nobody has said so.
        """
        if self.location is None:
            hint = "name the store's location itself: s3://… or file://…"
            raise SettingsError("nobody has said where its store is", subject=str(self), hint=hint)
        return self.location

    def __str__(self) -> str:
        return str(self.location if self.directory is None else self.directory.path)

    @property
    def keys(self) -> RunKeys:
        if self.directory is None or self.location is None:
            return RunKeys()
        return RunKeys(in_place=is_in_place(self.location, self.directory.path))

    @property
    def claim(self) -> Claim:
        return self.run_file or Claim()

    @property
    def node(self) -> int:
        return self.run_file.node if self.run_file else 0

    def manifest_file(self, store: ObjectStore) -> ManifestFile:
        return ManifestFile(store, self.run, self.keys)

    def explained(self, error: WmtpError) -> WmtpError:
        """An error of the store, with a hint that fits how the run was named and what serves its store."""
        problem, hint = error.problem, error.hint
        if isinstance(error, CorruptError) and self.directory and self.location:
            hint = hint.replace(str(self.location), str(self))
        stopped = stopped_server(self.storage)
        if isinstance(error, StoreUnavailable) and stopped is not None:
            problem = "the S3 server of this machine is not running"
            hint = f"start it with `wmtp dev-s3 --data {stopped}`"
        return type(error)(problem, doing=error.doing, subject=error.subject, hint=hint)


def split_step(text: str) -> tuple[str, str | None]:
    """A run, and the step if its path or URI ends in one, as ``ckpt/demo/step_40`` does."""
    run, _, name = text.rstrip("/").rpartition("/")
    is_step = layout.parse_step(name) is not None or layout.parse_step_at(name) is not None
    return (run or ".", name) if is_step else (text, None)


def run_and_step(run: str, step: str | None) -> tuple[str, str | None]:
    """A run, and the step that its path or another argument names.

    Raises:
        SettingsError: both do.
    """
    run, named = split_step(run)
    if step and named:
        raise SettingsError(f"the path names {named} already", subject=step, hint="name one step")
    return run, step or named


def runs_at(text: str) -> list[Location]:
    """The run that a path or URI means, or all runs in a directory that holds several.

    Raises:
        NothingToResume: there is no such directory, or no run in it.
        DiskError: it can't be read.
    """
    location = Location.parse(text, field="RUN")
    if location.is_s3:
        return [location]
    path = location.directory
    with disk_errors("looking for runs in", path):
        if not path.is_dir():
            problem = "it is not a directory" if path.exists() else "there is no such directory"
            raise NothingToResume(problem, doing="looking for runs in", subject=str(path))
        children = [path] if _is_run(path) else sorted(child for child in path.iterdir() if child.is_dir())
        runs = [child for child in children if _is_run(child)]
    if not runs:
        hint = "name a run directory, a parent of several, or a run's s3:// or file:// location"
        raise NothingToResume("there is no run", doing="looking in", subject=str(path), hint=hint)
    return [Location("", str(run)) for run in runs]


def run_at(text: str) -> Location:
    """The one run that a path or URI means.

    Raises:
        NothingToResume: there is none.
        SettingsError: there are several.
    """
    runs = runs_at(text)
    if len(runs) > 1:
        names = ", ".join(run.name for run in runs[:8])
        raise SettingsError(f"it holds {len(runs)} runs", subject=text, hint=f"name one of them: {names}")
    return runs[0]


def _is_run(path: Path) -> bool:
    """Whether a directory is a run's: here, or as a ``file://`` store."""
    return is_run_directory(path) or (path / MANIFEST_KEY).exists()


@contextmanager
def reach(location: Location, config: Path | None) -> Iterator[Place]:
    """A run whose store can be reached while the context lasts.

    Args:
        config: how the store is reached, whatever ``run.json`` says.

    Raises:
        CorruptError: ``run.json`` can't be read.
        SettingsError: the config is wrong.
    """
    place = Place(location.name, None, location, StorageSettings())
    if not location.is_s3:
        with disk_errors("reading", location.directory):
            place = _on_disk(location)
    with ExitStack() as stack:
        asks_config = config is not None or place.run_file is None
        if place.location is not None and place.location.is_s3 and asks_config:
            storage = stack.enter_context(storage_from_config(config, place.location))
            place = Place(place.run, place.directory, place.location, storage, place.run_file)
        yield place


def _on_disk(location: Location) -> Place:
    """A run directory, whose trainer or uploader said where its store is; else a ``file://`` store."""
    directory = RunDirectory(location.directory)
    run_file = RunFile.read(directory)
    if run_file is not None:
        return Place(run_file.run, directory, run_file.location, run_file.storage, run_file)
    is_ours = any(directory.path.glob("step_*/node-[0-9]*.json"))
    if not is_ours and (_is_store(directory.path) or not _holds_others(directory.path)):
        return Place(location.name, None, location, StorageSettings())
    status = read_status(directory.status_file)
    store = Location.parse(status.destination) if status else None
    if store is None and (directory.path / MANIFEST_KEY).exists():
        store = location
    return Place(location.name, directory, store, StorageSettings())


def _holds_others(path: Path) -> bool:
    """Whether there are checkpoints of another trainer, and not just directories with such names."""
    return any(one.is_file() or any(one.iterdir()) for one, _ in checkpoints_in(path))


def _is_store(path: Path) -> bool:
    """Whether a directory is a run's ``file://`` store, whose ``step_N/`` hold generations."""
    return (path / MANIFEST_KEY).exists() or any(path.glob("step_*/g[0-9]*"))


@asynccontextmanager
async def open_place(place: Place) -> AsyncIterator[ObjectStore]:
    """The store of a place; requests are repeated, for as long as a person waits."""
    waits_s = STORE_TIMEOUT_S if stopped_server(place.storage) is None else 0.0
    async with open_store(place.store, place.storage) as store:
        yield RetryingStore(store, RetryPolicy(cap_s=1.0, deadline_s=waits_s))


def stopped_server(storage: StorageSettings) -> Path | None:
    """The data directory of the development server that the settings mean, if it does not run."""
    from wmtp.dev_s3 import DevS3

    if storage.credentials_file is None:
        return None
    server = DevS3(Path(storage.credentials_file).parent)
    is_ours = server.lock_file.exists() and str(server.credentials_file) == storage.credentials_file
    return server.data if is_ours and not server.running() else None
