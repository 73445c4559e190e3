"""Serve one run directory, or every run below a parent directory, from this process.

One uploader serves a run directory: it holds the lock ``.uploader/lock``. Whoever finds it taken leaves the
run to the one that is there.
"""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from uploader import files, layout, steptimes
from uploader.errors import OwnershipError, SettingsError, WmtpError
from uploader.flow import Flows
from uploader.foreign import ForeignSteps
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.pacing import Trainer
from uploader.patterns import is_temporary
from uploader.retention import Retention
from uploader.run import RunFile, is_in_place
from uploader.service import POLL_S, Clocks, RunService
from uploader.settings import StorageSettings, UploadSettings
from uploader.sighting import checkpoints_in
from uploader.status import Status, StatusFile
from uploader.store import open_store
from uploader.tasks import task_group
from uploader.watch import changes

log = logging.getLogger("uploader")


@dataclass(frozen=True)
class Fallback:
    """Where runs go whose trainer wrote no ``run.json``: below ``to``, by their directories' names.

    Nobody asked us to delete anything there: unless ``retention`` says so, all is kept.
    """

    to: Location
    storage: StorageSettings
    retention: Retention = field(default_factory=lambda: Retention(keep_last=None))
    upload: UploadSettings = field(default_factory=UploadSettings)

    def run_file(self, path: Path) -> RunFile:
        """The run of a directory.

        Raises:
            SettingsError: it would be stored in itself, or its name can't be part of a key.
        """
        destination = self.to.join(path.name)
        if is_in_place(destination, path) and any(checkpoints_in(path)):
            problem = "its checkpoints would be stored among themselves"
            raise SettingsError(problem, subject=str(path), hint="name another destination with --to")
        if not layout.is_run_name(path.name):
            problem = "the name of the directory can't be that of a run"
            hint = "rename it: letters, digits, '.', '_' and '-', no '.' at the beginning"
            raise SettingsError(problem, subject=str(path), hint=hint)
        return RunFile(
            run=path.name,
            destination=str(destination),
            storage=self.storage,
            retention=self.retention,
            upload=self.upload,
        )


async def serve_run(
    path: Path,
    *,
    fallback: Fallback | None = None,
    once: bool = False,
    clocks: Clocks | None = None,
    flows: Flows | None = None,
) -> None:
    """Serve one run directory until its run is over.

    Args:
        flows: what bounds the uploads of this process.

    Raises:
        OwnershipError: another uploader serves it, or a newer generation owns the run.
        SettingsError: there is no ``run.json`` and no fallback.
        WmtpError: the run is over and some of it could not be made durable.
    """
    directory = _absolute(path)
    while True:
        with _lock(directory) as is_ours:
            served = await _serve_locked(
                directory, fallback, once, clocks or Clocks(), flows or Flows(), is_ours
            )
        # A trainer that started while we were ending found our lock and counted on us.
        if once or RunFile.read(directory) in (None, served) or files.is_locked(directory.uploader_lock):
            return


def _absolute(path: Path) -> RunDirectory:
    """The directory by the name of its run, which ``.`` is not."""
    return RunDirectory(Path(os.path.abspath(path)))


async def _serve_locked(
    directory: RunDirectory,
    fallback: Fallback | None,
    once: bool,
    clocks: Clocks,
    flows: Flows,
    is_ours: Callable[[], bool],
) -> RunFile:
    """One service for each setting that ``run.json`` names in turn; returns the run as last served."""
    run = await _find_run(directory, fallback, wait=not once)
    while True:
        first = Status(
            run=run.run,
            destination=run.destination,
            pid=os.getpid(),
            generation=run.generation,
            updated_at=clocks.now(),
        )
        status = StatusFile(directory, clocks.now, first)
        is_foreign = RunFile.read(directory) is None and not is_in_place(run.location, directory.path)
        steps = ForeignSteps(directory, run, clocks.monotonic) if is_foreign else None
        log.info("%s to %s", directory.path, run.destination)
        try:
            flow = flows.to(run.location, run.storage, run.upload)
            with flow.pacing(str(directory.path), _trainer(directory, run)):
                async with open_store(run.location, run.storage, flow, status.knows) as store:
                    service = RunService(directory, run, store, status, clocks, is_ours, steps, flow)
                    await (service.once() if once else service.serve())
        except WmtpError as error:
            status.failed(error)
            raise
        except BaseException:
            status.show(state="stopped")
            raise
        changed = RunFile.read(directory)
        if changed is None or changed.setting() == run.setting() or not is_ours():
            return service.run
        run = changed


def _trainer(directory: RunDirectory, run: RunFile) -> Trainer:
    """Whom the uploads of a run stand back for."""
    ranks = run.local_ranks if run.upload.pacing else []
    return Trainer([steptimes.path_of(directory, rank) for rank in ranks])


async def _find_run(directory: RunDirectory, fallback: Fallback | None, *, wait: bool) -> RunFile:
    """``run.json``, else the fallback, else wait for a trainer to write one."""
    run = RunFile.read(directory)
    if run is None and fallback is not None:
        return fallback.run_file(directory.path)
    if run is None and wait:
        log.info("%s: waiting for a trainer to write run.json", directory.path)
        async for _ in changes(directory.path, poll_s=POLL_S):
            run = RunFile.read(directory)
            if run is not None:
                return run
    if run is None:
        raise SettingsError(
            "there is no run.json, so its destination is unknown",
            subject=str(directory.path),
            hint="name one with --to s3://bucket/prefix",
        )
    return run


@contextmanager
def _lock(directory: RunDirectory) -> Iterator[Callable[[], bool]]:
    """Hold the directory; yields whether it is still the one that is held, and not one made anew."""
    with files.disk_errors("creating", directory.uploader_directory):
        files.make_directory(directory.uploader_directory)
        lock = files.lock(directory.uploader_lock)
    if lock is None:
        raise OwnershipError(
            "another uploader serves it already",
            subject=str(directory.path),
            hint="nothing to do: that one goes on",
        )
    try:
        yield partial(_is_at, lock, directory.uploader_lock)
    finally:
        os.close(lock)


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def is_run_directory(path: Path) -> bool:
    """Whether a directory is a run's, of a trainer of ours or another, and not the parent of several."""
    if (path / "run.json").exists() or (path / ".trainer.lock").exists():
        return True
    if any(layout.parse_step(child.name) is not None for child in path.iterdir()):
        return True
    return any(True for _ in checkpoints_in(path))


async def serve_parent(
    path: Path, *, fallback: Fallback | None = None, once: bool = False, flows: Flows | None = None
) -> None:
    """Serve every run directory below a parent, new ones as they come, until stopped.

    A run's failure is logged and ends the service of that run only, until something changes in it.

    Raises:
        WmtpError: with ``once``: some of it could not be made durable.
    """
    shared = flows or Flows()
    errors: list[WmtpError] = []
    looked_at: dict[Path, int | None] = {}

    async def serve(run: Path) -> None:
        try:
            await serve_run(run, fallback=fallback, once=once, flows=shared)
        except WmtpError as error:
            log.error("%s", error)
            errors.append(error)
        looked_at[run] = _changed_at(run)

    async with task_group() as group:
        async for _ in changes(path, poll_s=POLL_S):
            for run in _unserved_runs(path):
                if run not in looked_at or looked_at[run] not in (None, _changed_at(run)):
                    looked_at[run] = None  # being served
                    group.start_soon(serve, run)
            if once:
                break
    if errors:
        raise errors[0]


def _unserved_runs(path: Path) -> list[Path]:
    with files.disk_errors("watching", path):
        runs = sorted(filter(is_run_directory, _subdirectories(path)))
    return [run for run in runs if not files.is_locked(RunDirectory(run).uploader_lock)]


def _subdirectories(path: Path) -> list[Path]:
    """Those that can be runs: what is hidden or being written is none, whatever it holds."""
    return [child for child in path.iterdir() if child.is_dir() and not is_temporary(child.name)]


def _changed_at(run: Path) -> int:
    """When something last came into the directory or left it; 0 once it is gone."""
    return run.stat().st_mtime_ns if run.exists() else 0


async def serve(
    path: Path, *, fallback: Fallback | None = None, once: bool = False, flows: Flows | None = None
) -> None:
    """Serve a run directory, or a parent of several; an empty directory becomes the one or the other.

    Raises:
        WmtpError: see ``serve_run`` and ``serve_parent``.
    """
    async for _ in changes(path, poll_s=POLL_S):
        if is_run_directory(path):
            return await serve_run(path, fallback=fallback, once=once, flows=flows)
        if once or _holds_runs(path):
            return await serve_parent(path, fallback=fallback, once=once, flows=flows)


def _holds_runs(path: Path) -> bool:
    with files.disk_errors("watching", path):
        return any(map(is_run_directory, _subdirectories(path)))
