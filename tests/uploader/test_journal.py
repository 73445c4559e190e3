"""The journal: what it holds survives any crash, and what can't be read is set aside, never guessed."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import files
from uploader.checksum import BLOCK_SIZE_BYTES, of_bytes
from uploader.journal import DAMAGED, Journal, Unfinished, unfinished
from uploader.layout import RunDirectory
from uploader.record import FileRecord

KEY = "step_7/g1/model.safetensors"
UPLOAD = Unfinished(
    destination="s3://bucket/run",
    key=KEY,
    upload_id="id-1",
    size_bytes=100,
    crc64nvme=of_bytes(b""),
    part_size_bytes=BLOCK_SIZE_BYTES,
)


def file(directory: RunDirectory) -> Path:
    (found,) = directory.uploads.glob("*.jsonl")
    return found


def with_etags(**etags: str) -> Unfinished:
    return UPLOAD.model_copy(update={"etags": {int(number[1:]): etag for number, etag in etags.items()}})


def test_an_upload_is_found_again_with_the_parts_it_has(directory: RunDirectory) -> None:
    journal = Journal(directory)
    assert journal.find(KEY) is None and journal.all() == []
    journal.begin(UPLOAD)
    journal.took(KEY, 2, "b")
    journal.took(KEY, 1, "a")
    journal.took(KEY, 2, "c")  # sent again
    assert Journal(directory).find(KEY) == with_etags(n1="a", n2="c")
    assert Journal(directory).all() == [with_etags(n1="a", n2="c")]
    assert UPLOAD.step == "step_7@g1"
    journal.forget(KEY)
    journal.forget(KEY)
    assert os.listdir(directory.uploads) == []


def test_keys_do_not_share_a_file(directory: RunDirectory) -> None:
    journal, keys = Journal(directory), ["a/b", "a+b", "a", "x" * 512]
    for key in keys:
        journal.begin(UPLOAD.model_copy(update={"key": key}))
    assert [upload.key for upload in journal.all()] == sorted(keys)


def test_it_is_durable_before_begin_returns(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    rename, fsync = os.rename, os.fsync
    monkeypatch.setattr(os, "fsync", lambda one: (done.append("fsync"), fsync(one))[1])
    monkeypatch.setattr(os, "rename", lambda *both: (done.append("rename"), rename(*both))[1])
    files.make_directory(directory.uploads)
    done.clear()
    Journal(directory).begin(UPLOAD)
    assert done[-3:] == ["fsync", "rename", "fsync"]
    Journal(directory).took(KEY, 1, "a")
    assert done[-3:] == ["fsync", "rename", "fsync"]  # a part is worth no fsync


@given(st.integers(min_value=0))
def test_a_machine_that_dies_loses_the_last_parts_only(
    tmp_path_factory: pytest.TempPathFactory, at: int
) -> None:
    directory = RunDirectory(tmp_path_factory.mktemp("run"))
    journal, parts = Journal(directory), {number: f"etag-{number}" for number in range(1, 6)}
    journal.begin(UPLOAD)
    begun_bytes = file(directory).stat().st_size
    for number, etag in parts.items():
        journal.took(KEY, number, etag)
    data = file(directory).read_bytes()
    left = data[: begun_bytes + at % (len(data) - begun_bytes + 1)]
    file(directory).write_bytes(left)
    found = Journal(directory).find(KEY)
    count = left.count(b"\n") - 1
    assert found is not None
    assert found.etags == {number: parts[number] for number in range(1, count + 1)}
    journal.begin(found)  # what goes on begins with whole lines
    journal.took(KEY, 9, "new")
    assert Journal(directory).find(KEY) == found.model_copy(update={"etags": {**found.etags, 9: "new"}})


def test_a_restart_goes_on_behind_a_torn_tail(directory: RunDirectory) -> None:
    journal = Journal(directory)
    journal.begin(UPLOAD)
    with open(file(directory), "ab") as torn:
        torn.write(b'{"number": 1, "et\0\0\0')
    assert journal.find(KEY) == UPLOAD


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:40],
        lambda data: b"\0" * len(data) + b"\n",
        lambda data: data.replace(b'"schema_version":1', b'"schema_version":99'),
        lambda data: data.replace(b'"part_size_bytes":8388608', b'"part_size_bytes":7'),
        lambda data: data + b"{}\n",
        lambda data: data + b'{"number":0,"etag":"a"}\n',
    ],
)
def test_what_cannot_be_read_is_set_aside_and_named(  # type: ignore[no-untyped-def]
    directory: RunDirectory, caplog: pytest.LogCaptureFixture, damage
) -> None:
    journal = Journal(directory)
    journal.begin(UPLOAD)
    path = file(directory)
    data = damage(path.read_bytes())
    path.write_bytes(data)
    seen, errors = unfinished(directory)
    assert seen == [] and [error.subject for error in errors] == [str(path)]
    assert path.exists(), "who only looks moves nothing"
    assert journal.find(KEY) is None
    assert str(path) in caplog.text and str(directory.uploads / DAMAGED) in caplog.text
    assert (directory.uploads / DAMAGED).read_bytes() == data
    assert journal.all() == [] and unfinished(directory) == ([], [])
    journal.begin(UPLOAD)
    assert journal.all() == [UPLOAD]


def test_a_full_disk_stops_no_upload(directory: RunDirectory, caplog: pytest.LogCaptureFixture) -> None:
    directory.uploader_directory.mkdir()
    directory.uploads.write_text("a file where the directory should be")
    journal = Journal(directory)
    journal.begin(UPLOAD)
    journal.took(KEY, 1, "a")
    assert caplog.text.count("can't be written") == 2
    assert str(directory.uploads) in caplog.text


def test_what_was_being_written_when_a_process_died_goes(directory: RunDirectory) -> None:
    files.make_directory(directory.uploads)
    (directory.uploads / ".half.jsonl.77.tmp").write_bytes(b"{")
    assert Journal(directory).all() == []
    assert os.listdir(directory.uploads) == []


@pytest.mark.parametrize(
    ("destination", "data", "same"),
    [
        ("s3://bucket/run", b"x" * 100, True),
        ("s3://bucket/other", b"x" * 100, False),
        ("s3://bucket/run", b"x" * 101, False),
        ("s3://bucket/run", b"y" * 100, False),
    ],
)
def test_it_goes_on_for_the_same_bytes_to_the_same_place(destination: str, data: bytes, same: bool) -> None:
    upload = UPLOAD.model_copy(update={"crc64nvme": of_bytes(b"x" * 100)})
    assert upload.is_of(destination, FileRecord.of_bytes("model.safetensors", data)) == same
