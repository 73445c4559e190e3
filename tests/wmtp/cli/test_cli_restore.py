"""``wmtp checkpoints restore``: verified, in one piece or not at all, and going on after a kill."""

import os
import shutil
from pathlib import Path

import pytest
from cli_runs import FILES, MODEL, Run, as_json, flip, one_error, wmtp

from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.restore import check
from uploader.watch import read_step

LARGE = {MODEL: bytes(range(256)) * (3 * BLOCK_SIZE_BYTES // 256) + b"end", "state-rank00000.json": b"{}"}


@pytest.fixture
def far(run: Run) -> Run:
    """A run of which nothing is on this disk any more."""
    run.save(10, files=LARGE)
    run.save(20)
    run.upload()
    shutil.rmtree(run.path)
    return run


def test_from_the_store(far: Run, tmp_path: Path) -> None:
    target = tmp_path / "deep" / "step_10"
    result = wmtp("checkpoints", "restore", far.location, "step_10", target)
    assert result.exit_code == 0
    assert {name: (target / name).read_bytes() for name in LARGE} == LARGE
    check(target, read_step(target).record.files)
    assert result.stdout == f"step_10 of run demo is in {target}: 25.2 MB\n"
    lines = result.stderr.splitlines()
    assert lines[-1] == "restoring step_10: 25.2 of 25.2 MB"
    assert 1 <= len(lines) <= 10
    assert sorted(path.name for path in target.parent.iterdir()) == ["step_10"]


def test_latest_from_this_disk_and_as_json(run: Run, tmp_path: Path) -> None:
    run.save(10)
    run.upload()
    run.save(20)
    target = tmp_path / "there"
    target.mkdir()  # an empty one will do
    done = as_json(result := wmtp("checkpoints", "restore", run.path, "latest", target, "--json"))
    assert (done["name"], done["step"], done["generation"], done["kept_bytes"]) == ("step_20", 20, 1, 0)
    assert done["source"] == f"file://{run.directory.step(20)}"
    assert done["target"] == str(target)
    assert result.stderr == ""
    assert {path.name for path in target.iterdir()} == {*FILES, "node-0000.json"}


@pytest.mark.parametrize("at", [100, BLOCK_SIZE_BYTES + 100])
def test_a_killed_restore_goes_on(far: Run, tmp_path: Path, at: int) -> None:
    """What a kill leaves: the directory that nobody reads, with some of the bytes."""
    target, temporary = tmp_path / "step_10", tmp_path / ".step_10.restoring"
    temporary.mkdir()
    (temporary / MODEL).write_bytes(LARGE[MODEL][: 2 * BLOCK_SIZE_BYTES])
    flip(temporary / MODEL, at)
    done = as_json(wmtp("checkpoints", "restore", far.location, "step_10", target, "--json"))
    assert done["kept_bytes"] in (0, BLOCK_SIZE_BYTES, 2 * BLOCK_SIZE_BYTES)
    assert (target / MODEL).read_bytes() == LARGE[MODEL]
    assert not temporary.exists()


def test_what_is_there_already_is_verified_and_left(far: Run, tmp_path: Path) -> None:
    for kept in (False, True):
        done = as_json(wmtp("checkpoints", "restore", far.location, "step_10", tmp_path / "x", "--json"))
        assert (done["kept_bytes"] == done["size_bytes"]) == kept
    flip(tmp_path / "x" / MODEL, 5)
    one_error(
        wmtp("checkpoints", "restore", far.location, "step_10", tmp_path / "x"), "it holds something else"
    )


@pytest.mark.parametrize("what", ["a file in it", "a file", "a link", "a dangling link", "a directory in it"])
def test_nothing_is_written_over(far: Run, tmp_path: Path, what: str) -> None:
    target, other = tmp_path / "target", tmp_path / "other"
    other.mkdir()
    match what:
        case "a file in it":
            target.mkdir()
            (target / "mine").write_text("mine")
        case "a file":
            target.write_text("mine")
        case "a link":
            target.symlink_to(other)
        case "a dangling link":
            target.symlink_to(tmp_path / "nowhere")
        case _:
            (target / "mine").mkdir(parents=True)
    before = sorted(map(str, target.rglob("*"))), target.is_symlink()
    result = wmtp("checkpoints", "restore", far.location, "latest", target)
    assert result.exit_code == 2
    one_error(result, str(target), "name a new directory")
    assert (sorted(map(str, target.rglob("*"))), target.is_symlink()) == before
    assert os.listdir(other) == []


def test_a_damaged_copy_here_gives_way_to_the_one_in_the_store(run: Run, tmp_path: Path) -> None:
    step = run.save(10, files=LARGE)
    run.upload()
    flip(step / MODEL, BLOCK_SIZE_BYTES + 5)
    result = wmtp("checkpoints", "restore", run.path, "step_10", tmp_path / "x", "--json")
    assert as_json(result)["source"] == f"{run.location}/step_10/g1"
    one_error(result, MODEL, "differ from the record")
    assert (tmp_path / "x" / MODEL).read_bytes() == LARGE[MODEL]


def test_where_no_copy_is_right_nothing_appears(far: Run, tmp_path: Path) -> None:
    flip(far.store / "step_10/g1" / MODEL, 5)
    result = wmtp("checkpoints", "restore", far.location, "step_10", tmp_path / "x")
    assert result.exit_code == 1
    assert "differ from the record" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "x").exists()


def test_a_superseded_step(run: Run, tmp_path: Path) -> None:
    run.save(10)
    run.save(20, metrics={"loss": 1.0})
    run.upload()
    run.start(after_step=10)
    run.forget_here(20)
    run.save(20, metrics={"loss": 9.0})
    run.upload()
    done = as_json(wmtp("checkpoints", "restore", run.path, "step_20@g1", tmp_path / "step_20", "--json"))
    assert (done["name"], done["generation"]) == ("step_20@g1", 1)
    assert read_step(tmp_path / "step_20").record.metrics == {"loss": 1.0}


def test_a_step_that_was_pruned_meanwhile_is_said_to_be(
    far: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wmtp.cli import restore

    copies = restore._copies

    def pruned_then(*arguments: object) -> object:
        far.mark_deleting(10)
        shutil.rmtree(far.store / "step_10")
        return copies(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(restore, "_copies", pruned_then)
    result = wmtp("checkpoints", "restore", far.location, "step_10", tmp_path / "x")
    assert result.exit_code == 1
    one_error(result, "step_10", "it was pruned meanwhile")


def test_no_such_step(far: Run, tmp_path: Path) -> None:
    result = wmtp("checkpoints", "restore", far.location, "step_11", tmp_path / "x")
    one_error(result, "there is no step_11")


@pytest.mark.parametrize(
    "where", ["ckpt/demo", "ckpt/demo/step_99", "ckpt/demo/a/b", "store/demo/x", "link/x"]
)
def test_a_run_is_no_place_for_a_copy(run: Run, tmp_path: Path, where: str) -> None:
    """Its uploader would take it for a step, and its sweep for debris."""
    run.save(10)
    run.upload()
    (tmp_path / "link").symlink_to(run.path)
    result = wmtp("checkpoints", "restore", run.path, "latest", tmp_path / where)
    assert result.exit_code == 2
    one_error(result, str(tmp_path / where), "a part of the run")
    assert [path.name for path in run.path.glob("step_*")] == ["step_10"]


def test_a_large_directory_that_is_something_else_is_not_walked(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(10)
    (tmp_path / "home" / "all" / "of" / "it").mkdir(parents=True)
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("walked"))
    one_error(wmtp("checkpoints", "restore", run.path, "latest", tmp_path / "home"), "holds something else")
