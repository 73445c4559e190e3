"""What a request carries: bytes in memory, or a slice of an open file, which is sent as it is read.

A slice is never held whole: whoever sends it takes piece after piece, or has the kernel send it.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

from uploader import checksum
from uploader.errors import CorruptError

PIECE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class FileSlice:
    """Bytes ``start`` to ``start + size_bytes`` of an open file.

    Attributes:
        name: the file's path, for messages.
    """

    descriptor: int
    start: int
    size_bytes: int
    name: str

    def __len__(self) -> int:
        return self.size_bytes

    def read_into(self, at: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the slice's bytes from ``at`` on.

        Raises:
            CorruptError: the file ends before that, or can't be read.
        """
        filled = 0
        while filled < len(buffer):
            try:
                count = os.preadv(self.descriptor, [buffer[filled:]], self.start + at + filled)
            except OSError as error:
                raise self.unreadable(error) from error
            if count == 0:
                raise self.too_short(at + filled)
            filled += count

    def part(self, start: int, size_bytes: int) -> "FileSlice":
        """A slice of this slice."""
        return replace(self, start=self.start + start, size_bytes=size_bytes)

    def unreadable(self, error: OSError) -> CorruptError:
        """The error for a file whose disk does not give it back: as bad as a corrupt one, and no worse."""
        return CorruptError(error.strerror or str(error), doing="reading", subject=self.name)

    def too_short(self, at: int) -> CorruptError:
        """The error for a file that ends at byte ``at`` of the slice."""
        return CorruptError(f"it ends at byte {self.start + at}", doing="reading", subject=self.name)

    def forget(self) -> None:
        """The memory is the trainer's: what was read once is not kept in the page cache."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, self.start, self.size_bytes, os.POSIX_FADV_DONTNEED)


Body: TypeAlias = bytes | memoryview | FileSlice

Pace: TypeAlias = Callable[[int], float]
"""Told of bytes of a file that are to be sent, it answers how many seconds to wait first. From any thread."""


def at_once(size_bytes: int) -> float:
    """No limit to the bandwidth."""
    return 0.0


def pieces(body: Body, *, start: int = 0, size_bytes: int = PIECE_BYTES) -> Iterator[memoryview]:
    """The bytes from ``start`` on, piece after piece; a file's pieces share one buffer, reused for each.

    Raises:
        CorruptError: the file is shorter than its slice, or can't be read.
    """
    if not isinstance(body, FileSlice):
        view = memoryview(body).cast("B")
        for at in range(start, len(view), size_bytes):
            yield view[at : at + size_bytes]
        return
    buffer = memoryview(bytearray(min(size_bytes, len(body))))
    for at in range(start, len(body), size_bytes):
        piece = buffer[: min(size_bytes, len(body) - at)]
        body.read_into(at, piece)
        yield piece


def crc64nvme(body: Body) -> str:
    """The checksum of the bytes, as S3 writes it."""
    crc = 0
    for piece in pieces(body):
        crc = checksum.crc64nvme(piece, crc)
    return checksum.encode(crc)
