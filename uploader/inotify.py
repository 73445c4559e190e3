"""Wait for a change in a directory without a thread and without polling: inotify, by way of the C library.

A process that waits here is not woken until something changes. Where the system has no inotify, or no watch
left, there is nothing to wait for, and whoever waits has to look again after a while, as it has to anyway.
"""

import ctypes
import errno
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

log = logging.getLogger("uploader")

_ATTRIB, _CLOSE_WRITE, _MOVED, _CREATE, _DELETE = 0x4, 0x8, 0xC0, 0x100, 0x200
_DELETE_SELF, _MOVE_SELF = 0x400, 0x800
CHANGES = _ATTRIB | _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF
"""Not each write: a log that a trainer holds open and appends to is none of ours."""


EVENT = struct.Struct("iIII")
"""Watch, mask, cookie, and the size of the name that follows."""


class Changes:
    """The changes in one directory. Of hidden files, such as locks and what is half written, none counts.

    Args:
        descriptor: of inotify; None where there is none.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    async def wait(self, timeout_s: float) -> None:
        """Wait for a change, and no longer than so many seconds."""
        with anyio.move_on_after(timeout_s):
            if self._descriptor is None:
                await anyio.sleep_forever()
            else:
                while not self._drain(self._descriptor):
                    await anyio.wait_readable(self._descriptor)

    def _drain(self, descriptor: int) -> bool:
        """Take all that is told; whether any of it counts. What it was does not matter: the disk is read."""
        counts = False
        try:
            while True:
                counts |= any(not name.startswith(b".") for name in names_in(os.read(descriptor, 64 * 1024)))
        except BlockingIOError:
            return counts


def names_in(events: bytes) -> Iterator[bytes]:
    """What changed: names in the directory, empty for the directory itself."""
    at = 0
    while at < len(events):
        *_, size_bytes = EVENT.unpack_from(events, at)
        at += EVENT.size + size_bytes
        yield events[at - size_bytes : at].rstrip(b"\0")


@contextmanager
def watching(path: Path) -> Iterator[Changes]:
    """The changes in a directory from now on; not those below its subdirectories.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "inotify_init1"):
        yield Changes(None)
        return
    descriptor = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        watch = library.inotify_add_watch(descriptor, os.fsencode(path), CHANGES)
        problem = ctypes.get_errno() if descriptor < 0 or watch < 0 else 0
        if problem == errno.ENOENT:
            raise FileNotFoundError(problem, os.strerror(problem), str(path))
        if problem:
            log.warning("%s: no notifications (%s); looking again and again", path, os.strerror(problem))
        yield Changes(None if problem else descriptor)
    finally:
        if descriptor >= 0:
            os.close(descriptor)
