"""Durable file operations: replace a file atomically, move to the trash, lock.

Order is everything: bytes, then fsync of the file, then rename, then fsync of the directory. A crash in
between leaves the old file and a ``.tmp`` that nobody reads. What is made here is for this user only.
"""

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from uploader.below import private
from uploader.errors import DiskError

_HINTS = {
    errno.ENOSPC: "free some space, or point local_path at a larger disk",
    errno.EDQUOT: "the quota is used up: free some space, or point local_path elsewhere",
    errno.EROFS: "the file system is read-only: point local_path elsewhere",
    errno.EACCES: "give this user permission, or point local_path elsewhere",
    errno.EPERM: "give this user permission, or point local_path elsewhere",
    errno.ENOTDIR: "a part of the path is a file, not a directory",
    errno.EEXIST: "a part of the path is a file, not a directory",
    errno.ELOOP: "a part of the path is a link where none belongs: remove it",
}


@contextmanager
def disk_errors(doing: str, path: Path) -> Iterator[None]:
    """Turn an ``OSError`` into a ``DiskError`` that names the path and what to do."""
    try:
        yield
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "check the disk")
        subject = str(error.filename or path)
        raise DiskError(os.strerror(error.errno or 0), doing=doing, subject=subject, hint=hint) from error


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create a directory and its parents, readable by this user only, each durable in its parent.

    One that is there may have been made by a process that died before it was durable, so it is synced, too.
    """
    if path.is_dir():
        with suppress(PermissionError):  # then nobody like us made it
            fsync_directory(path.parent)
    else:
        make_directory(path.parent)
        path.mkdir(exist_ok=True, mode=0o700)
        fsync_directory(path.parent)


def write_durably(path: Path, data: bytes) -> None:
    """Write a new file and fsync it. Its name is durable only after ``fsync_directory``."""
    with open(path, "wb", opener=private) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace(path: Path, data: bytes) -> None:
    """Replace a file atomically and durably: a reader sees the old bytes or the new ones."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_durably(temporary, data)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def move_to_trash(path: Path, trash: Path) -> Path:
    """Rename a directory away, durably and at once; delete it later with ``empty_trash``."""
    with _names_locked(path.parent):
        return _move(path, trash)


def _move(path: Path, trash: Path) -> Path:
    if trash.is_symlink():  # what it leads to is not ours to fill and to empty
        trash.unlink()
    make_directory(trash)
    for number in range(1_000_000):
        target = trash / f"{path.name}.{number}"
        if not os.path.lexists(target):
            os.rename(path, target)
            fsync_directory(path.parent)
            return target
    raise DiskError("it holds a million directories", doing="trashing into", subject=str(trash))


def discard_unless_read(path: Path, trash: Path, *, meant: Callable[[], bool] = lambda: True) -> bool:
    """Move a step's directory to the trash, unless a loader holds it; whether it went. A link stays.

    Args:
        meant: whether the directory is still the one that is meant. While it is asked nobody moves the
            directory away, and so nobody puts another in its place.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR):
            return False
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with _names_locked(path.parent):
            if not (_is_at(descriptor, path) and meant()):
                return False
            _move(path, trash)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _names_locked(path: Path) -> Iterator[None]:
    """Hold a directory against everyone else who moves something out of it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether what was opened still has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def held_for_reading(path: Path) -> Iterator[None]:
    """Hold a step's directory so that it is not pruned while it is read.

    Raises:
        FileNotFoundError: it is not there, or went while we waited.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if not _is_at(descriptor, path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        yield
    finally:
        os.close(descriptor)


def empty_trash(trash: Path) -> None:
    """Delete what was moved there. A crash in the middle leaves the rest for the next time.

    The trash itself stays, for somebody else may be moving something into it. No link is followed.
    """
    for path in trash.iterdir() if trash.is_dir() and not trash.is_symlink() else ():
        remove_tree(path)


def remove_tree(path: Path) -> None:
    """Delete a directory and all below it, if it is there; of a link, the link."""
    while os.path.lexists(path):
        with suppress(FileNotFoundError):  # somebody else deletes it too
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file and return its descriptor, which holds the lock until closed; None if it is taken.

    The kernel frees the lock when the process dies, however it dies: there is no stale lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for attempt in range(_LOCK_ATTEMPTS, 0, -1):
            if _locked(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX):
                return descriptor
            if attempt > 1:
                time.sleep(_LOCK_WAIT_S)
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


_LOCK_ATTEMPTS, _LOCK_WAIT_S = 5, 0.01
"""Who finds a lock taken looks again: ``is_locked`` takes it for an instant."""


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether a living process holds the lock. Taken for an instant to find out."""
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
