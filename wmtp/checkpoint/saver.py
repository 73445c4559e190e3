"""Save the training state without the step waiting: snapshot, then local write, on two background threads.

On the training thread ``save`` takes microseconds and ``fence`` waits, before ``optimizer.step()``, for what
is left of the copy. One thread copies, for the fence waits for it; another, which stands back for
everything else on the machine, writes each file as soon as it is whole. Both live as long as the saver.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from torch import nn
from torch.optim import Optimizer

from uploader import files, layout, queue
from uploader.errors import WmtpError
from uploader.events import RunFinished
from uploader.layout import RunDirectory
from uploader.record import Metrics, NodeRecord, RankRecord
from uploader.steptimes import StepTimes, path_of
from wmtp.checkpoint.collect import Collector
from wmtp.checkpoint.copying import Landing
from wmtp.checkpoint.disk import Disk, FileSource
from wmtp.checkpoint.snapshot import Arena, Snapshot, specs_of
from wmtp.checkpoint.state import Stateful, Tree, encode_tree
from wmtp.checkpoint.workers import Worker
from wmtp.checkpoint.writer import Description, write_checkpoint

log = logging.getLogger("wmtp.checkpoint")

SHARD_SIZE_BYTES = 256 * 1024**2


@dataclass(slots=True)
class Saved:
    """How one save went.

    Attributes:
        stall_ms: for how long the training thread was held up: the call and the fence together.
        copy_ms: from the call to the end of the copy.
        local_ms: from the call until the step was committed on disk; None while it is not.
        error: why it was not.
        stale: nothing that is trained has changed since the save before.
    """

    step: int
    size_bytes: int = 0
    stall_ms: float = 0.0
    copy_ms: float | None = None
    local_ms: float | None = None
    error: WmtpError | None = None
    stale: bool = False


@dataclass
class _Job:
    what: Description
    tree: Tree
    saved: Saved
    began_s: float
    arena: Arena
    last_step: int | None
    landing: Landing = field(default_factory=Landing)
    done: threading.Event = field(default_factory=threading.Event)
    fenced: bool = False


class Saver:
    """Saves one rank's model, optimizers and extra state into a run directory.

    A fence is also hooked in front of every optimizer's step, so a loop that has no place for the visible
    call is as safe.

    Args:
        what: run, generation and everything else the records say; its step is set by each save.
        optimizers: by name.
        extra: by name: whatever else has a state.
        about: what made the checkpoints, in JSON: shown where a later start does not fit.
        resumed_from: the step that is saved already, because the run goes on after it.
        nice, io_level: how far the writer thread stands back on the CPU and at the disk (``Worker``).
        on_saved: called on the writer thread when a save has ended, well or not.
    """

    def __init__(
        self,
        directory: RunDirectory,
        what: Description,
        *,
        model: nn.Module,
        optimizers: Mapping[str, Optimizer],
        extra: Mapping[str, Stateful],
        about: Tree | None = None,
        resumed_from: int | None = None,
        shard_size_bytes: int = SHARD_SIZE_BYTES,
        nice: int = 10,
        io_level: int | None = 7,
        disk: Disk | None = None,
        on_saved: Callable[[Saved], None] | None = None,
    ) -> None:
        self._directory, self._what, self._disk = directory, what, disk or Disk()
        self._collector = Collector(
            model, optimizers, extra, about or {}, rank=what.rank, world_size=what.world_size
        )
        self._snapshot = Snapshot(what.rank, shard_size_bytes)
        self._on_saved = on_saved
        self._job: _Job | None = None
        self._trained: list[str] = []
        self._debris: Path | None = None
        self._hooks = [one.register_step_pre_hook(self._before_step) for one in optimizers.values()]
        self._hooks += [one.register_step_post_hook(self._after_step) for one in optimizers.values()]
        self._times = _publish_steps(directory, what.rank)
        for first in islice(optimizers.values(), 1):  # a step of the loop is a step of each of them
            self._hooks.append(first.register_step_post_hook(self._step_ended))
        self._warm = False
        self.saved: list[Saved] = []
        self.skipped = 0
        self.last_step = resumed_from
        self._copier = Worker("wmtp-copier")
        self._writer = Worker("wmtp-writer", nice=nice, io_level=io_level)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def busy(self) -> bool:
        """Whether the last save is still being copied or written."""
        return self._job is not None and not self._job.done.is_set()

    def save(self, step: int, *, metrics: Metrics | None = None, wait_if_busy: bool = False) -> bool:
        """Begin to save the state as it is now, after ``step`` optimizer steps.

        Args:
            wait_if_busy: for a save that must not be skipped (the final one, a preemption).

        Returns:
            False if it was skipped, because the last save is still being written.
        """
        if self.busy:
            if not wait_if_busy:
                self.skipped += 1
                return False
            self.wait()
        began_s = time.perf_counter()
        groups, tree = self._collector.collect()
        arena = self._snapshot.capture(groups, self._collector.buffers, self._collector.offsets)
        what = replace(self._what, step=step, metrics=metrics or {}, created_at=datetime.now(UTC))
        saved = Saved(step)
        self._job = _Job(what, tree, saved, began_s, arena, self.last_step)
        self.saved.append(saved)
        self.last_step = step
        self._copier.submit(partial(self._copy, self._job))
        saved.stall_ms += (time.perf_counter() - began_s) * 1e3
        return True

    def fence(self) -> None:
        """Wait until the copy is done. Call it right before ``optimizer.step()``.

        Raises:
            WmtpError: the copy failed.
        """
        job = self._job
        if job is None or job.fenced:
            return
        began_s = time.perf_counter()
        if self._snapshot.order():
            job.landing.wait()
        job.fenced = True
        job.saved.stall_ms += (time.perf_counter() - began_s) * 1e3
        if job.landing.failure is not None:
            name = layout.step_name(job.saved.step)
            raise WmtpError("the snapshot failed", subject=name) from job.landing.failure

    def _before_step(self, *_: object) -> None:
        self.fence()

    def _after_step(self, *_: object) -> None:
        """After the first step optimizers have their state: lay out and touch the host memory then.

        On the copier's thread, so that neither this step nor the first save is slower than the rest.
        """
        if not self._warm:
            self._warm = True
            groups = self._collector.collect()[0]
            self._copier.submit(partial(self._snapshot.prepare, specs_of(groups, self._collector.offsets)))

    def _step_ended(self, *_: object) -> None:
        if self._times is not None:
            self._times.ended()

    def wait(self) -> None:
        """Wait until the last save has ended, well or not."""
        if self._job is not None:
            self._job.done.wait()

    def finish(self, step: int) -> None:
        """Wait for the last save and announce, as the leader, that the run ended as planned.

        Raises:
            WmtpError: the last save failed.
        """
        self.wait()
        if self.saved and self.saved[-1].error is not None:
            raise self.saved[-1].error
        if not self._what.leads:
            return
        path = self._directory.events(self._what.rank)
        with files.disk_errors("announcing to", path):
            queue.put(path, RunFinished(generation=self._what.generation, step=step, rank=self._what.rank))

    def close(self) -> None:
        """End the threads after the save they may be at."""
        self._copier.close()
        self._writer.close()
        for hook in self._hooks:
            hook.remove()
        if self._times is not None:
            self._times.close()

    def _copy(self, job: _Job) -> None:
        """Copy, while the writer writes what is whole, and open the fence."""
        self._writer.submit(partial(self._write, job))
        failure = None
        try:
            self._snapshot.copy(job.landing)
        except BaseException as error:
            failure = error
        job.saved.copy_ms = (time.perf_counter() - job.began_s) * 1e3
        job.landing.end(failure)

    def _write(self, job: _Job) -> None:
        """Write. Whatever goes wrong is kept with the save and told, never lost."""
        name = layout.step_name(job.saved.step)
        try:
            self._clear(unless=self._directory.temporary(job.what.step, job.what.generation))
            record = self._disk.run(write_checkpoint(self._directory, self._sources(job), job.what))
            job.saved.size_bytes = record.size_bytes
            job.saved.local_ms = (time.perf_counter() - job.began_s) * 1e3
            self._compare_with_last(job, record)
        except WmtpError as error:
            job.saved.error = error
        except BaseException as error:
            job.saved.error = WmtpError(f"{type(error).__name__}: {error}", doing="saving", subject=name)
        finally:
            if job.saved.error is not None:
                self.last_step = job.last_step
                log.error("%s was not saved: %s", name, job.saved.error)
                self._debris = self._directory.temporary(job.what.step, job.what.generation)
                self._clear()
            job.done.set()
            self._tell(job.saved)

    def _clear(self, *, unless: Path | None = None) -> None:
        """What a failed save left takes the room that the next one needs; the leader clears it for all ranks.

        Once more before the next save, for then no rank writes to it any more.

        Args:
            unless: where that save goes: others may have begun to write there.
        """
        debris = self._debris
        if debris is None or debris == unless or not self._what.leads:
            return
        try:
            files.remove_tree(debris)
        except OSError as error:
            log.error("%s can't be removed: %s", debris, error.strerror)

    def _tell(self, saved: Saved) -> None:
        """A listener's error must end neither the thread nor the saves to come."""
        try:
            if self._on_saved is not None:
                self._on_saved(saved)
        except Exception:
            log.exception("telling of %s failed", layout.step_name(saved.step))

    def _compare_with_last(self, job: _Job, record: NodeRecord | RankRecord) -> None:
        """The same weights twice mean that nothing trains, or that something else is being saved."""
        trained = [one.crc64nvme for one in record.files if one.path in job.arena.trained]
        job.saved.stale = bool(trained) and trained == self._trained
        self._trained = trained
        if job.saved.stale:
            log.warning("%s has the very weights of the save before", layout.step_name(job.saved.step))

    def _sources(self, job: _Job) -> list[FileSource]:
        """The files of the checkpoint: shards as they lie, or will lie, in the arena, and the tree."""
        arena = job.arena
        shards = [
            FileSource(
                image.file_name,
                arena.bytes_of(image),
                arena.bytes_of(image, padded=True),
                ready=partial(_whole, job.landing, number + 1),
            )
            for number, image in enumerate(arena.images)
        ]
        tree = encode_tree(job.tree)
        return [*shards, FileSource(layout.state_file(self._what.rank), memoryview(tree))]


def _whole(landing: Landing, files: int) -> None:
    """Wait until so many files are copied; whatever kept them from it is raised."""
    landing.wait(files)
    if landing.failure is not None:
        raise landing.failure


def _publish_steps(directory: RunDirectory, rank: int) -> StepTimes | None:
    """Let the uploader see how long steps take, so that it can stand back; None where that can't be."""
    try:
        return StepTimes(path_of(directory, rank))
    except OSError as error:
        log.warning("the uploader can't see how long steps take: %s", error)
        return None
