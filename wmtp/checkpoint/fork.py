"""Begin a run with a checkpoint of another run, by path or URI. Nothing over there is changed."""

from pathlib import Path

from uploader import below, files, layout
from uploader.buffers import PartBuffers
from uploader.errors import CorruptError, NothingToResume
from uploader.generation import Claim
from uploader.layout import RunDirectory, RunKeys
from uploader.location import Location
from uploader.manifest import Entry
from uploader.manifest_file import ManifestFile
from uploader.record import NodeRecord, decode
from uploader.restore import read_commit_record, restore
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.store import open_store
from uploader.store.base import ObjectStore
from uploader.store.retrying import RetryingStore
from uploader.watch import LocalStep, LocalSteps, read_step
from wmtp.checkpoint.fetch import DOWNLOAD, Load, Say, load_local

STORE_TIMEOUT_S = 30.0
"""How long another run's store may be unreachable before the start gives up."""


async def load_fork(
    location: Location, run: RunFile, directory: RunDirectory, load: Load, say: Say
) -> tuple[int, str]:
    """Load the checkpoint that a location names: a run (its newest intact step) or one of its steps.

    Args:
        run, directory: this run: how a store is reached, and where there is room for a download.

    Returns:
        The step, and where it came from.

    Raises:
        NothingToResume: there is no checkpoint at the location.
        CorruptError: none there is intact.
    """
    local = [] if location.is_s3 else _local_steps(location.directory, say)
    if local:
        return await _load_newest_local(local, load, say)
    step = layout.parse_step(location.name)
    root = location if step is None else location.parent
    async with open_store(root, run.storage) as opened:
        store = RetryingStore(opened, RetryPolicy(deadline_s=STORE_TIMEOUT_S))
        index = await ManifestFile(store, root.name, RunKeys()).read()
        entries = list(index.live.values()) if index is not None else []
        wanted = [entry for entry in entries if step in (None, entry.step)]
        if not wanted:
            there = layout.suggest_steps(entry.step for entry in entries)
            raise NothingToResume(
                "there is no checkpoint",
                doing="resuming from",
                subject=str(location),
                hint=f"there are: {there}",
            )
        return await _load_newest_stored(wanted, store, run, directory, load, say)


def _local_steps(path: Path, say: Say) -> list[LocalStep]:
    """The steps of a local directory that is a step's or a run's, newest first; none of any other.

    Of a run only the live ones: what it left behind when it went back is a step to be asked for by its path.
    """
    if layout.parse_step(path.name) is not None:
        return [read_step(path)] if (path / layout.node_record(0)).exists() else []
    steps, errors = LocalSteps(RunDirectory(path)).scan()
    for error in errors:
        say(f"passed over: {error}")
    claim: Claim = RunFile.read(RunDirectory(path)) or Claim()
    return [one for one in steps if claim.is_live(one.step, one.generation)]


async def _load_newest_local(steps: list[LocalStep], load: Load, say: Say) -> tuple[int, str]:
    errors = []
    for local in steps:
        try:
            return local.step, await load_local(local, load)
        except CorruptError as error:
            say(f"passed over: {error}")
            errors.append(error)
    raise errors[0]


async def _load_newest_stored(
    entries: list[Entry], store: ObjectStore, run: RunFile, directory: RunDirectory, load: Load, say: Say
) -> tuple[int, str]:
    buffers = PartBuffers(run.upload.part_size_bytes, run.upload.parts_in_flight)
    target, temporary = directory.path / DOWNLOAD, directory.path / f"{DOWNLOAD}.tmp"
    errors = []
    for entry in sorted(entries, key=lambda entry: -entry.step):
        try:
            record = await read_commit_record(store, entry)
            say(f"downloading {store.uri} {layout.step_name(entry.step)}, {record.size_bytes / 1e6:.1f} MB")
            prefix = entry.record.removesuffix(layout.COMMIT_RECORD_NAME)
            await restore(store, prefix, record, temporary, target, directory.trash, buffers, lambda _: None)
            load(target, _node_record(target))
            return entry.step, f"{store.uri}/{prefix.rstrip('/')}"
        except CorruptError as error:
            say(f"passed over: {error}")
            errors.append(error)
        finally:
            files.remove_tree(target)
            files.remove_tree(temporary)
    raise errors[0]


def _node_record(directory: Path) -> NodeRecord:
    path = directory / layout.node_record(0)
    try:
        return decode(NodeRecord, below.read_small(path), subject=str(path))
    except FileNotFoundError as error:
        raise CorruptError("the file is missing", doing="resuming from", subject=str(path)) from error
