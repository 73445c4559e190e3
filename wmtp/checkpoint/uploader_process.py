"""The uploader of a run as its own process in its own session: started, watched, waited for.

It outlives the trainer: it drains what is left and ends by itself. One serves a run directory; where one is
there already, that one is used.
"""

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from enum import Enum

from uploader import files, layout
from uploader.below import private
from uploader.errors import CorruptError, DiskError, NotDurable
from uploader.layout import RunDirectory
from uploader.status import Status, read_status

POLL_S = 0.1
REAP_S = 5.0
LOOK_EVERY_S = 1.0
"""How often a trainer that goes on looks whether its uploader lives."""
RESTARTS = 3
"""How often an uploader that dies is started again, until the next save and once more at the end."""


class Uploading(Enum):
    """What becomes of the checkpoints after they are on this disk."""

    WAIT = "start an uploader and wait for it at the end"
    DETACHED = "start an uploader and leave it at the end"
    NONE = "a sidecar uploads"


class UploaderProcess:
    """Starts the uploader of a run directory and tells how it is doing.

    Args:
        nice: how far it stands back for others on the CPU (0 to 19).
        inherited: descriptors that the uploader keeps open as long as it lives.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        directory: RunDirectory,
        generation: int,
        *,
        nice: int = 10,
        inherited: Sequence[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory, self._generation = directory, generation
        self._nice, self._inherited, self._clock = nice, inherited, clock
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: set[tuple[int, int]] = set()
        self._error: str | None = None
        self._restarts, self._looked_s = 0, -math.inf
        self._lines: list[str] = []

    def ensure(self) -> None:
        """Start an uploader unless one is running or serves the directory.

        Raises:
            DiskError: it can't be started.
        """
        if not self._is_served():
            self._start()

    def look_after(self, *, anew: bool = False) -> None:
        """Start another in place of one that died, as far as that helps; what happened is among the news.

        Called at each step: it looks once in ``LOOK_EVERY_S`` and raises nothing.

        Args:
            anew: look now, and give one that was given up another chance.
        """
        now_s = self._clock()
        if not anew and now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        try:
            with files.disk_errors("looking after the uploader of", self._directory.path):
                self._look_after(anew)
        except DiskError as error:
            self._lines.append(f"uploader: {error}")

    def _look_after(self, anew: bool) -> None:
        if anew:
            self._restarts = 0
        if self._is_served() or not (anew or self._may_revive()):
            return
        self._restarts += not anew
        if self._process is not None:
            self._lines.append(f"uploader: {_how_it_ended(self._process)}, and is started again")
        self._start()

    def _may_revive(self) -> bool:
        """Whether another one would help: not where it failed, or dies again and again."""
        status = self.status()
        return self._restarts < RESTARTS and (status is None or status.state != "failed")

    def _start(self) -> None:
        with files.disk_errors("starting the uploader of", self._directory.path):
            files.make_directory(self._directory.uploader_directory)
            options = ["--watch", str(self._directory.path), "--nice", str(self._nice)]
            with open(self._directory.uploader_log, "ab", opener=private) as log:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "wmtp", "uploader", *options],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C and the end of the terminal are not meant for it
                    pass_fds=self._inherited,
                )

    def _is_served(self) -> bool:
        is_alive = self._process is not None and self._process.poll() is None
        return is_alive or files.is_locked(self._directory.uploader_lock)

    def status(self) -> Status | None:
        """What the uploader of this generation says; None while it says nothing."""
        try:
            status = read_status(self._directory.status_file)
        except CorruptError:
            return None  # its writer will replace it
        return status if status is not None and status.generation == self._generation else None

    def news(self) -> Iterator[str]:
        """A line for each step that became durable, and for each new trouble, since the last call."""
        lines, self._lines = self._lines, []
        yield from lines
        status = self.status()
        if status is None:
            return
        for one in status.recent:
            if (one.step, one.generation) not in self._seen:
                self._seen.add((one.step, one.generation))
                megabytes = one.size_bytes / 1e6
                yield f"{layout.step_name(one.step)}  durable  {megabytes:.1f} MB in {one.upload_s:.2f} s"
        if status.error != self._error:
            self._error = status.error
            if status.error is not None:
                yield f"uploader: {status.error}"

    def wait_until_drained(
        self, last_step: int | None, *, timeout_s: float, say: Callable[[str], None]
    ) -> Status | None:
        """Wait until everything of a finished run is durable and pruned.

        Args:
            last_step: the newest step that was saved; None if there is none.

        Raises:
            NotDurable: the uploader gave up, or the time is over. Nothing is lost: the message says where
                the checkpoint is and what to do.
        """
        deadline_s = time.monotonic() + timeout_s
        self._restarts = 0
        while True:
            served = self._is_served()
            for line in self.news():
                say(line)
            status = self.status()
            if status is not None and status.state == "drained" and _covers(status, last_step):
                self._reap()
                return status
            if not served:
                if not self._may_revive():
                    problem = status.error if status is not None else None
                    raise self._not_durable(problem or "the uploader dies again and again")
                self._restarts += 1
                self._start()
            if time.monotonic() > deadline_s:
                problem = status.error if status is not None else None
                raise self._not_durable(problem or f"not done within {timeout_s:.0f} s")
            time.sleep(POLL_S)

    def _reap(self) -> None:
        """A drained uploader ends at once; see it end."""
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(REAP_S)

    def _not_durable(self, problem: str) -> NotDurable:
        return NotDurable(
            problem,
            doing="waiting for the last checkpoint of",
            subject=str(self._directory.path),
            hint=f"it is safe on this disk; continue with `wmtp uploader --watch {self._directory.path}` "
            f"(its log: {self._directory.uploader_log})",
        )


def _how_it_ended(process: "subprocess.Popen[bytes]") -> str:
    code = process.returncode
    return f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def _covers(status: Status, last_step: int | None) -> bool:
    newest = status.newest_durable_step
    return last_step is None or (newest is not None and newest >= last_step)
