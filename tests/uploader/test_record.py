"""Records: a damaged one is refused, not believed.

Not detected, for a record has no checksum of its own: another value of the same kind in a field that
nothing else repeats. That is the run's name, the generation, times, metrics, fingerprints, ``ranks``, a path,
and the size of a file of one block; of these the path and the size show when the file is read. The step is
compared with the directory's or the key's.
"""

import itertools
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import IN_PARTS, NOW, SMALL, node_record

from uploader import checksum, layout
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import CorruptError
from uploader.record import CommitRecord, FileRecord, NodeRecord, RankRecord, decode

BIG = node_record(7, files=IN_PARTS).encode()


def read(data: bytes) -> NodeRecord:
    return decode(NodeRecord, data, subject="step_7/node-0000.json")


def test_a_record_comes_back() -> None:
    record = node_record(7, metrics={"loss": 0.5, "steps": 7, "note": "x", "none": None})
    assert read(record.encode()) == record
    assert record.size_bytes == sum(map(len, SMALL.values()))
    assert read(record.encode()).encode() == record.encode()


@given(st.integers(0, len(BIG) - 1))
def test_a_truncated_record_is_corrupt(length: int) -> None:
    try:
        assert read(BIG[:length]) == read(BIG)
        assert length == len(BIG) - 1  # only the last newline may go
    except CorruptError as error:
        assert "step_7/node-0000.json" in str(error)


def _guarded(record: NodeRecord) -> object:
    """What a record says that is said twice, or has one possible value."""
    files = [(file.crc64nvme, file.blocks) for file in record.files]
    sizes = [file.size_bytes for file in record.files if len(file.blocks) != 1]
    return files, sizes, record.block_size_bytes, len(record.files)


@given(st.integers(0, len(BIG) - 1), st.integers(0, 7))
def test_a_flipped_bit_never_changes_what_guards_the_bytes(at: int, bit: int) -> None:
    damaged = bytearray(BIG)
    damaged[at] ^= 1 << bit
    with suppress(CorruptError):
        assert _guarded(read(bytes(damaged))) == _guarded(read(BIG))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"path": "../../etc/passwd"}, "could leave"),
        ({"path": "/etc/passwd"}, "could leave"),
        ({"path": "a\0b"}, "could leave"),
        ({"path": "checkpoint.json"}, "a record stands"),
        ({"path": "Node-0001.json"}, "a record stands"),
        ({"path": "rank-00000.json"}, "a record stands"),
        ({"size_bytes": BLOCK_SIZE_BYTES + 1}, "blocks do not make"),
        ({"size_bytes": -1}, "greater than"),
        ({"size_bytes": 2**60}, "less than"),
        ({"blocks": []}, "blocks do not make"),
        ({"crc64nvme": checksum.of_bytes(b"other")}, "not that of its blocks"),
        ({"blocks": ["nonsense"]}, "is not a CRC64"),
        ({"extra": 1}, "not permitted"),
    ],
)
def test_a_wrong_file_is_named(change: dict[str, object], words: str) -> None:
    tree = json.loads(node_record(7).encode())
    tree["files"][0].update(change)
    with pytest.raises(CorruptError, match=words):
        read(json.dumps(tree).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"schema_version": 2},
        {"schema_version": 0},
        {"block_size_bytes": 1},
        {"nodes": 0},
        {"step": 2**53},
        {"created_at": "2026-01-01T00:00:00"},
        {"unknown": 1},
        {"world_size": 0},
    ],
)
def test_a_wrong_field_is_named(change: dict[str, object]) -> None:
    tree = json.loads(BIG) | change
    with pytest.raises(CorruptError, match=next(iter(change))):
        read(json.dumps(tree).encode())


def test_two_paths_that_differ_in_case_are_one() -> None:
    with pytest.raises(ValueError, match="stands twice"):
        node_record(7, files={"a.bin": b"", "A.bin": b""})


def rank(number: int, *, step: int = 7, seconds: int = 0) -> RankRecord:
    file = FileRecord.of_bytes(layout.state_file(number), b"{}")
    at = NOW + timedelta(seconds=seconds)
    return RankRecord(
        run="run", step=step, generation=1, world_size=2, created_at=at, files=[file], rank=number
    )


def test_ranks_merge_to_one_node_in_any_order() -> None:
    ranks = [rank(0, seconds=5), rank(1)]
    merged = NodeRecord.merge(ranks, node=0, nodes=1)
    assert merged == NodeRecord.merge(ranks[::-1], node=0, nodes=1)
    assert merged.ranks == [0, 1]
    assert merged.created_at == datetime(2026, 1, 1, 0, 0, 5, tzinfo=UTC)
    with pytest.raises(CorruptError, match="different checkpoints"):
        NodeRecord.merge([rank(0), rank(1, step=8)], node=0, nodes=1)
    with pytest.raises(CorruptError, match=r"merging step_7: .*stands twice"):
        NodeRecord.merge([rank(0), rank(0)], node=0, nodes=1)


def test_nodes_merge_to_one_commit_record_in_any_order() -> None:
    encoded = [
        node_record(7, files={f"part-{node}.bin": b"x"}, node=node, nodes=3).encode() for node in range(3)
    ]
    records = [CommitRecord.merge(order) for order in itertools.permutations(encoded)]
    assert all(record.encode() == records[0].encode() for record in records)
    names = [file.path for file in records[0].files]
    assert names == sorted(names)
    assert {layout.node_record(node) for node in range(3)} < {*names}
    for wrong in (encoded[:2], [encoded[0], encoded[0], encoded[2]]):
        with pytest.raises(CorruptError, match="of 3 node records"):
            CommitRecord.merge(wrong)
    same_file = [node_record(7, node=node, nodes=2).encode() for node in range(2)]
    with pytest.raises(CorruptError, match=r"merging step_7: .*stands twice"):
        CommitRecord.merge(same_file)
    with pytest.raises(CorruptError, match="reading node record"):
        CommitRecord.merge([encoded[0], encoded[1][:-9], encoded[2]])
