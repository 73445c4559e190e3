"""A setting to named documents: a file, a directory of text and code, records, or Python's own source.

The order is that of the relative names, sorted, so equal trees give equal documents on every machine.
"""

import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from uploader.errors import SettingsError
from wmtp.data.document import Document, read_bytes, refuse
from wmtp.data.records import RECORD_SUFFIXES, Records

STDLIB = "stdlib"
CODE_SUFFIXES = (".c", ".cc", ".cpp", ".go", ".h", ".hpp", ".java", ".js", ".py", ".pyi", ".rs", ".sh", ".ts")
PROSE_SUFFIXES = (".css", ".html", ".json", ".md", ".rst", ".sql", ".toml", ".txt", ".yaml", ".yml")
TEXT_SUFFIXES = frozenset((*CODE_SUFFIXES, *PROSE_SUFFIXES))
DESCRIBING_SUFFIXES = (".json", ".md", ".yaml", ".yml")
"""Of files that lie beside records and describe them."""

SKIPPED_DIRECTORIES = frozenset(
    ("__pycache__", "dist-packages", "idle_test", "node_modules", "site-packages", "test", "tests")
)

Format: TypeAlias = Literal["auto", "text", "records"]
"""Whether files are texts or hold JSON records; ``auto`` tells by their names."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """The text files of one data set; nothing is read before ``documents`` is iterated.

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
            yield Document(name, read_bytes(self.root / name))


def is_data(name: str) -> bool:
    """Whether a file of this name could be part of a directory's corpus."""
    return Path(name).suffix in TEXT_SUFFIXES or name.endswith(RECORD_SUFFIXES)


def open_corpus(
    source: str, *, field: str = "data.train", format: Format = "auto", text_field: str | None = None
) -> Corpus | Records:
    """The corpus that ``source`` names, without its empty files.

    Args:
        source: a file, a directory, or the word ``stdlib``.
        field: path of the setting it came from, for messages.
        text_field: the field of a record that holds its text; None tells each record's shape by its fields.

    Raises:
        SettingsError: there is no such path, no text in it, or it holds both texts and records.
        DiskError: a directory can't be read.
    """
    if source == STDLIB:
        root = Path(sysconfig.get_path("stdlib"))
        return Corpus(root, tuple(name for name in _tree(root) if name.endswith(".py")))
    path = Path(source).expanduser().absolute()
    if path.is_dir():
        root, names = path, _tree(path)
        texts, records = _texts_and_records(names, format, source, field)
    elif path.is_file():
        root, names = path.parent, [path.name] if _has_text(path) else []
        is_records = format == "records" or (format == "auto" and path.name.endswith(RECORD_SUFFIXES))
        texts, records = ([], names) if is_records else (names, [])
    else:
        raise SettingsError(
            f"{source!r} is neither a file nor a directory", subject=field, hint=f"name a path, or {STDLIB!r}"
        )
    if not (records or texts):
        hint = "name another path; other formats (parquet, archives) must be made JSON lines first"
        raise SettingsError(f"there is no text in {source!r}", subject=field, hint=hint)
    return Records(root, tuple(records), text_field) if records else Corpus(root, tuple(texts))


def _texts_and_records(
    names: list[str], format: Format, source: str, field: str
) -> tuple[list[str], list[str]]:
    """What a directory is: texts, or records, never both."""
    records = [name for name in names if name.endswith(RECORD_SUFFIXES)]
    texts = [name for name in names if not name.endswith(RECORD_SUFFIXES)]
    if format == "records":
        return [], records + [name for name in texts if name.endswith(".json") and not records]
    if format == "text" or not records:
        return texts, []
    for name in texts:
        if not name.endswith(DESCRIBING_SUFFIXES):
            raise SettingsError(
                f"{source!r} holds texts ({name}) and records ({records[0]})",
                subject=field,
                hint="say which are meant: data.format: text or data.format: records",
            )
    return [], records


def _tree(root: Path) -> list[str]:
    """The files below ``root`` that could be data, sorted; test and hidden directories are left out."""
    names = []
    for directory, subdirectories, files in os.walk(root, onerror=refuse):
        subdirectories[:] = [name for name in subdirectories if not _is_skipped(name)]
        paths = [Path(directory, name) for name in files if is_data(name)]
        names += [path.relative_to(root).as_posix() for path in paths if _has_text(path)]
    return sorted(names)


def _is_skipped(directory: str) -> bool:
    return directory in SKIPPED_DIRECTORIES or directory.startswith(".")


def _has_text(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0
