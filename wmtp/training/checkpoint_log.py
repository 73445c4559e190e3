"""How each checkpoint gets on: lines for people, measures and places for trackers, a few words for the bar.

A checkpoint is local once this disk has it, durable once the store has it: the uploader's status tells.
"""

import time
from collections.abc import Callable, Iterator

from uploader import layout
from uploader.errors import CorruptError
from uploader.location import Location
from uploader.status import Status, read_status
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.checkpoint.saver import Saved
from wmtp.training.progress import Progress
from wmtp.training.trackers import Trackers


class CheckpointLog:
    """Watches the checkpoints of a run that has been restored.

    Args:
        location: of the run, where its checkpoints become durable.
        now_s: seconds since the epoch, as the uploader's clock.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        location: Location,
        trackers: Trackers,
        progress: Progress,
        *,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        assert checkpointer.started is not None  # noqa: S101
        self._checkpointer, self._location, self._started = checkpointer, location, checkpointer.started
        self._trackers, self._progress, self._now_s = trackers, progress, now_s
        self._began_s: dict[int, float] = {}
        self._told, self._skipped = 0, 0
        self._durable: set[tuple[int, int]] = set()
        self._newest_local, self._newest_durable = self._started.step, 0
        self._lag: int | None = None
        self._status_version = (0, 0)

    def look(self, step: int) -> None:
        """Tell what came further since the last look. Call it after each ``save``; it costs microseconds.

        Args:
            step: where training is.
        """
        self._note_new_saves(step)
        for saved in self._ended_saves():
            self._tell_of(saved)
        status = self._changed_status()
        if status is not None:
            self._tell_durable(status)
        self._tell_lag(step)
        for line in (*self._checkpointer.news(), *self._trackers.news()):
            self._progress.note(line)

    def _note_new_saves(self, step: int) -> None:
        for saved in self._checkpointer.saved[len(self._began_s) :]:
            self._began_s[saved.step] = self._now_s()
        if self._checkpointer.skipped > self._skipped:
            self._skipped = self._checkpointer.skipped
            self._progress.note(f"step_{step}  skipped: the last save is still being written")

    def _ended_saves(self) -> Iterator[Saved]:
        """Those that ended since the last look, well or not, in order."""
        while self._told < len(self._checkpointer.saved):
            saved = self._checkpointer.saved[self._told]
            if saved.error is None and (saved.local_ms is None or saved.copy_ms is None):
                return
            self._told += 1
            yield saved

    def _tell_of(self, saved: Saved) -> None:
        name = layout.step_name(saved.step)
        if saved.error is not None:
            self._progress.note(f"{name}  not saved: {saved.error}")
            return
        self._progress.note(
            f"{name}  local    {saved.size_bytes / 1e6:.1f} MB in {saved.local_ms:.0f} ms, "
            f"copied in {saved.copy_ms:.1f} ms, stalled {saved.stall_ms:.2f} ms"
        )
        if saved.stale:
            self._progress.note(
                f"{name}  WARNING: the weights are those of the save before: nothing trains, "
                "or the checkpointer holds another model"
            )
        self._newest_local = saved.step
        measures = ("stall_ms", "copy_ms", "local_ms", "size_bytes")
        self._trackers.log_checkpoint(
            saved.step,
            {f"checkpoint/{name}": getattr(saved, name) for name in measures},
            {f"checkpoint/{name}": f"file://{self._checkpointer.directory.step(saved.step)}"},
        )

    def _changed_status(self) -> Status | None:
        """What this start's uploader says, where that is something new."""
        path = self._checkpointer.directory.status_file
        try:
            found = path.stat()
            version = (found.st_mtime_ns, found.st_ino)
            if version == self._status_version:
                return None
            status = read_status(path)
        except (FileNotFoundError, CorruptError):
            return None  # its writer will replace it
        self._status_version = version
        return status if status is not None and status.generation == self._started.run.generation else None

    def _tell_durable(self, status: Status) -> None:
        self._newest_durable = status.newest_durable_step or 0
        for one in status.recent:
            if (one.step, one.generation) in self._durable:
                continue
            self._durable.add((one.step, one.generation))
            name, measures = layout.step_name(one.step), {"checkpoint/upload_s": one.upload_s}
            if one.step in self._began_s:
                measures["checkpoint/durable_s"] = one.at.timestamp() - self._began_s[one.step]
            place = str(self._location.join(name))
            labels = {f"checkpoint/{name}": place, "checkpoint/newest_durable": place}
            self._trackers.log_checkpoint(one.step, dict(measures), labels)

    def _tell_lag(self, step: int) -> None:
        """The durability lag: so many steps the loss of this disk would cost."""
        lag = max(0, self._newest_local - self._newest_durable)
        if lag == self._lag:
            return
        self._lag = lag
        self._trackers.log_checkpoint(step, {"checkpoint/lag_steps": lag})
        durable = layout.step_name(self._newest_durable) if self._newest_durable else "none"
        self._progress.checkpoints = f"durable {durable}, lag {lag}" if lag else f"durable {durable}"
