"""Part planning covers every byte once, within S3's limits, and its checksums are the file's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import checksum
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import StoreError
from uploader.parts import MAX_OBJECT_SIZE_BYTES, MAX_PART_SIZE_BYTES, MAX_PARTS, part_size, plan

MIB = 1024**2
wanted_sizes = st.integers(5 * MIB, 5 * 1024 * MIB)


@given(st.integers(0, 200 * BLOCK_SIZE_BYTES), st.integers(5 * MIB, 100 * MIB))
def test_parts_cover_every_byte_once(size_bytes: int, wanted: int) -> None:
    sizes = list(checksum.block_sizes(size_bytes))
    blocks = [checksum.encode(number) for number in range(len(sizes))]
    parts = plan(size_bytes, blocks, wanted)
    at = 0
    for number, part in enumerate(parts, 1):
        assert (part.number, part.start) == (number, at)
        assert part.size_bytes > 0
        at += part.size_bytes
    assert at == size_bytes
    assert len({part.size_bytes for part in parts[:-1]}) <= 1
    assert all(part.size_bytes >= 5 * MIB for part in parts[:-1])
    combined = checksum.combine((part.crc64nvme, part.size_bytes) for part in parts)
    assert combined == checksum.combine(zip(blocks, sizes, strict=True))


@given(st.integers(0, MAX_OBJECT_SIZE_BYTES), wanted_sizes)
def test_any_object_s3_can_hold_fits_its_limits(size_bytes: int, wanted: int) -> None:
    size = part_size(size_bytes, wanted)
    assert size % BLOCK_SIZE_BYTES == 0
    assert 5 * MIB <= size <= MAX_PART_SIZE_BYTES
    assert -(-size_bytes // size) <= MAX_PARTS
    needed = -(-size_bytes // MAX_PARTS)
    assert size <= max(wanted, BLOCK_SIZE_BYTES, needed + BLOCK_SIZE_BYTES)  # no larger than it must be


def test_a_larger_object_is_refused() -> None:
    with pytest.raises(StoreError, match=r"5 TiB.*shard_size_bytes"):
        part_size(MAX_OBJECT_SIZE_BYTES + 1, 16 * MIB)


def test_the_checksum_of_a_part_is_that_of_its_bytes() -> None:
    data = memoryview(bytes(range(256)) * (5 * BLOCK_SIZE_BYTES // 512) + b"tail")
    parts = plan(len(data), checksum.of_blocks(data), 16 * MIB)
    assert [part.size_bytes for part in parts] == [16 * MIB, 4 * MIB + 4]
    for part in parts:
        assert part.crc64nvme == checksum.of_bytes(data[part.start : part.start + part.size_bytes])


def test_blocks_that_are_not_the_files_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        plan(2 * BLOCK_SIZE_BYTES, [checksum.encode(0)], 16 * MIB)
