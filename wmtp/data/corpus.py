"""A setting to named documents: a file, a directory of text and code, or ``stdlib``, Python's own source.

The order is that of the relative names, sorted, so equal trees give equal documents on every machine.
"""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from uploader.errors import DiskError, SettingsError

STDLIB = "stdlib"
CODE_SUFFIXES = (".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".js", ".py", ".pyi", ".rs", ".sh", ".ts")
PROSE_SUFFIXES = (".css", ".html", ".json", ".md", ".rst", ".sql", ".toml", ".txt", ".yaml", ".yml")
TEXT_SUFFIXES = frozenset((*CODE_SUFFIXES, *PROSE_SUFFIXES))
SKIPPED_DIRECTORIES = frozenset(
    ("__pycache__", "dist-packages", "idle_test", "node_modules", "site-packages", "test", "tests")
)


@dataclass(frozen=True, slots=True)
class Document:
    """One file's name, relative to its corpus with forward slashes, and its bytes."""

    name: str
    text: bytes


@dataclass(frozen=True, slots=True)
class Corpus:
    """The files of one data set; nothing is read before ``documents`` is iterated.

    Attributes:
        root: the directory the names are relative to.
        names: relative POSIX paths, sorted; at least one.
    """

    root: Path
    names: tuple[str, ...]

    def documents(self) -> Iterator[Document]:
        """The documents in order, read one at a time.

        Raises:
            DiskError: a file can't be read.
        """
        for name in self.names:
            yield Document(name, _read(self.root / name))


def open_corpus(source: str, *, field: str = "data.train") -> Corpus:
    """The corpus that ``source`` names, without its empty files.

    Args:
        source: a file, a directory, or the word ``stdlib``.
        field: path of the setting it came from, for messages.

    Raises:
        SettingsError: there is no such path, or no text in it.
        DiskError: a directory can't be read.
    """
    if source == STDLIB:
        root, names = _tree(Path(sysconfig.get_path("stdlib")), frozenset((".py",)))
    elif (path := Path(source).expanduser().absolute()).is_dir():
        root, names = _tree(path, TEXT_SUFFIXES)
    elif path.is_file():
        root, names = path.parent, [path.name] if _has_text(path) else []
    else:
        raise SettingsError(
            f"{source!r} is neither a file nor a directory", subject=field, hint=f"name a path, or {STDLIB!r}"
        )
    if not names:
        raise SettingsError(f"there is no text in {source!r}", subject=field, hint="name another path")
    return Corpus(root, tuple(names))


def _tree(root: Path, suffixes: frozenset[str]) -> tuple[Path, list[str]]:
    """The files below ``root`` with one of the suffixes; test and hidden directories are left out."""
    names = []
    for directory, subdirectories, files in os.walk(root, onerror=_refuse):
        subdirectories[:] = [name for name in subdirectories if not _is_skipped(name)]
        paths = [Path(directory, name) for name in files if Path(name).suffix in suffixes]
        names += [path.relative_to(root).as_posix() for path in paths if _has_text(path)]
    return root, sorted(names)


def _refuse(error: OSError) -> NoReturn:
    """What can't be read is an error: leaving it out would give another corpus."""
    raise DiskError(error.strerror or str(error), doing="reading", subject=str(error.filename)) from error


def _is_skipped(directory: str) -> bool:
    return directory in SKIPPED_DIRECTORIES or directory.startswith(".")


def _has_text(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        _refuse(error)
