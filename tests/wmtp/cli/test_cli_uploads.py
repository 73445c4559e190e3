"""``wmtp checkpoints uploads``: what is unfinished, what of it goes on, and an end to the rest."""

from pathlib import Path

import anyio
import pytest
from cli_runs import RUN_FIELDS, Run, as_json, one_error, wmtp

from uploader import checksum
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.journal import Journal, Unfinished
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store import ObjectStore, open_store

PART = b"p" * 100
FIELDS = {"key", "upload_id", "age_s", "parts", "size_bytes", "continued"}


def begin(run: Run, key: str, *, parts: int = 0, journal: bool = False) -> str:
    """An upload with so many parts, written down or not; returns its id."""

    async def begun() -> str:
        async with open_store(run.location, run.storage) as store:
            upload_id = await store.create_upload(key)
            for number in range(1, parts + 1):
                await store.upload_part(key, upload_id, number, PART, checksum.of_bytes(PART))
            if journal:
                Journal(run.directory).begin(unfinished(store, upload_id, key))
            return upload_id

    return anyio.run(begun)


def unfinished(store: ObjectStore, upload_id: str, key: str) -> Unfinished:
    return Unfinished(
        destination=store.uri,
        key=key,
        upload_id=upload_id,
        size_bytes=1000,
        crc64nvme=checksum.of_bytes(b""),
        part_size_bytes=BLOCK_SIZE_BYTES,
    )


def listed(run: object) -> list[str]:
    return sorted(one["key"] for one in as_json(wmtp("checkpoints", "uploads", run, "--json"))["uploads"])


@pytest.fixture(params=["file", "s3"])
def place(request: pytest.FixtureRequest, run: Run, tmp_path: Path) -> Run:
    """A run on this disk, whose store is a directory or a real S3 server."""
    if request.param == "file":
        return run
    location, storage = request.getfixturevalue("s3_place")
    made = Run(tmp_path / "ckpt" / "on-s3", location.join("on-s3"), storage)
    made.start()
    return made


def test_what_is_unfinished_and_whether_it_goes_on(place: Run) -> None:
    ours = begin(place, "step_1/g1/model", parts=2, journal=True)
    other = begin(place, "step_1/g1/optim", parts=1)
    begin(place, "notes/of/somebody")
    result = wmtp("checkpoints", "uploads", place.path, "--json")
    found = as_json(result)
    assert result.exit_code == 0
    assert found.keys() == RUN_FIELDS | {"uploads", "aborted"}
    assert (found["directory"], found["store"]) == (str(place.path), str(place.location))
    assert all(one.keys() == FIELDS for one in found["uploads"])
    assert sorted((one["key"], one["upload_id"], one["parts"], one["size_bytes"], one["continued"])
                  for one in found["uploads"]) == [
        ("step_1/g1/model", ours, 2, 200, True),
        ("step_1/g1/optim", other, 1, 100, False),
    ]  # fmt: skip
    assert all(0 <= one["age_s"] < 3600 for one in found["uploads"])
    assert listed(place.path) == ["step_1/g1/model", "step_1/g1/optim"], "asking leaves nothing behind"


def test_for_people(run: Run) -> None:
    assert "no unfinished uploads" in wmtp("checkpoints", "uploads", run.path).stdout
    upload_id = begin(run, "step_1/g1/model", parts=1, journal=True)
    heading, titles, row = wmtp("checkpoints", "uploads", run.path).stdout.splitlines()
    assert heading == f"run demo in {run.path}, store {run.location}"
    assert titles.split() == ["KEY", "AGE", "PARTS", "SENT", "CONTINUED", "UPLOAD", "ID"]
    assert row.split() == ["step_1/g1/model", "0.0", "h", "1", "0.0", "MB", "yes", upload_id]


def test_abort_takes_those_that_nobody_continues_and_no_other(place: Run) -> None:
    begin(place, "step_1/g1/model", parts=1, journal=True)
    other = begin(place, "step_1/g1/optim", parts=1)
    one_error(wmtp("checkpoints", "uploads", place.path, "--abort"), "1 uploads would be aborted", "--yes")
    assert listed(place.path) == ["step_1/g1/model", "step_1/g1/optim"]
    found = as_json(wmtp("checkpoints", "uploads", place.path, "--abort", "--yes", "--json"))
    assert found["aborted"] == [other]
    assert listed(place.path) == ["step_1/g1/model"]
    again = as_json(wmtp("checkpoints", "uploads", place.path, "--abort", "--json"))
    assert again["aborted"] == [], "where there is nothing to abort nobody is asked"


def test_where_no_journal_is_at_hand_it_says_so(run: Run) -> None:
    begin(run, "step_1/g1/model", journal=True)
    (run.store / "manifest.json").parent.mkdir(parents=True, exist_ok=True)
    (run.store / "manifest.json").write_text("{}")
    result = wmtp("checkpoints", "uploads", run.location, "--abort")
    one_error(result, "no journal is here", "an uploader elsewhere", "--yes")
    assert listed(run.path) == ["step_1/g1/model"]


def test_a_journal_that_cannot_be_read_is_named(run: Run) -> None:
    begin(run, "step_1/g1/model", journal=True)
    (file,) = run.directory.uploads.iterdir()
    file.write_bytes(b"{}\n")
    result = wmtp("checkpoints", "uploads", run.path)
    assert result.exit_code == 1
    one_error(result, str(file))
    assert file.exists()


def test_without_a_store_there_is_nothing_to_list(tmp_path: Path) -> None:
    run = Run(tmp_path / "ckpt" / "lost", Location("", str(tmp_path / "x")), StorageSettings())
    run.save(1)
    assert RunDirectory(run.path).run_file.exists() is False
    result = wmtp("checkpoints", "uploads", run.path)
    assert result.exit_code == 2
    one_error(result, "nobody has said where its store is")
