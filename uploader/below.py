"""Files below a directory, opened so that nothing leads out of it and nothing large is read by mistake.

A safe path (``layout.is_safe_path``) is not enough: somebody may put a link where a directory was. So each
part of it is opened from the descriptor of the one before, and a link is never followed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uploader.errors import CorruptError

MAX_SMALL_BYTES = 128 * 1024**2
"""Of every JSON file of ours, here and in the store; what is larger is neither written nor read. The
manifest of 200,000 steps and the record of a checkpoint of 60 TB are smaller."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def private(path: str, flags: int) -> int:
    """An opener for ``open``: what it creates is for this user only; a link in its place is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def create_below(directory: int, path: str) -> int:
    """Create a file, and the directories in between, by its safe path; their names are durable then.

    A file that is there is opened as it is, to read and to write.

    Args:
        directory: its descriptor.

    Raises:
        OSError: also where a link stands in the way.
    """
    return _open(directory, path, os.O_RDWR | os.O_CREAT, make=True)


def _open(directory: int, path: str, flags: int, *, make: bool = False) -> int:
    *parents, name = path.split("/")
    at = os.dup(directory)
    try:
        for parent in parents:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(parent, 0o700, dir_fd=at)
                    os.fsync(at)
            next_at = os.open(parent, _DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = next_at
        descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
        if make:
            os.fsync(at)
        return descriptor
    finally:
        os.close(at)


@contextmanager
def opened_below(directory: Path, path: str) -> Iterator[int]:
    """A plain file below a directory, open for reading.

    Raises:
        FileNotFoundError: it is not there.
        CorruptError: something else has its place: a link, a pipe.
    """
    root = os.open(directory, _DIRECTORY)
    try:
        descriptor = _open(root, path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
            error.filename = str(directory / path)
            raise
        raise _not_plain(directory / path) from error
    finally:
        os.close(root)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _not_plain(directory / path)
        yield descriptor
    finally:
        os.close(descriptor)


def _not_plain(path: Path) -> CorruptError:
    hint = "something else, perhaps a link, was put in its place: remove that"
    return CorruptError("it is no plain file", doing="reading", subject=str(path), hint=hint)


def read_small(path: Path) -> bytes:
    """A JSON file of ours, whole.

    Raises:
        FileNotFoundError: it is not there.
        CorruptError: it is larger than any of ours, or no plain file.
    """
    with opened_below(path.parent, path.name) as descriptor, open(descriptor, "rb", closefd=False) as file:
        check_small(os.fstat(descriptor).st_size, str(path))
        return file.read()


def check_small(size_bytes: int, subject: str) -> None:
    """Refuse to read what is too large for a JSON file of ours, before memory is taken for it.

    Raises:
        CorruptError: it is.
    """
    if size_bytes > MAX_SMALL_BYTES:
        problem = f"it has {size_bytes} bytes, the limit is {MAX_SMALL_BYTES}"
        raise CorruptError(problem, doing="reading", subject=subject)
