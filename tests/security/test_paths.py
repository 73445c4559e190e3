"""No path that a record, a manifest or a journal names leads out of its directory, whoever wrote it."""

import json
import os
import unicodedata
from typing import Any

import pytest
from hostile import (
    ENTRY,
    EXAMPLES,
    LOOK_ALIKE,
    MANIFEST,
    SHARD,
    TAKEN,
    UPLOAD,
    file_record,
    hostile_paths,
    places,
    put,
    safe_paths,
    tree_of,
    with_paths,
)
from hypothesis import given
from hypothesis import strategies as st

from uploader import layout
from uploader.errors import CorruptError
from uploader.events import ShardSaved
from uploader.journal import Journal, Unfinished
from uploader.layout import RunDirectory
from uploader.manifest import Manifest
from uploader.record import CommitRecord, NodeRecord, RankRecord, decode
from uploader.settings import Strict
from uploader.taken import Taken

kinds = st.sampled_from([NodeRecord, CommitRecord, RankRecord, Taken])


def dumped(tree: Any) -> bytes:
    return json.dumps(tree).encode()


def refused(kind: type[Strict], tree: Any) -> str:
    """What a person reads: one line, printable, that names the file."""
    with pytest.raises(CorruptError) as caught:
        decode(kind, dumped(tree), subject="the-file.json")
    message = str(caught.value)
    assert "the-file.json" in message
    assert "\n" not in message and "\x1b" not in message and "\0" not in message
    return message


@given(kinds, hostile_paths)
def test_a_hostile_path_is_refused_when_it_is_read(kind: type[Strict], path: str) -> None:
    assert not layout.is_safe_path(path) or layout.is_record(layout.alike(path))
    refused(kind, with_paths(path)[kind])


@given(kinds, safe_paths)
def test_a_harmless_path_is_taken(kind: type[Strict], path: str) -> None:
    assert decode(kind, dumped(with_paths(path)[kind]), subject="x") is not None


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["a", ".", "/", "\\", *LOOK_ALIKE]), max_size=8).map("".join)
)
def test_whatever_is_taken_stays_below_on_every_file_system(path: str) -> None:
    if layout.is_safe_path(path):
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            normal = unicodedata.normalize(form, path)
            assert os.path.normpath(f"/run/step_1/{normal}") == f"/run/step_1/{normal}"
            assert "\\" not in normal and ":" not in normal and "\0" not in normal
            assert all(part.rstrip(". ") == part for part in normal.split("/"))


@given(hostile_paths)
def test_an_event_of_a_hostile_path_is_refused(path: str) -> None:
    if not layout.is_record(layout.alike(path)):
        refused(ShardSaved, {**tree_of(SHARD), "file": file_record(path)})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a", "a"),
        ("model.bin", "MODEL.bin"),
        ("straße", "STRASSE"),
        ("\u00e9", "e\u0301"),
        ("ﬁle", "file"),
        ("Ａ.bin", "a.bin"),
        ("\u212a", "k"),  # the sign for Kelvin
    ],
)
@pytest.mark.parametrize("kind", [NodeRecord, CommitRecord, RankRecord])
def test_two_paths_that_some_file_system_takes_for_one(kind: type[Strict], one: str, other: str) -> None:
    assert "stands twice" in refused(kind, with_paths(one, other)[kind])


@pytest.mark.parametrize(
    "paths", [("a", "a/b"), ("a/b/c", "a"), ("A", "a/b"), ("x/y", "x/y/z/w"), ("a/b", "z", "a")]
)
@pytest.mark.parametrize("kind", [NodeRecord, CommitRecord, RankRecord])
def test_a_file_is_no_directory_of_another(kind: type[Strict], paths: tuple[str, ...]) -> None:
    assert "a file and a directory" in refused(kind, with_paths(*paths)[kind])
    assert decode(kind, dumped(with_paths("a-b", "a/b", "ab/c")[kind]), subject="x") is not None


@pytest.mark.parametrize(
    "path", ["checkpoint.json", "CheckPoint.json", "g3/checkpoint.json", "ｃheckpoint.json"]
)
@pytest.mark.parametrize("kind", [NodeRecord, CommitRecord, RankRecord])
def test_no_file_is_taken_for_a_commit_record(kind: type[Strict], path: str) -> None:
    assert "a record stands" in refused(kind, with_paths(path)[kind])


KEYS = [
    "../other/step_7/g1/checkpoint.json",
    "/step_7/g1/checkpoint.json",
    "step_7/../step_7/g1/checkpoint.json",
    "step_7/g1/../g1/checkpoint.json",
    "step_7\\g1\\checkpoint.json",
    "step_7/g1/checkpoint.json\0",
    "step_7/g1/checkpoint.json\n",
    "step_7/g2/checkpoint.json",  # of another generation: pruning would delete that one's record
    "step_8/g1/checkpoint.json",
    "step_7/g1/x/checkpoint.json",
    "step_７/g1/checkpoint.json",
    "manifest.json",
    "generations/0001.json",
    "",
]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("where", ["live", "superseded", "deleting"])
def test_an_entry_names_its_own_record_and_nothing_else(where: str, key: str) -> None:
    entry = {**tree_of(ENTRY), "record": key}
    name = "step_7" if where == "live" else "step_7@g1"
    tree = {**tree_of(MANIFEST), "live": {}, "superseded": {}, "latest": 7 if where == "live" else None}
    refused(Manifest, {**tree, where: {name: entry}})


@pytest.mark.parametrize("name", ["../step_7", "step_07", "STEP_7", "step_7/", "step_7@g01", "7"])
def test_an_entry_has_its_own_name(name: str) -> None:
    refused(Manifest, {**tree_of(MANIFEST), "live": {name: tree_of(ENTRY)}})


@pytest.mark.parametrize(
    "key", ["../x", "/x", "step_7/g1/../../x", "a//b", "a\\b", "a\0b", "", "./a", "a/", "\x1b[2J"]
)
def test_a_journal_names_a_key_of_its_run(directory: RunDirectory, key: str) -> None:
    refused(Unfinished, {**tree_of(UPLOAD), "key": key})
    directory.uploads.mkdir(parents=True)
    (directory.uploads / "1.jsonl").write_bytes(dumped({**tree_of(UPLOAD), "key": key}) + b"\n")
    assert Journal(directory).all() == []


@pytest.mark.parametrize("entry", ["../step_7.pt", "/etc/passwd", "..", ".", "", "a/b", "a\0"])
def test_what_was_read_of_a_foreign_checkpoint_lies_in_its_run(entry: str) -> None:
    refused(Taken, {**tree_of(TAKEN), "entry": entry})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | hostile_paths,
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=6,
)


@given(st.data())
def test_whatever_is_changed_in_a_file_of_ours_it_is_read_or_refused(data: st.DataObject) -> None:
    """Never another exception; and of what is read no path is unsafe."""
    kind = data.draw(st.sampled_from([*EXAMPLES]))
    tree = tree_of(EXAMPLES[kind])
    for _ in range(data.draw(st.integers(1, 2))):
        tree = put(tree, data.draw(st.sampled_from([*places(tree)])), data.draw(json_values))
    try:
        read = decode(kind, dumped(tree), subject="the-file.json")
    except CorruptError as error:
        assert "the-file.json" in str(error) and "\n" not in str(error)
        return
    record = read.record if isinstance(read, Taken) else read
    if isinstance(record, NodeRecord | CommitRecord | RankRecord):
        assert all(layout.is_safe_path(file.path) for file in record.files)


@given(st.binary(max_size=64))
def test_bytes_that_are_no_json(data: bytes) -> None:
    for kind in EXAMPLES:
        with pytest.raises(CorruptError, match="the file"):
            decode(kind, data, subject="the file")


def test_the_examples_are_read() -> None:
    """Else every refusal above would mean nothing."""
    for kind, example in EXAMPLES.items():
        assert decode(kind, dumped(tree_of(example)), subject="x") == example
