"""A tracker on a thread of its own: whatever it does, training neither waits for it nor ends by it.

What fails is told once and tried again, until it succeeds or the run has ended and its time is over. What
finds no room, or is refused for good, is counted and told.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

from wmtp.training.tracking import Entry, Outcome, Refused, Tracker

WAITING = 10_000
"""So many entries wait at most: at ten steps a second, a quarter of an hour without the service."""

BATCH = 500
GATHER_S = 1.0
"""From one batch to the next, so that quick steps are written together."""

LONGEST_WAIT_S = 30.0
"""Between two attempts; the first waits are ``GATHER_S``, twice that, and so on."""

FLUSH_S = 15.0
"""How long the end of a run waits for what is left."""


class Background:
    """Writes to a tracker in the background.

    Args:
        name: of the tracker, for messages.
        tell: takes a line for people; called on any thread.
        waiting: how many entries wait at most.
        gather_s: from one batch to the next, and from a first failure to the next attempt.
        flush_s: how long ``close`` waits.
    """

    def __init__(
        self,
        tracker: Tracker,
        name: str,
        tell: Callable[[str], None],
        *,
        waiting: int = WAITING,
        gather_s: float = GATHER_S,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._tracker, self._name, self._tell = tracker, name, tell
        self._limit, self._gather_s, self._flush_s = waiting, gather_s, flush_s
        self._entries: deque[Entry] = deque()
        self._changed = threading.Condition()
        self._tried, self._ending, self._over = threading.Event(), threading.Event(), threading.Event()
        self._outcome = Outcome.FAILED
        self._told: set[str] = set()
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"wmtp-{name}", daemon=True)
        self._thread.start()

    def wait_until_tried(self, timeout_s: float) -> None:
        """Wait until the tracker was opened, or failed to be: not for long, for training is to begin."""
        self._tried.wait(timeout_s)

    def write(self, entries: Iterable[Entry]) -> None:
        """Have entries written in a while; they are dropped where too many wait already."""
        with self._changed:
            for entry in entries:
                if len(self._entries) < self._limit:
                    self._entries.append(entry)
                else:
                    self._drop(1, "too many are waiting")
            self._changed.notify()

    def close(self, outcome: Outcome) -> None:
        """Write what is left and how the run ended, for as long as ``flush_s``."""
        self._outcome = outcome
        with self._changed:
            self._ending.set()
            self._changed.notify()
        self._thread.join(self._flush_s)
        if self._thread.is_alive():
            left = len(self._entries)
            missing = f"{left} entries and how the run ended are not there"
            self._tell(f"{self._name}: given up after {self._flush_s:g} s: {missing}")
        self._over.set()
        if self._dropped:
            self._tell(f"{self._name}: {self._dropped} entries were dropped in all")

    def _run(self) -> None:
        self._attempt(partial(self._tracker.write, []), 0)
        while batch := self._next():
            self._attempt(partial(self._tracker.write, batch), len(batch))
            with self._changed:
                for _ in batch:
                    self._entries.popleft()
            self._ending.wait(self._gather_s)
        self._attempt(lambda: self._tracker.close(self._outcome), 0)

    def _next(self) -> Sequence[Entry]:
        """The entries to write next, which go on waiting till they are written; none at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._entries or self._ending.is_set())
            return list(islice(self._entries, BATCH))

    def _attempt(self, act: Callable[[], None], entries: int) -> None:
        """Do it, again and again, with ever longer waits that get short when the run has ended."""
        wait_s = self._gather_s
        while not self._over.is_set():
            try:
                act()
                self._succeeded()
                return
            except Refused as error:
                self._drop(entries, str(error))
                return
            except Exception as error:
                self._tell_once("failing", f"{error}; training goes on, and it is tried again")
            finally:
                self._tried.set()
            if not self._ending.wait(wait_s):
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                self._over.wait(self._gather_s)

    def _succeeded(self) -> None:
        if self._told:
            self._tell(f"{self._name}: it works again")
        self._told.clear()

    def _drop(self, entries: int, why: str) -> None:
        with self._changed:
            self._dropped += entries
            self._tell_once("dropping", f"entries are dropped: {why}")

    def _tell_once(self, kind: str, problem: str) -> None:
        """Once, until something succeeds: the words of an error may be others each time."""
        if kind not in self._told:
            self._tell(f"{self._name}: {problem}")
        self._told.add(kind)
