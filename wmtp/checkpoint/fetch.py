"""Load one checkpoint: the copy on this disk if that is intact, else the one in the store, verified."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from anyio import to_thread

from uploader import files, layout
from uploader.buffers import PartBuffers
from uploader.errors import CorruptError
from uploader.layout import RunDirectory
from uploader.manifest import Entry
from uploader.record import CommitRecord, NodeRecord
from uploader.restore import check, read_commit_record, restore
from uploader.run import RunFile
from uploader.store.base import ObjectStore
from uploader.watch import LocalStep, read_step
from wmtp.checkpoint.candidates import Candidate

Load = Callable[[Path, NodeRecord], None]
Say = Callable[[str], None]

DOWNLOAD = ".fork"
"""Where a checkpoint lies while it is loaded that is not to stay: another run's, or one whose name is taken
by another generation's. What a crash leaves there the next start clears."""


class Fetch:
    """Brings checkpoints of a run into its directory, and their content into the training state.

    Args:
        load: puts a verified checkpoint into the training state.
        say: tells a person what is happening.
    """

    def __init__(
        self, directory: RunDirectory, run: RunFile, store: ObjectStore, load: Load, say: Say
    ) -> None:
        self._directory, self._run, self._store, self._load, self._say = directory, run, store, load, say
        self._keys = run.keys(directory.path)
        self._buffers = PartBuffers(run.upload.part_size_bytes, run.upload.parts_in_flight)

    async def load(self, candidate: Candidate, generation: int) -> str:
        """Load a candidate; where it came from.

        Args:
            generation: the one that is starting, which owns what is being downloaded.

        Raises:
            CorruptError: neither copy is intact; says what of which is not.
        """
        told = ""
        if candidate.local is not None:
            try:
                return await load_local(candidate.local, self._load)
            except CorruptError as error:
                if candidate.entry is None or self._keys.in_place:
                    raise
                self._say(f"{error}; using the copy in the store")
                told = str(error)
        assert candidate.entry is not None  # noqa: S101
        try:
            local = read_step(await self._download(candidate.entry, generation), node=self._run.node)
        except CorruptError as error:
            raise _both(error, told) from None
        self._load(local.path, local.record)
        files.remove_tree(self._directory.path / DOWNLOAD)
        return f"{self._store.uri}/{candidate.entry.record.rpartition('/')[0]}"

    async def _download(self, entry: Entry, generation: int) -> Path:
        """A verified copy of a stored step in the run directory."""
        record = await self._record(entry)
        self._say(f"downloading {layout.step_name(entry.step)}, {record.size_bytes / 1e6:.1f} MB")
        target = self._target(entry)
        files.make_directory(target.parent)
        await restore(
            self._store,
            self._keys.step_prefix(entry.step, entry.generation),
            record,
            self._directory.temporary(entry.step, generation),
            target,
            self._directory.trash,
            self._buffers,
            lambda _: None,
            self._run.destination,
        )
        return target

    def _target(self, entry: Entry) -> Path:
        """Where the copy goes: in place of a damaged one, but beside a step that another generation wrote.

        Until this start is the owner, that may be the only copy of what leads to now.
        """
        target = self._directory.step(entry.step)
        with suppress(FileNotFoundError, CorruptError):
            if read_step(target, node=self._run.node).generation != entry.generation:
                return self._directory.path / DOWNLOAD / target.name
        return target

    async def _record(self, entry: Entry) -> CommitRecord:
        record = await read_commit_record(self._store, entry)
        if record.run != self._run.run:
            subject, problem = f"{self._store.uri}/{entry.record}", f"it is that of run {record.run!r}"
            raise CorruptError(problem, doing="reading", subject=subject)
        return record


async def load_local(local: LocalStep, load: Load) -> str:
    """Verify a step on this disk, every byte, and load it; where it is. Nobody prunes it meanwhile.

    Raises:
        CorruptError: a file differs from the record, or is missing; names it.
    """
    try:
        with files.held_for_reading(local.path):
            await to_thread.run_sync(check, local.path, local.record.files)
            load(local.path, local.record)
    except FileNotFoundError as error:
        problem = "it was pruned at this moment"
        raise CorruptError(problem, doing="resuming from", subject=str(local.path)) from error
    return str(local.path)


def _both(stored: CorruptError, local: str) -> CorruptError:
    """What is wrong with the copy in the store, and before that what was with the one on this disk."""
    if not local:
        return stored
    return CorruptError(
        f"{stored.problem}; nor is the local copy intact: {local}",
        doing=stored.doing,
        subject=stored.subject,
        hint=stored.hint,
    )
