"""Threads that live as long as the saver, and how much of the machine they may take."""

import ctypes
import logging
import os
import platform
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger("wmtp.checkpoint")

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
"""The number of the system call, which has no wrapper in the C library."""

_WHO_THREAD, _CLASS_SHIFT, _BEST_EFFORT = 1, 13, 2


class Worker:
    """One thread that does what it is given, in order.

    Args:
        nice: how far the thread stands back for others on the CPU (0 to 19).
        io_level: its place in the disk scheduler's best-effort class (0 to 7, 7 is last); None leaves it.
    """

    def __init__(self, name: str, *, nice: int = 0, io_level: int | None = None) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._nice, self._io_level = nice, io_level
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], None]) -> None:
        """Have a task done after those before it."""
        self._tasks.put(task)

    def close(self) -> None:
        """Do what was submitted, then end."""
        self._tasks.put(None)
        self._thread.join()

    def _run(self) -> None:
        if self._nice:
            _lower_cpu_priority(self._nice)
        if self._io_level is not None:
            _lower_io_priority(self._io_level)
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception:
                log.exception("a task of %s failed", self._thread.name)  # the next one has its turn


def _lower_cpu_priority(nice: int) -> None:
    """Of this thread alone, where the system can (Linux)."""
    if platform.system() == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)


def _lower_io_priority(level: int) -> None:
    """Of this thread alone. Without effect under a disk scheduler that knows no priorities."""
    number = _IOPRIO_SET.get(platform.machine())
    if number is None or platform.system() != "Linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, _WHO_THREAD, 0, _BEST_EFFORT << _CLASS_SHIFT | level) != 0:
        log.debug("the writer's I/O priority stays: %s", os.strerror(ctypes.get_errno()))
