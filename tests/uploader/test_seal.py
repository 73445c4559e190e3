"""A JSON file of ours says when it was changed, whatever was changed in it."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from steps import FIRST, NOW, generation_file, node_record, run_file

from uploader.errors import CorruptError
from uploader.generation import GenerationFile
from uploader.heartbeat import Heartbeat
from uploader.journal import PartTaken, Unfinished
from uploader.manifest import Manifest
from uploader.record import NodeRecord, decode
from uploader.run import RunFile
from uploader.seal import FIELD, Sealed, is_broken, sealed
from uploader.status import Status

EXAMPLES: list[Sealed] = [
    node_record(7, metrics={"loss": 0.5}),
    generation_file(FIRST),
    run_file(FIRST),
    Manifest(run="run"),
    Heartbeat(generation=1, owner=FIRST.owner, count=3, every_s=10.0),
    Status(run="run", destination="s3://bucket/run", pid=1, updated_at=NOW),
    Unfinished(
        destination="s3://b/run", key="step_1/g1/a", upload_id="u", size_bytes=1, crc64nvme="x",
        part_size_bytes=8 * 1024**2,
    ),
    PartTaken(number=1, etag="e"),
]  # fmt: skip

each = pytest.mark.parametrize("one", EXAMPLES, ids=lambda one: type(one).__name__)


def read(one: Sealed, data: bytes) -> Sealed:
    return decode(type(one), data, subject="file")


@each
def test_it_comes_back_and_is_plain_json(one: Sealed) -> None:
    assert read(one, one.encode()) == one
    tree = json.loads(one.encode())
    assert [*tree][-1] == FIELD
    assert type(one).model_validate(tree) == one


@each
def test_any_flipped_bit_is_noticed(one: Sealed) -> None:
    data = one.encode()
    for at in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            with pytest.raises(CorruptError):
                read(one, bytes(damaged))


@each
def test_one_that_was_written_before_there_were_seals_is_read(one: Sealed) -> None:
    tree = json.loads(one.encode())
    del tree[FIELD]
    assert read(one, json.dumps(tree).encode()) == one


@each
def test_a_file_rewritten_by_another_hand_is_refused(one: Sealed) -> None:
    tree = json.loads(one.encode())
    for again in (json.dumps(tree), json.dumps(tree, sort_keys=True)):
        with pytest.raises(CorruptError, match="its own checksum is another"):
            read(one, again.encode())


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text(), min_size=1))
def test_any_object_can_be_sealed(tree: dict[str, object]) -> None:
    for indent in (None, 1):
        data = sealed(json.dumps(tree, indent=indent).encode())
        assert {name: value for name, value in json.loads(data).items() if name != FIELD} == {
            name: value for name, value in tree.items() if name != FIELD
        }
        assert not is_broken(data)
        assert is_broken(data.replace(b"{", b"{ ", 1))


def test_what_nothing_repeats_is_guarded_too() -> None:
    """The fields of which a record says nothing a second time."""
    record = node_record(7, metrics={"loss": 0.5})
    data = record.encode()
    for was, now in (
        (b'"run":"run"', b'"run":"ran"'),
        (b'"generation":1', b'"generation":2'),
        (b'"loss":0.5', b'"loss":0.4'),
        (b"2026-01-01", b"2025-01-01"),
    ):
        assert was in data
        with pytest.raises(CorruptError, match="its own checksum is another"):
            decode(NodeRecord, data.replace(was, now, 1), subject="file")


def test_the_models_that_are_files_are_sealed() -> None:
    assert all(issubclass(one, Sealed) for one in (GenerationFile, RunFile, NodeRecord, Manifest, Status))
