"""What lies on disk of a foreign checkpoint: its files, and what identifies each while nobody writes to it.

Nothing is followed out of the checkpoint and nothing is passed over in silence: what can't be uploaded as it
is (a link that leads elsewhere, a socket, a name that can't be part of a key) is an error that names it.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from uploader import layout
from uploader.errors import CorruptError
from uploader.layout import DCP_METADATA
from uploader.patterns import is_temporary

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Identity(NamedTuple):
    """A file at one moment: the same identity later means that nobody wrote to it or replaced it."""

    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Identity":
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of one checkpoint.

    Attributes:
        root: the directory that the files' paths are relative to.
        files: by path, in order.
        unfinished: paths whose names say that they are still being written.
        hidden: what is left out: hidden files and directories, but never DCP's ``.metadata``.
    """

    root: Path
    files: dict[str, Identity] = field(default_factory=dict)
    unfinished: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    @property
    def created_at(self) -> datetime:
        """When the newest file was last written to."""
        newest_ns = max((file.mtime_ns for file in self.files.values()), default=0)
        return _EPOCH + timedelta(microseconds=newest_ns // 1000)


def look_at(path: Path) -> Tree:
    """The files of a checkpoint that is a file or a directory.

    Raises:
        FileNotFoundError: it is gone, or a part of it went meanwhile.
        CorruptError: something in it can't be uploaded; the message names it.
        OSError: it can't be read.
    """
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        tree = Tree(path)
        for name, file in sorted(_walk(tree, "", os.path.realpath(path))):
            tree.files[name] = file
        _check_case(tree)
        return tree
    if not stat.S_ISREG(status.st_mode):
        raise _refusal(f"it is {_what(status)}", path)
    return Tree(path.parent, {_safe(path.name, path): Identity.of(status)})


def _walk(tree: Tree, below: str, real_root: str) -> Iterator[tuple[str, Identity]]:
    with os.scandir(tree.root / below) as entries:
        for entry in entries:
            path = below + entry.name
            if is_temporary(entry.name) and entry.name != DCP_METADATA:
                is_hidden = entry.name.startswith(".") and not is_temporary(entry.name[1:])
                (tree.hidden if is_hidden else tree.unfinished).append(path)
            elif entry.is_dir(follow_symlinks=False):
                yield from _walk(tree, f"{path}/", real_root)
            else:
                yield _safe(path, tree.root / path), _identity(entry, real_root)


def _identity(entry: os.DirEntry[str], real_root: str) -> Identity:
    """Of a regular file, or of the one that a link within the checkpoint means."""
    status = entry.stat(follow_symlinks=False)
    if stat.S_ISLNK(status.st_mode):
        target = os.path.realpath(entry.path)
        if not target.startswith(real_root + os.sep) or not os.path.isfile(target):
            raise _refusal(
                f"it is a link to {os.readlink(entry.path)}, no file of this checkpoint", entry.path
            )
        status = os.stat(target)
    elif not stat.S_ISREG(status.st_mode):
        raise _refusal(f"it is {_what(status)}", entry.path)
    return Identity.of(status)


def _what(status: os.stat_result) -> str:
    kinds = {stat.S_IFLNK: "a link", stat.S_IFSOCK: "a socket", stat.S_IFIFO: "a pipe"}
    return kinds.get(stat.S_IFMT(status.st_mode), "a device")


def _safe(name: str, path: Path) -> str:
    if not layout.is_safe_path(name):
        raise _refusal("its name can't be part of a key", path)
    if layout.is_record(layout.alike(name)):
        raise _refusal("its name is that of a record of ours", path)
    return name


def _check_case(tree: Tree) -> None:
    seen: dict[str, str] = {}
    for name in tree.files:
        if (other := seen.setdefault(layout.alike(name), name)) != name:
            raise _refusal(f"its name differs from {other} in case only", tree.root / name)


def _refusal(problem: str, path: Path | str) -> CorruptError:
    hint = "replace it by a plain file, or move it away; its checkpoint is not uploaded"
    return CorruptError(problem, doing="looking at", subject=shown(path), hint=hint)


def shown(path: Path | str) -> str:
    """A path as a message may hold it, whatever bytes it is made of."""
    return str(path).encode(errors="backslashreplace").decode()
