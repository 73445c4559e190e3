"""CRC64-NVME: of bytes, and combined from the checksums of consecutive pieces.

A block of 8 MiB is the unit. Checksums of parts and objects are combined from those of their blocks and
never computed again. Written as S3 writes them: base64 of the eight bytes, big-endian.
"""

import base64
from collections.abc import Iterable, Iterator

from awscrt import checksums

BLOCK_SIZE_BYTES = 8 * 1024 * 1024


def crc64nvme(data: bytes | memoryview, previous: int = 0) -> int:
    """The running CRC64-NVME of ``data``, after bytes whose checksum was ``previous``."""
    return int(checksums.crc64nvme(data, previous))


def encode(crc: int) -> str:
    """The checksum as S3 writes it in ``x-amz-checksum-crc64nvme``."""
    return base64.b64encode(crc.to_bytes(8, "big")).decode()


def decode(text: str) -> int:
    """The checksum that ``encode`` wrote.

    Raises:
        ValueError: the text is not base64 of eight bytes, or not as ``encode`` writes it.
    """
    raw = base64.b64decode(text, validate=True)
    crc = int.from_bytes(raw, "big")
    if len(raw) != 8 or encode(crc) != text:  # base64 of eight bytes has two bits to spare
        raise ValueError(f"{text!r} is not a CRC64-NVME")
    return crc


def of_bytes(data: bytes | memoryview) -> str:
    """The encoded CRC64-NVME of ``data``."""
    return encode(crc64nvme(data))


def block_sizes(size_bytes: int) -> Iterator[int]:
    """The sizes of the blocks of ``size_bytes`` bytes: all 8 MiB but the last."""
    for start in range(0, size_bytes, BLOCK_SIZE_BYTES):
        yield min(BLOCK_SIZE_BYTES, size_bytes - start)


def of_blocks(data: memoryview) -> list[str]:
    """The encoded checksum of each block of ``data``."""
    return [of_bytes(data[at : at + BLOCK_SIZE_BYTES]) for at in range(0, len(data), BLOCK_SIZE_BYTES)]


def combine(pieces: Iterable[tuple[str, int]]) -> str:
    """The checksum of consecutive pieces, each given as (encoded checksum, size in bytes)."""
    total = 0
    for crc, size_bytes in pieces:
        total = int(checksums.combine_crc64nvme(total, decode(crc), size_bytes))
    return encode(total)
