"""CRC64-NVME: running, combined, and written in exactly one way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import checksum


def test_the_check_value_of_the_standard() -> None:
    assert checksum.crc64nvme(b"123456789") == 0xAE8B14860A799888


@given(st.lists(st.binary(max_size=300)))
def test_pieces_combine_to_the_whole(pieces: list[bytes]) -> None:
    whole = checksum.of_bytes(b"".join(pieces))
    assert checksum.combine((checksum.of_bytes(piece), len(piece)) for piece in pieces) == whole
    running = 0
    for piece in pieces:
        running = checksum.crc64nvme(piece, running)
    assert checksum.encode(running) == whole


@given(st.integers(0, 2**64 - 1), st.integers(0, 11), st.characters(max_codepoint=0x17F))
def test_a_checksum_is_written_in_one_way_only(crc: int, at: int, other: str) -> None:
    text = checksum.encode(crc)
    assert checksum.decode(text) == crc
    changed = text[:at] + other + text[at + 1 :]
    try:
        assert (checksum.decode(changed) == crc) == (changed == text)
    except ValueError:
        assert changed != text


@pytest.mark.parametrize("text", ["", "AAAA", "AAAAAAAAAAAA", "AAAAAAAAAAF=", "AAAAAAAAAAA", " AAAAAAAAAAA="])
def test_what_is_no_checksum(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        checksum.decode(text)


def test_blocks_of_a_file_of_blocks() -> None:
    size = checksum.BLOCK_SIZE_BYTES
    data = bytes(size) + b"tail"
    assert list(checksum.block_sizes(len(data))) == [size, 4]
    assert list(checksum.block_sizes(0)) == []
    assert checksum.of_blocks(memoryview(data)) == [
        checksum.of_bytes(bytes(size)),
        checksum.of_bytes(b"tail"),
    ]
