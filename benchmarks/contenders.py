"""Every way of saving that is compared, behind one small interface; each imports its own library."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.workload import Workload

BUCKET = "bench"


@dataclass
class Context:
    """What a contender is given.

    Attributes:
        directory: its own, empty, on the disk that is measured.
        sink_url: the S3 server that only counts.
        server_url: a real S3 server, whose credentials the environment names; None where there is none.
    """

    directory: Path
    workload: Workload
    sink_url: str
    server_url: str | None

    def state(self) -> dict[str, Any]:
        """The state as a loop gets it; tensors are the live ones."""
        return {"model": self.workload.model.state_dict(), "optim": self.workload.optimizer.state_dict()}


@dataclass
class Contender:
    """Saves nothing: the loop without checkpoints.

    Attributes:
        local_ms: for each save, from the call until it was complete on the local disk, where there is such a
            moment.
        copy_ms: for each save, from the call to the end of the copy, where that goes on in the background.
    """

    context: Context
    local_ms: list[float] = field(default_factory=list)
    copy_ms: list[float] = field(default_factory=list)

    def warm_up(self) -> None:
        """Prepare for the first save, where there is a call for it; the optimizer has its state."""

    def save(self, step: int) -> None:
        """Save, or begin to. Runs on the training thread."""

    def fence(self) -> None:
        """In front of ``optimizer.step()``: wait for what must not change under it."""

    def idle(self) -> bool:
        """Whether nothing of the last save goes on any more."""
        return True

    def tidy(self) -> None:
        """Between measurements: remove what was saved, and let writeback end."""

    def close(self) -> None:
        """End."""

    def path(self, step: int) -> Path:
        """Where a save goes."""
        return self.context.directory / f"step_{step}"

    def remove_saves(self) -> None:
        """Remove what lies in the directory; dirty pages go with it, unwritten."""
        for left in self.context.directory.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()


class Ours(Contender):
    """``Checkpointer`` with its uploader, which uploads to the null sink and prunes."""

    uploads = True

    def __init__(self, context: Context) -> None:
        from uploader.retention import Retention
        from uploader.settings import StorageSettings
        from wmtp.checkpoint.checkpointer import Checkpointer, Options
        from wmtp.checkpoint.uploader_process import Uploading

        super().__init__(context)
        self._last = 0
        options = Options(
            storage=StorageSettings(
                endpoint_url=context.sink_url, region="us-east-1", addressing_style="path"
            ),
            retention=Retention(keep_last=1),
            uploading=Uploading.WAIT if self.uploads else Uploading.NONE,
            say=lambda line: None,
        )
        self._checkpointer = Checkpointer(
            context.directory / f"run-{os.getpid()}",
            model=context.workload.model,
            optimizer=context.workload.optimizer,
            to=f"s3://{BUCKET}/ours" if self.uploads else None,
            options=options,
        )
        self._checkpointer.restore(None)

    def save(self, step: int) -> None:
        assert self._checkpointer.save(step), "the save before should have ended"
        self._last = step

    def fence(self) -> None:
        self._checkpointer.fence()

    def idle(self) -> bool:
        from uploader.status import read_status

        saved = self._checkpointer.saved
        if saved and saved[-1].local_ms is None:
            assert saved[-1].error is None, saved[-1].error
            return False
        self.local_ms = [one.local_ms for one in saved if one.local_ms is not None]
        self.copy_ms = [one.copy_ms for one in saved if one.copy_ms is not None]
        if not self.uploads or not saved:
            return True
        status = read_status(self._checkpointer.directory.status_file)
        return status is not None and status.newest_durable_step == self._last and status.state == "waiting"

    def tidy(self) -> None:
        if not self.uploads:
            for step in self._checkpointer.directory.path.glob("step_*"):
                shutil.rmtree(step)

    def close(self) -> None:
        if self.uploads:
            self._checkpointer.finish()
        self._checkpointer.close()


class OursLocal(Ours):
    """``Checkpointer`` alone: what stays when nothing is uploaded."""

    uploads = False
