"""Checkpoints for any PyTorch loop: restore, then fence and save at each step, and close.

    with Checkpointer("ckpt/run1", model=model, optimizer=optimizer, every=500, to="s3://bucket") as ckpt:
        for step in range(ckpt.restore("auto"), steps):
            loss(model, step).backward()
            ckpt.fence()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.save(step + 1, force=step + 1 == steps)

It holds the run directory's lock, owns the run in its store, starts the uploader, and waits at the end until
the last checkpoint is durable.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import nn
from torch.optim import Optimizer

from uploader import files, layout
from uploader.errors import SettingsError
from uploader.layout import RunDirectory
from uploader.lease import Lease
from uploader.location import Location
from uploader.record import Metrics, NodeRecord
from uploader.retention import Retention
from uploader.run import RunFile
from uploader.settings import StorageSettings, UploadSettings
from uploader.status import Status
from wmtp.checkpoint.disk import Disk
from wmtp.checkpoint.fetch import Load
from wmtp.checkpoint.load import Loaded, apply, read_checkpoint
from wmtp.checkpoint.resume import Started
from wmtp.checkpoint.saver import SHARD_SIZE_BYTES, Saved, Saver
from wmtp.checkpoint.session import take_over, trainer_lock
from wmtp.checkpoint.state import RandomState, Stateful, Tree
from wmtp.checkpoint.together import LoadingTogether
from wmtp.checkpoint.uploader_process import UploaderProcess, Uploading
from wmtp.checkpoint.writer import Description
from wmtp.ranks import Ranks
from wmtp.settings.resume import Resume

Check = Callable[[Path, Tree], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a loop seldom needs to change.

    Attributes:
        retention: what stays in the store.
        local_retention: what of it stays on this disk; None: the last ``retention.keep_last``.
        shard_size_bytes: a rank's state is cut into files of at most this size.
        nice: how far writer thread and uploader stand back for others on the CPU (0 to 19).
        io_level: how far the writer thread stands back at the disk (0 to 7).
        disk: performs the local write; None is the real one.
        durable_timeout_s: how long ``close`` waits for the last checkpoint to be durable.
        store_timeout_s: how long ``restore`` waits for the store to answer.
        lease_s: how long ``restore`` watches an owner on another machine that gives no sign of life.
        take_over: take the run from an owner on another machine that lives: what it does then fails.
        inherited: descriptors that the uploader's process keeps open.
        about: what makes the checkpoints, in JSON, kept in each; ``check`` sees it before a load.
        fingerprints: of what must not change, kept in each record.
        check: called with a checkpoint's path and its ``about``; raises if it must not be loaded.
        say: tells a person what happens at the start and at the end.
        ranks: the processes that train the model together; None: as ``torch.distributed`` says.
    """

    storage: StorageSettings = field(default_factory=StorageSettings)
    retention: Retention = field(default_factory=Retention)
    local_retention: Retention | None = None
    upload: UploadSettings = field(default_factory=UploadSettings)
    uploading: Uploading = Uploading.WAIT
    shard_size_bytes: int = SHARD_SIZE_BYTES
    nice: int = 10
    io_level: int | None = 7
    disk: Disk | None = None
    durable_timeout_s: float = 600.0
    store_timeout_s: float = 30.0
    lease_s: float = 60.0
    take_over: bool = False
    inherited: Sequence[int] = ()
    about: Tree | None = None
    fingerprints: Mapping[str, str] | None = None
    check: Check = lambda path, about: None
    say: Callable[[str], None] = print
    ranks: Ranks | None = None


class Checkpointer:
    """The checkpoints of one run.

    Of several ranks each has one, on the same directory, and calls all of its methods as the others do. Each
    writes its part of a checkpoint; rank 0 owns the run, commits, and has the uploader.

    Args:
        directory: the run directory, on a fast local disk; its name is the run's name.
        optimizer: one, or several by name.
        extra: by name, whatever else has a state: scheduler, scaler, data position, averaged weights. The
            random generators of this process are saved always.
        every: ``save`` saves at multiples of this many steps; None: whenever it is called.
        to: base location, to which the run's name is joined; None: checkpoints stay in the directory.

    Raises:
        OwnershipError: another trainer runs on the directory.
        SettingsError: a name or location is malformed.
        DiskError: the directory can't be written.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        model: nn.Module,
        optimizer: Optimizer | Mapping[str, Optimizer],
        extra: Mapping[str, Stateful] | None = None,
        every: int | None = None,
        to: str | Location | None = None,
        options: Options | None = None,
    ) -> None:
        self.directory = RunDirectory(Path(directory).absolute())
        self.options, self.every = options or Options(), every
        self._model = model
        self._optimizers = {"main": optimizer} if isinstance(optimizer, Optimizer) else dict(optimizer)
        self._extra: dict[str, Stateful] = {"random": RandomState(), **(extra or {})}
        self._ranks = self.options.ranks or Ranks.current()
        self._run = self._describe_run(to)
        self._saver: Saver | None = None
        self._uploader: UploaderProcess | None = None
        self._finished = False
        self.started: Started | None = None
        self._stack = contextlib.ExitStack()
        if self._ranks.is_first:
            self._stack.enter_context(trainer_lock(self.directory))

    def _describe_run(self, to: str | Location | None) -> RunFile:
        path, options = self.directory.path, self.options
        if not layout.is_run_name(path.name):
            hint = "use letters, digits, '.', '_' and '-'"
            raise SettingsError(f"{path.name!r} can't be a run's name", subject="directory", hint=hint)
        base = Location("", str(path.parent)) if to is None else to
        base = Location.parse(base, field="to") if isinstance(base, str) else base
        return RunFile(
            run=path.name,
            destination=str(base.join(path.name)),
            storage=options.storage,
            upload=options.upload,
            retention=options.retention,
            local_retention=options.local_retention or options.retention.on_disk(),
            local_ranks=[*range(self._ranks.world_size)],
            world_size=self._ranks.world_size,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._release()

    def restore(self, what: str | Resume | None = "latest", *, fresh: bool = False) -> int:
        """Load a checkpoint, own the run from now on, and start the uploader.

        Args:
            what: ``latest``, ``auto`` (start from scratch where there is nothing), ``step_N``, a path or
                URI; None: from scratch, refused where there are checkpoints.
            fresh: with None: from scratch all the same; what there is is superseded.

        Returns:
            The step to go on after; 0 from scratch.

        Raises:
            NothingToResume, StartRefused, CorruptError, OwnershipError, StoreError: see ``Takeover.start``.
        """
        resume = Resume.parse(what, Path.cwd()) if isinstance(what, str) else what
        options, ranks = self.options, self._ranks
        together = LoadingTogether(ranks, self._load)
        if ranks.is_first:
            with together.leading() as load:
                started = self._take_over(resume, load, fresh=fresh)
                together.tell_started(started)
        else:
            started = together.follow(self.directory)
        self.started = started
        what_is_saved = Description(
            run=self._run.run,
            step=started.step,
            generation=started.run.generation,
            created_at=datetime.now(UTC),
            metrics={},
            fingerprints=dict(options.fingerprints or {}),
            rank=ranks.rank,
            world_size=ranks.world_size,
            local_ranks=tuple(started.run.local_ranks),
        )
        self._saver = Saver(
            self.directory,
            what_is_saved,
            model=self._model,
            optimizers=self._optimizers,
            extra=self._extra,
            about=options.about,
            resumed_from=started.step or None,
            shard_size_bytes=options.shard_size_bytes,
            nice=options.nice,
            io_level=options.io_level,
            disk=options.disk,
        )
        self._stack.callback(self._saver.close)
        if not ranks.is_first:
            return started.step
        self._uploader = UploaderProcess(
            self.directory, started.run.generation, nice=options.nice, inherited=options.inherited
        )
        if options.uploading is not Uploading.NONE:
            self._uploader.ensure()
        return started.step

    def _take_over(self, resume: Resume | None, load: Load, *, fresh: bool) -> Started:
        options, directory = self.options, self.directory
        started = take_over(
            directory,
            self._run,
            resume,
            load,
            options.say,
            fresh=fresh,
            store_timeout_s=options.store_timeout_s,
            lease=Lease(lease_s=options.lease_s, forced=options.take_over),
        )
        with files.disk_errors("clearing", directory.path):
            mine = {directory.events(rank) for rank in started.run.local_ranks}
            for of_nobody in {*directory.event_files()} - mine:  # there were more ranks
                of_nobody.unlink()
        return started

    def _load(self, path: Path, record: NodeRecord) -> None:
        rank, world_size = self._ranks.rank, self._ranks.world_size
        loaded: Loaded = read_checkpoint(path, record, rank=rank, world_size=world_size)
        self.options.check(path, loaded.tree.get("about", {}))
        apply(loaded, self._model, self._optimizers, self._extra, rank=rank, world_size=world_size)

    def save(
        self, step: int, *, metrics: Metrics | None = None, force: bool = False, busy: bool | None = None
    ) -> bool:
        """Begin to save the state after ``step`` steps, if it is due.

        Args:
            force: save although it is not due, and wait for a save that is still being written: for the last
                step and for a preemption.
            busy: whether any rank is ``busy``, where the loop knows that already from a reduction of its
                own; None: of several ranks each is asked, where a save is due.

        Returns:
            Whether a save began. A save that is due while the last one is still being written, by any rank,
            is skipped.
        """
        saver = self._started_saver()
        if force:
            self._end_last_save(saver, step)
        is_due = step != saver.last_step and (force or self.every is None or step % self.every == 0)
        if self.options.uploading is not Uploading.NONE and self._uploader is not None:
            self._uploader.look_after(anew=is_due)
        if is_due and not force and self._any_busy(saver, busy):
            saver.skipped += 1
            return False
        return is_due and saver.save(step, metrics=metrics, wait_if_busy=True)

    @property
    def busy(self) -> bool:
        """Whether the last save of this rank is still being copied or written."""
        return self._saver is not None and self._saver.busy

    def _any_busy(self, saver: Saver, busy: bool | None) -> bool:
        """Asked of one alone, the answer is as new as can be; several have to agree on one."""
        if self._ranks.world_size == 1:
            return saver.busy
        return any(self._ranks.from_all(saver.busy)) if busy is None else busy

    def _end_last_save(self, saver: Saver, step: int) -> None:
        """See how the last save of all ranks ended: one that failed anywhere has to be made again by all.

        Nobody begins before what the failed one left has gone: the leader must not find an old record there.
        """
        saver.wait()
        if self._ranks.world_size == 1:
            return
        saver.last_step = min(self._ranks.from_all(saver.last_step or 0)) or None
        if self._ranks.is_first and self.started is not None:
            files.remove_tree(self.directory.temporary(step, self.started.run.generation))
        self._ranks.from_all(None)

    def fence(self) -> None:
        """Wait for what a running snapshot still copies. Call it right before ``optimizer.step()``."""
        if self._saver is not None:
            self._saver.fence()

    def wait(self) -> None:
        """Wait until the last save has ended, well or not. Its upload goes on."""
        if self._saver is not None:
            self._saver.wait()

    def _started_saver(self) -> Saver:
        if self._saver is None:
            self.restore(None)
        assert self._saver is not None  # noqa: S101
        return self._saver

    @property
    def saved(self) -> list[Saved]:
        """How each save went, in order."""
        return [] if self._saver is None else self._saver.saved

    @property
    def skipped(self) -> int:
        """How many saves were skipped because the one before was still being written."""
        return 0 if self._saver is None else self._saver.skipped

    def news(self) -> Iterator[str]:
        """A line for each step that became durable and each trouble of the uploader since the last call."""
        return iter(()) if self._uploader is None else self._uploader.news()

    def finish(self) -> Status | None:
        """Wait for the last save, announce the end of the run, and wait until it is durable.

        Returns:
            The uploader's last status; None where nothing was ever saved or a sidecar uploads.

        Raises:
            NotDurable: the uploader gave up or took too long; the checkpoint is safe on this disk.
            WmtpError: the last save failed.
        """
        if self._saver is None:
            return None
        is_first_call, last_step = not self._finished, self._saver.last_step
        if is_first_call:
            self._saver.finish(last_step or 0)
            self._finished = True
        if self._uploader is None:
            return None
        if not is_first_call or self.options.uploading is not Uploading.WAIT:
            return self._uploader.status()
        return self._uploader.wait_until_drained(
            last_step if self._saver.saved else None,  # where nothing is new, it is the uploader that knows
            timeout_s=self.options.durable_timeout_s,
            say=self.options.say,
        )

    def close(self) -> None:
        """Finish, then let go of the run directory; after an error in a ``with`` block only the latter.

        Raises:
            NotDurable, WmtpError: see ``finish``.
        """
        try:
            self.finish()
        finally:
            self._release()

    def _release(self) -> None:
        """End the writer after the save it may be at, and let go of the run directory."""
        self._stack.close()
