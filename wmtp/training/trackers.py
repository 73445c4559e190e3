"""All trackers of a run as one object for the loop: JSON lines at once, the others in the background."""

import importlib.util
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

from uploader.errors import DiskError, SettingsError
from wmtp.checkpoint.resume import Started
from wmtp.settings import Resolved
from wmtp.training.background import Background
from wmtp.training.mlflow_run import MlflowRun, TrackedRun, about_run
from wmtp.training.tensorboard import TensorBoard
from wmtp.training.tracking import Entry, Metric, MetricsLog, Outcome, Tracker

OPENING_S = 10.0
"""How long the first step waits for MLflow to know the run, so that the first checkpoint holds its id."""


class Trackers:
    """Writes to all of them; whatever goes wrong there is told, and never ends training.

    Args:
        log: gets every step at once.
        background: get the same, and the checkpoints.
        say: takes lines for people before and after training.
        told: lines for people that trackers put there from their threads.

    Attributes:
        outcome: how the run ends if nothing is raised.
    """

    def __init__(
        self,
        log: Tracker,
        background: Sequence[Background] = (),
        *,
        say: Callable[[str], None],
        told: "SimpleQueue[str] | None" = None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self._log, self._background = log, background
        self._say, self._told, self._now_s = say, SimpleQueue() if told is None else told, now_s
        self._disk_error = ""
        self.outcome = Outcome.FINISHED

    def __enter__(self) -> Self:
        for line in self.news():
            self._say(line)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        outcome = self.outcome
        if kind is not None:
            outcome = Outcome.KILLED if issubclass(kind, KeyboardInterrupt) else Outcome.FAILED
        self._to_disk(lambda: self._log.close(outcome))
        for one in self._background:
            one.close(outcome)
        for line in self.news():
            self._say(line)

    def log(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """What was measured in a step."""
        entry = Entry(step, metrics, self._now_s())
        self._to_disk(lambda: self._log.write([entry]))
        for one in self._background:
            one.write([entry])

    def log_checkpoint(
        self, step: int, metrics: Mapping[str, Metric], labels: Mapping[str, str] | None = None
    ) -> None:
        """What is known of a checkpoint, whenever that is: ``metrics.jsonl`` has just the steps, in order."""
        entry = Entry(step, metrics, self._now_s(), labels or {})
        for one in self._background:
            one.write([entry])

    def news(self) -> Iterator[str]:
        """A line for each trouble, and each end of one, since the last call."""
        while True:
            try:
                yield self._told.get_nowait()
            except Empty:
                return

    def _to_disk(self, act: Callable[[], None]) -> None:
        """A disk that is full must not end a training run: it is told once, and tried again each step."""
        try:
            act()
            self._disk_error = ""
        except DiskError as error:
            if str(error) != self._disk_error:
                self._told.put(str(error))
            self._disk_error = str(error)


def check_trackers(settings: Resolved) -> None:
    """See that what is enabled can be used.

    Raises:
        SettingsError: its package is not installed.
    """
    config = settings.config
    if config.mlflow.enabled and not _installed("mlflow"):
        raise SettingsError(
            "MLflow is not installed", subject="mlflow.enabled", hint="pip install 'wmtp[mlflow]'"
        )
    if config.tensorboard.enabled and not _installed("tensorboard"):
        raise SettingsError(
            "TensorBoard is not installed", subject="tensorboard.enabled", hint="pip install tensorboard"
        )


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def open_trackers(
    settings: Resolved, tracked: TrackedRun, started: Started, say: Callable[[str], None]
) -> Trackers:
    """The trackers that the settings ask for.

    Args:
        tracked: which MLflow run this one is, as its checkpoint says.
        started: how this start of it began.

    Raises:
        DiskError, CorruptError: see ``MetricsLog``.
    """
    log = MetricsLog(settings.local_dir / "metrics.jsonl", resume_step=started.step)
    told: SimpleQueue[str] = SimpleQueue()
    background = []
    if settings.config.mlflow.enabled:
        about = about_run(settings, started.run.generation)
        run = MlflowRun(settings.config.mlflow, tracked, about, told.put)
        background.append(Background(run, "MLflow", told.put))
        background[-1].wait_until_tried(OPENING_S)
    if _wants_tensorboard(settings):
        board_directory = settings.local_dir / "tensorboard"
        if settings.tensorboard is not None:
            board_directory = settings.tensorboard / settings.run_name
        board = TensorBoard(board_directory, resume_step=started.step)
        background.append(Background(board, "TensorBoard", told.put))
    return Trackers(log, background, say=say, told=told)


def _wants_tensorboard(settings: Resolved) -> bool:
    wanted = settings.config.tensorboard.enabled
    return _installed("tensorboard") if wanted is None else wanted
