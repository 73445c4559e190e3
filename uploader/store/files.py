"""Durable file operations of the local store: write, publish, concatenate, walk; plain and synchronous.

After a call returns its effect survives a power cut: files are fsynced before they get their name,
directories after. Failures are the ``OSError`` of the system; ``of_os_error`` says what they mean.
"""

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from uploader import checksum
from uploader.below import private
from uploader.errors import DiskError, StoreUnavailable, WmtpError
from uploader.store.base import ObjectInfo
from uploader.store.body import Body, pieces

READ_BYTES = 8 * 1024 * 1024
COPY_BYTES = 1024 * 1024 * 1024

ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""How the system says that no file has this name."""

_HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space, or raise the quota",
    errno.EROFS: "mount it writable",
    errno.EACCES: "make it readable and writable for this user",
    errno.EPERM: "make it readable and writable for this user",
    errno.ENAMETOOLONG: "choose shorter names",
}
_HEALING = {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN, errno.EAGAIN}
_CANNOT_COPY = {errno.ENOSYS, errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL}


def of_os_error(error: OSError, *, doing: str, subject: str) -> WmtpError:
    """What a failing file system means: a server out of reach heals, a full or read-only disk does not."""
    problem = (error.strerror or str(error)).lower()
    if error.errno in _HEALING:
        return StoreUnavailable(problem, doing=doing, subject=subject, hint="check the mount and its server")
    return DiskError(problem, doing=doing, subject=subject, hint=_HINTS.get(error.errno or 0, ""))


def write(path: Path, body: Body, wait: Callable[[int], None] = lambda size_bytes: None) -> None:
    """A new file of these bytes, fsynced; its name is not durable yet.

    Args:
        wait: returns when so many bytes of it may be written.
    """
    with open(path, "xb", buffering=0, opener=private) as file:
        for piece in pieces(body):
            wait(len(piece))
            rest = piece
            while rest:
                rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def concatenate(path: Path, sources: Iterable[Path]) -> None:
    """A new file of the contents of ``sources``, fsynced; the kernel copies, or shares blocks if it can."""
    with open(path, "xb", buffering=0, opener=private) as file:
        for source in sources:
            with open(source, "rb", buffering=0) as part:
                _append(file.fileno(), part.fileno())
        os.fsync(file.fileno())


def _append(target: int, source: int) -> None:
    try:
        while os.copy_file_range(source, target, COPY_BYTES):
            pass
    except OSError as error:
        if error.errno not in _CANNOT_COPY:
            raise
        while os.sendfile(target, source, None, COPY_BYTES):
            pass


def publish(temporary: Path, target: Path, *, if_absent: bool = False) -> None:
    """Give a finished file or directory its name, durably; an object of that name is replaced.

    Raises:
        FileExistsError: ``if_absent``, and there is one already.
    """
    make_directory(target.parent)
    if if_absent:
        os.link(temporary, target)  # unlike a rename, a link never replaces
    else:
        os.replace(temporary, target)
    sync_directory(target.parent)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, each durable in its parent.

    One that is there may have been made by a process that died before it was durable, so it is synced, too.
    """
    if path.is_dir():
        with suppress(PermissionError):  # then nobody like us made it
            sync_directory(path.parent)
    else:
        make_directory(path.parent)
        path.mkdir(mode=0o700, exist_ok=True)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(path: Path) -> None:
    """Remove a file or a directory with all in it; one that is not there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def describe(key: str, path: Path) -> ObjectInfo:
    """Size, time and checksum of a file, which is read for it block by block."""
    with open(path, "rb", buffering=0) as file:
        crc, size_bytes = 0, 0
        while block := file.read(READ_BYTES):
            crc, size_bytes = checksum.crc64nvme(block, crc), size_bytes + len(block)
        encoded = checksum.encode(crc)
        return ObjectInfo(key, size_bytes, encoded, encoded, os.fstat(file.fileno()).st_mtime)


def walk(root: Path, prefix: str, *, hidden: str, below: str = "") -> Iterator[ObjectInfo]:
    """The files below ``root`` whose relative path begins with ``prefix``, in the order S3 lists keys.

    A directory sorts as its name with a slash. Links are not followed; what vanishes meanwhile is left out.
    """
    try:
        entries = {
            below + entry.name + ("/" if entry.is_dir(follow_symlinks=False) else ""): entry
            for entry in os.scandir(root / below)
        }
    except ABSENT:
        return
    for name in sorted(entries):
        if name == f"{hidden}/":
            continue
        if name.endswith("/") and (name.startswith(prefix) or prefix.startswith(name)):
            yield from walk(root, prefix, hidden=hidden, below=name)
        elif name.startswith(prefix) and entries[name].is_file(follow_symlinks=False):
            with suppress(FileNotFoundError):
                stat = entries[name].stat(follow_symlinks=False)
                yield ObjectInfo(name, stat.st_size, "", None, stat.st_mtime)
