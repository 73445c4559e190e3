"""Scalars for TensorBoard."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uploader.files import make_directory
from wmtp.training.tracking import Entry, Outcome

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes event files into a directory, when first written to; labels are not for it.

    A resumed run says from which step on it writes: TensorBoard drops what an earlier start wrote of those.
    """

    def __init__(self, directory: Path, *, resume_step: int) -> None:
        self._directory, self._resume_step = directory, resume_step
        self._writer: SummaryWriter | None = None

    def write(self, entries: Sequence[Entry]) -> None:
        """Write entries, to the disk. Raises what the package raises."""
        writer = self._writer = self._writer or self._opened()
        for entry in entries:
            for name, value in entry.scalars():
                writer.add_scalar(name, value, entry.step, walltime=entry.at_s)
        writer.flush()

    def close(self, outcome: Outcome) -> None:
        """Close the file; how the run ended is not in it."""
        if self._writer is not None:
            self._writer.close()

    def _opened(self) -> "SummaryWriter":
        """A new file, for this user only, like all we write."""
        from torch.utils.tensorboard import SummaryWriter  # takes a while: not on the training thread

        make_directory(self._directory)
        writer = SummaryWriter(str(self._directory), purge_step=self._resume_step + 1)
        writer.flush()
        for file in self._directory.glob("events.out.tfevents.*"):
            file.chmod(0o600)
        return writer
