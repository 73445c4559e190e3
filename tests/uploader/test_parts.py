"""Part planning covers every byte once, within S3's limits, and its checksums are the file's.

What a store has of a plan is kept if it is proven, and sent again if it is not.
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import checksum
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import StoreError
from uploader.parts import (
    MAX_OBJECT_SIZE_BYTES,
    MAX_PART_SIZE_BYTES,
    MAX_PARTS,
    Part,
    part_size,
    plan,
    reconcile,
)
from uploader.store.base import PartInfo

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


@st.composite
def interrupted(draw: st.DrawFn) -> tuple[list[Part], list[PartInfo], dict[int, str], set[int]]:
    """A plan, what a store lists of it, what the journal holds, and which parts really are there, whole."""
    planned = [Part(number, 0, 10, f"crc-{number}") for number in range(1, draw(st.integers(1, 8)) + 1)]
    stored, noted, whole = [], dict[int, str](), set[int]()
    tells = draw(st.booleans())
    for part in planned:
        fate = draw(st.sampled_from(["absent", "whole", "short", "other bytes", "taken but not noted"]))
        crc = "other" if fate == "other bytes" else part.crc64nvme
        size_bytes = 9 if fate == "short" else 10
        if fate != "absent":
            stored.append(PartInfo(part.number, size_bytes, f"etag-{crc}", crc if tells else None))
        if fate == "whole" or (fate != "taken but not noted" and draw(st.booleans())):
            noted[part.number] = f"etag-{part.crc64nvme}"
        if fate == "whole" or (fate == "taken but not noted" and tells):
            whole.add(part.number)
    strangers = [PartInfo(number, 10, "etag", "crc") for number in draw(st.sets(st.integers(90, 99)))]
    return planned, draw(st.permutations(stored + strangers)), noted, whole


@given(interrupted())
def test_kept_is_what_the_store_has_whole_and_nothing_else(
    situation: tuple[list[Part], list[PartInfo], dict[int, str], set[int]],
) -> None:
    planned, stored, noted, whole = situation
    kept = reconcile(planned, stored, noted)
    assert kept.keys() == whole
    there = {part.number: part for part in stored}
    assert kept == {number: there[number].etag for number in whole}
    assert reconcile(planned, stored, kept) == kept  # a restart of the restart changes nothing
    assert reconcile(planned, [], noted) == {}
