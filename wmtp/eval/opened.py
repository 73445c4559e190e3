"""A checkpoint to look at: read and verified from a run's directory or its store, changing nothing there."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio

from uploader import files
from uploader.layout import RunDirectory, state_file
from uploader.location import Location
from uploader.record import NodeRecord
from uploader.run import RunFile
from uploader.settings import StorageSettings
from wmtp.checkpoint.fork import load_fork
from wmtp.checkpoint.load import read_checkpoint
from wmtp.data.tokenizer import ByteTokenizer
from wmtp.model.mtp import MTPModel
from wmtp.model.pretrained import model_of


@dataclass(frozen=True)
class Opened:
    """A model as it was at a step.

    Attributes:
        source: where it was read from.
        about: what the run wrote down of itself: ``model``, ``data``, ``seed``.
    """

    model: MTPModel
    step: int
    source: str
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def tokenizer(self) -> str:
        """The name of the run's tokenizer."""
        return str(self.about.get("data", {}).get("tokenizer", ByteTokenizer.name))


def open_checkpoint(
    location: Location,
    storage: StorageSettings,
    scratch: Path,
    say: Callable[[str], None],
    *,
    averaged: bool = False,
) -> Opened:
    """The model of a step, in evaluation mode on the CPU.

    Args:
        location: of a run (its newest intact step) or of one of its steps.
        scratch: a directory with room for a download, which is deleted again.
        averaged: with the averages of its weights, not the weights.

    Raises:
        NothingToResume: there is no checkpoint.
        SettingsError: it holds no averages.
        CorruptError: none there is intact, or it holds no model of this program.
        StoreError: the store can't be reached, or refuses.
    """
    found: list[Opened] = []

    def load(path: Path, record: NodeRecord) -> None:
        parts = ("model-", "extra-", state_file(0)) if averaged else ("model-", state_file(0))
        wanted = [one for one in record.files if one.path.startswith(parts)]
        loaded = read_checkpoint(path, record.model_copy(update={"files": wanted}))
        model = model_of(loaded, path, averaged=averaged).eval()
        found.append(Opened(model, record.step, "", loaded.tree.get("about", {})))

    run = RunFile(run=location.name or "run", destination=str(location), storage=storage)
    with files.disk_errors("reading to", scratch):
        files.make_directory(scratch)
        with tempfile.TemporaryDirectory(dir=scratch, prefix="checkpoint-") as directory:
            _, source = anyio.run(partial(load_fork, location, run, RunDirectory(Path(directory)), load, say))
    last = found[-1]
    return Opened(last.model, last.step, source, last.about)
