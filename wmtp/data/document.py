"""What a corpus is made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Protocol

from uploader.errors import DiskError


@dataclass(frozen=True, slots=True)
class Document:
    """One text.

    Attributes:
        name: the file's, relative to its corpus with forward slashes; with the line where it holds several.
        text: what a model learns to write.
        prompt: what stands before the text: read, but not learnt.
    """

    name: str
    text: bytes
    prompt: bytes = b""


class Documents(Protocol):
    """A corpus of any kind. Nothing is read before ``documents`` is iterated."""

    def documents(self) -> Iterator[Document]:
        """The documents in order, read one at a time.

        Raises:
            DiskError: a file can't be read.
            SettingsError: a file is not what it should be.
        """
        ...


def read_bytes(path: Path) -> bytes:
    """A file, whole.

    Raises:
        DiskError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        refuse(error)


def refuse(error: OSError) -> NoReturn:
    """What can't be read is an error: leaving it out would give another corpus."""
    raise DiskError(error.strerror or str(error), doing="reading", subject=str(error.filename)) from error
