"""The durable queue: one append-only file a rank, from the trainer's writer thread to the uploader.

The file holds what is not acknowledged. A reader keeps no position of its own: after a restart it reads
the file from its start, and everything it does for an event may be done twice. When every event of a
file is acknowledged the file goes, under the lock that appending takes, so no event falls in between.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from uploader.below import private
from uploader.events import Event, decoder

log = logging.getLogger("uploader")

READ_BYTES = 16 * 1024**2
"""Taken of the file at once; what is left comes with the next call."""


def put(path: Path, event: Event, *, durable: bool = True) -> None:
    """Append an event and make it durable. Called on the writer thread, never on the training thread.

    A line that a crash tore is closed first, so that it can't swallow this one.

    Raises:
        OSError: the disk refused.
    """
    line = event.model_dump_json().encode() + b"\n"
    with _locked(path, os.O_RDWR | os.O_CREAT) as descriptor:
        size = os.fstat(descriptor).st_size
        torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        _write_all(descriptor, b"\n" + line if torn else line, size)
        if durable:
            os.fsync(descriptor)


def _write_all(descriptor: int, data: bytes, at: int) -> None:
    """On a disk that is getting full a write may take less than all; the next one says why."""
    while data:
        written = os.pwrite(descriptor, data, at)
        data, at = data[written:], at + written


class EventQueue:
    """The reader's side of one file: receive what is new, acknowledge what is done."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode = 0
        self._read_bytes = 0
        self._pending: list[Event] = []

    def receive(self) -> list[Event]:
        """Every event not acknowledged, in order, older ones first; a torn tail waits for its end."""
        try:
            with open(self._path, "rb", opener=private) as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._read_bytes:
                    self._start_over(status.st_ino)
                file.seek(self._read_bytes)
                data = file.read(READ_BYTES)
        except FileNotFoundError:
            self._start_over(0)
            return []
        whole = data.rfind(b"\n") + 1
        if not whole and len(data) == READ_BYTES:
            whole = READ_BYTES  # no event is so long: its pieces are passed over
        self._read_bytes += whole
        self._pending += _decode_lines(data[:whole], self._path)
        return list(self._pending)

    def acknowledge(self, event: Event) -> None:
        """Done with this event, and with any equal to it. The file goes when none is left."""
        self._pending = [pending for pending in self._pending if pending != event]
        if not self._pending and self._inode:
            self._delete_if_read()

    def _delete_if_read(self) -> None:
        try:
            with _locked(self._path, os.O_RDWR) as descriptor:
                status = os.fstat(descriptor)
                if status.st_ino == self._inode and status.st_size == self._read_bytes:
                    os.unlink(self._path)
                    self._start_over(0)  # the next file may get the same inode
        except FileNotFoundError:
            return

    def _start_over(self, inode: int) -> None:
        self._inode, self._read_bytes, self._pending = inode, 0, []


def _decode_lines(data: bytes, path: Path) -> Iterator[Event]:
    """A torn line, or an event of a newer trainer, is passed over: the disk says what there is to upload."""
    for line in filter(None, data.splitlines()):
        try:
            yield decoder.validate_json(line)
        except ValidationError:
            log.warning("%s: an event can't be read and is passed over: the disk tells what it told", path)


@contextmanager
def _locked(path: Path, flags: int) -> Iterator[int]:
    """The file, open and locked, and still the one of that name: not unlinked while we waited."""
    while True:
        descriptor = private(str(path), flags)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink > 0:
                yield descriptor
                return
        finally:
            os.close(descriptor)


__all__ = ["EventQueue", "put"]
