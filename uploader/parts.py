"""How a file is cut into parts: whole blocks, under S3's limits; and which of them the store has. Pure.

Limits: a part has 5 MiB to 5 GiB (the last may be smaller), an upload at most 10,000 parts, an object at
most 5 TiB (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from uploader.checksum import BLOCK_SIZE_BYTES, block_sizes, combine
from uploader.errors import StoreError
from uploader.store.base import PartInfo

MAX_PARTS = 10_000
MAX_PART_SIZE_BYTES = 5 * 1024**3
MAX_OBJECT_SIZE_BYTES = 5 * 1024**4


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes ``start`` to ``start + size_bytes`` of a file; the number starts at 1."""

    number: int
    start: int
    size_bytes: int
    crc64nvme: str


def part_size(size_bytes: int, wanted_size_bytes: int) -> int:
    """The part size: what is wanted in whole blocks, more where 10,000 parts would not do.

    Raises:
        StoreError: no store takes an object this large.
    """
    if size_bytes > MAX_OBJECT_SIZE_BYTES:
        raise StoreError(
            f"{size_bytes} bytes are more than the 5 TiB of an S3 object", hint="lower shard_size_bytes"
        )
    blocks_in_file = -(-size_bytes // BLOCK_SIZE_BYTES)
    blocks = max(1, wanted_size_bytes // BLOCK_SIZE_BYTES, -(-blocks_in_file // MAX_PARTS))
    return min(blocks, MAX_PART_SIZE_BYTES // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES


def plan(size_bytes: int, blocks: Sequence[str], wanted_size_bytes: int) -> list[Part]:
    """Cut a file into the parts of an upload; see ``cut``."""
    return cut(size_bytes, blocks, part_size(size_bytes, wanted_size_bytes))


def cut(size_bytes: int, blocks: Sequence[str], part_size_bytes: int) -> list[Part]:
    """Cut a file into consecutive parts whose checksums are combined from those of its blocks.

    A file no longer than one part is one part; an empty file has none.

    Args:
        part_size_bytes: whole blocks.
    """
    each = part_size_bytes // BLOCK_SIZE_BYTES
    sizes = list(block_sizes(size_bytes))
    parts = []
    for number, first in enumerate(range(0, len(sizes), each), 1):
        pieces = list(zip(blocks[first : first + each], sizes[first : first + each], strict=True))
        length = sum(piece for _, piece in pieces)
        parts.append(Part(number, first * BLOCK_SIZE_BYTES, length, combine(pieces)))
    return parts


def reconcile(
    planned: Iterable[Part], stored: Iterable[PartInfo], noted: Mapping[int, str]
) -> dict[int, str]:
    """The parts that need not be sent again, and the ETag that the store knows each by.

    A stored part counts if it has the size and the checksum of the planned one. Where the store's listing
    tells no checksum, it counts if its ETag was noted when the store had verified and taken the part.

    Args:
        noted: by number: what the journal holds.
    """
    there = {part.number: part for part in stored}
    kept = {}
    for part in planned:
        found = there.get(part.number)
        if found is None or found.size_bytes != part.size_bytes:
            continue
        is_known = found.etag == noted.get(part.number)
        if found.crc64nvme == part.crc64nvme or (found.crc64nvme is None and is_known):
            kept[part.number] = found.etag
    return kept
