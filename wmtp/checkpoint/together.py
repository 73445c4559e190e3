"""Several ranks load one checkpoint: rank 0 decides which, and all load it, or none goes on.

Rank 0 finds out on its own what to load, takes the run over and fetches. Whenever it would load, it tells the
others where the checkpoint lies; they load, too, and say how that went. At the end it tells them how the run
began, or that it does not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uploader.errors import CorruptError, StartRefused, WmtpError
from uploader.layout import RunDirectory
from uploader.record import NodeRecord
from uploader.run import RunFile
from uploader.watch import read_step
from wmtp.checkpoint.fetch import Load
from wmtp.checkpoint.resume import Started
from wmtp.ranks import Ranks


class LoadingTogether:
    """What ranks say to each other while a run begins.

    Args:
        load: loads a checkpoint into this rank's training state.
    """

    def __init__(self, ranks: Ranks, load: Load) -> None:
        self._ranks, self._load = ranks, load
        self._told = False

    @contextmanager
    def leading(self) -> Iterator[Load]:
        """For rank 0: gives a ``load`` that all ranks carry out. If the start fails, they are told."""
        try:
            yield self._load_everywhere
        except BaseException as error:
            if not self._told:
                self._ranks.last_word({"failed": str(error) or type(error).__name__})
            raise

    def tell_started(self, started: Started) -> None:
        """The last word of rank 0."""
        self._told = True
        run = started.run.model_dump(mode="json")
        self._ranks.from_first(
            {"run": run, "step": started.step, "source": started.source, "skipped": started.skipped}
        )

    def follow(self, directory: RunDirectory) -> Started:
        """For the other ranks: do what rank 0 says, until the run has begun.

        Raises:
            StartRefused: rank 0 could not begin; or this rank does not see its directory.
        """
        while True:
            said = self._ranks.from_first()
            if "failed" in said:
                self._ranks.acknowledge()
                raise StartRefused(said["failed"], doing="starting with", subject="rank 0")
            if "run" in said:
                break
            self._ranks.from_all(_outcome(self._try_to_load(Path(said["path"]), None)))
        if not directory.run_file.exists():
            problem = "this rank does not see it: all ranks must be on one machine"
            raise StartRefused(problem, doing="starting on", subject=str(directory.path))
        return Started(RunFile.model_validate(said["run"]), said["step"], said["source"], said["skipped"])

    def _load_everywhere(self, path: Path, record: NodeRecord) -> None:
        """Load on all ranks.

        Raises:
            CorruptError: the checkpoint is not intact, as one of them found.
            WmtpError: one of them refused it.
        """
        self._ranks.from_first({"path": str(path)})
        own = self._try_to_load(path, record)
        outcomes = self._ranks.from_all(_outcome(own))
        if own is not None:
            raise own
        for rank, said in enumerate(outcomes):
            if said is not None:
                kind = CorruptError if said["corrupt"] else StartRefused
                raise kind(said["problem"], doing=f"loading on rank {rank}", subject=str(path))

    def _try_to_load(self, path: Path, record: NodeRecord | None) -> Exception | None:
        """Load; what was wrong, or None. Whatever it is, the others wait to hear of it."""
        try:
            self._load(path, record or read_step(path).record)
        except Exception as error:
            return error
        return None


def _outcome(error: Exception | None) -> dict[str, Any] | None:
    """What the other ranks are told of a load."""
    if error is None:
        return None
    problem = str(error) if isinstance(error, WmtpError) else f"{type(error).__name__}: {error}"
    return {"corrupt": isinstance(error, CorruptError), "problem": problem}
