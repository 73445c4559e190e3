"""A disk that forgets: calls of the operating system, and what a loss of power leaves of their effects.

The files are real ones, in memory (``/dev/shm``, which gives no inode number twice). While ``installed``, the
functions of ``os`` that change something are points at which a process may die, and ``fsync`` notes what is
durable: a file's bytes, a directory's names. Whatever else there is when the power goes may be left or not:
of each name what was durable or what is there now; of bytes never synced anything of them or nothing.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import Any, TypeAlias
from unittest import mock

from .process import current

Tree: TypeAlias = "dict[str, Tree] | tuple[int, bytes]"
"""What is left: of a directory the names, of a file its inode's number and its bytes."""
Inode: TypeAlias = tuple[int, bool]
"""The number, and whether it is a directory's."""

_CHANGING = os.O_CREAT | os.O_TRUNC
_open, _pread, _pwrite, _fstat, _close = os.open, os.pread, os.pwrite, os.fstat, os.close


class Disk:
    """What is durable of the files below one directory.

    Attributes:
        moved: told of every rename by a process, after it.
        unlinking: told of every file before it goes by a process.
    """

    def __init__(self) -> None:
        self._names: dict[int, dict[str, Inode]] = {}
        self._bytes: dict[int, bytes] = {}
        self.moved: Callable[[Path, Path], None] = lambda *_: None
        self.unlinking: Callable[[Path], None] = lambda _: None

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Stand in for the operating system."""
        with ExitStack() as stack:
            for name in ("mkdir", "rmdir", "ftruncate", "posix_fallocate", "write", "link", "symlink"):
                stack.enter_context(mock.patch.object(os, name, _point(name, getattr(os, name))))
            for name in ("rename", "replace"):
                call = self._telling(getattr(os, name))
                stack.enter_context(mock.patch.object(os, name, _point(name, call)))
            for name in ("unlink", "remove"):
                call = self._warning(getattr(os, name))
                stack.enter_context(mock.patch.object(os, name, _point(name, call)))
            stack.enter_context(mock.patch.object(os, "fsync", _point("fsync", self._sync)))
            stack.enter_context(mock.patch.object(os, "open", _opened))
            stack.enter_context(mock.patch.object(os, "pwrite", _written))
            yield

    def _telling(self, call: Callable[..., None]) -> Callable[..., None]:
        def rename(source: Any, target: Any) -> None:
            call(source, target)
            if current.get() is not None:
                self.moved(Path(source), Path(target))

        return rename

    def _warning(self, call: Callable[..., None]) -> Callable[..., None]:
        def unlink(path: Any, *, dir_fd: int | None = None) -> None:
            if dir_fd is None and current.get() is not None:
                self.unlinking(Path(path))
            call(path, dir_fd=dir_fd)

        return unlink

    def _sync(self, descriptor: int) -> None:
        status = _fstat(descriptor)
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            self._names[status.st_ino] = _listing(descriptor)
        else:
            self._bytes[status.st_ino] = _read(f"/proc/self/fd/{descriptor}", status.st_size)

    def lose_power(self, root: Path, rng: Random) -> None:
        """Leave in a directory what a loss of power may leave; all of that is durable then."""
        alive: dict[int, str] = {}
        _walk(str(root), alive)
        left = self._left((os.stat(root).st_ino, True), alive, rng)
        assert isinstance(left, dict)
        before = root.with_name(f"{root.name}.before")
        os.rename(root, before)
        os.mkdir(root, 0o700)
        moved = {number: path.replace(str(root), str(before), 1) for number, path in alive.items()}
        self._lay_out(str(root), left, moved)
        shutil.rmtree(before)

    def _left(self, inode: Inode, alive: dict[int, str], rng: Random) -> Tree:
        number, is_directory = inode
        if not is_directory:
            return number, self._bytes_left(number, alive, rng)
        durable = self._names.get(number, {})
        now = _listing(alive[number]) if number in alive else {}
        left: dict[str, Tree] = {}
        for name in sorted({*durable, *now}):
            kept = rng.choice((durable.get(name), now.get(name)))
            if kept is not None:
                left[name] = self._left(kept, alive, rng)
        return left

    def _bytes_left(self, number: int, alive: dict[int, str], rng: Random) -> bytes:
        durable = self._bytes.get(number, b"")
        if number not in alive:
            return durable
        now = _read(alive[number], os.stat(alive[number]).st_size)
        if now == durable:
            return now
        kept = len(durable) if now.startswith(durable) else 0
        torn = now[: rng.randint(kept, len(now))]
        return rng.choice((durable, now, torn, torn + bytes(len(now) - len(torn))))

    def _lay_out(self, path: str, tree: dict[str, Tree], alive: dict[int, str]) -> None:
        """Make a tree; a file that is alive keeps its inode."""
        for name, one in tree.items():
            below = f"{path}/{name}"
            if isinstance(one, dict):
                os.mkdir(below, 0o700)
                self._lay_out(below, one, alive)
                continue
            number, data = one
            if (there := alive.pop(number, None)) is not None:
                os.rename(there, below)
            descriptor = _open(below, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            _pwrite(descriptor, data, 0)
            self._bytes[_fstat(descriptor).st_ino] = data
            _close(descriptor)
        self._names[os.stat(path).st_ino] = _listing(path)


def _listing(directory: str | int) -> dict[str, Inode]:
    with os.scandir(directory) as entries:
        return {entry.name: (entry.inode(), entry.is_dir(follow_symlinks=False)) for entry in entries}


def _walk(path: str, found: dict[int, str]) -> None:
    found[os.stat(path).st_ino] = path
    for name, (number, is_directory) in _listing(path).items():
        if is_directory:
            _walk(f"{path}/{name}", found)
        else:
            found[number] = f"{path}/{name}"


def _read(path: str, size_bytes: int) -> bytes:
    descriptor = _open(path, os.O_RDONLY)
    try:
        return _pread(descriptor, size_bytes, 0)
    finally:
        _close(descriptor)


def _point(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """A call as a point of the process that makes it; outside of one it is what it was."""
    where = f"os.{name}"

    def at_point(*args: Any, **more: Any) -> Any:
        process = current.get()
        if process is None:
            return call(*args, **more)
        dies = process.reach(where)
        result = call(*args, **more)
        process.note(process.name, where)
        if dies:
            process.perish(f"after {where}")
        return result

    return at_point


def _opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
    process = current.get()
    if process is None or not flags & _CHANGING:
        return _open(path, flags, mode, dir_fd=dir_fd)
    dies = process.reach("os.open")
    descriptor = _open(path, flags, mode, dir_fd=dir_fd)
    process.note(process.name, f"os.open {os.path.basename(path)}")
    if dies:
        _close(descriptor)
        process.perish(f"after os.open {os.path.basename(path)}")
    return descriptor


def _written(descriptor: int, data: Any, at: int) -> int:
    """Half of a write may be all there is of it."""
    process = current.get()
    if process is None:
        return _pwrite(descriptor, data, at)
    dies = process.reach("os.pwrite")
    if dies == "within":
        _pwrite(descriptor, memoryview(data)[: len(data) // 2], at)
        process.perish("within os.pwrite")
    written = _pwrite(descriptor, data, at)
    process.note(process.name, "os.pwrite")
    if dies:
        process.perish("after os.pwrite")
    return written
