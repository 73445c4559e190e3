"""``wmtp checkpoints pin`` and ``unpin``: beside a living uploader, and found by whoever looks."""

import json
from pathlib import Path

import pytest
from cli_runs import Run, as_json, one_error, states, wmtp

from uploader import files
from uploader.retention import Retention
from uploader.run import RunFile


@pytest.fixture
def stored(run: Run) -> Run:
    for step in (10, 20, 30):
        run.save(step)
    run.upload()
    return run


def keep_last(run: Run, count: int) -> None:
    run_file = RunFile.read(run.directory)
    assert run_file is not None
    run_file.model_copy(update={"retention": Retention(keep_last=count)}).write(run.directory)


def test_a_pinned_step_is_kept_and_shown(stored: Run) -> None:
    lock = files.lock(stored.directory.uploader_lock)  # an uploader serves the run
    assert lock is not None
    result = wmtp("checkpoints", "pin", stored.path, "step_10", "--note", "the paper's")
    assert result.exit_code == 0
    assert result.stdout.startswith("step_10 of run demo is pinned, by ")
    assert states(stored.path)["step_10"] == ["local", "durable", "pinned"]
    shown = as_json(wmtp("checkpoints", "show", stored.path, "step_10", "--json"))
    assert shown["pin"]["note"] == "the paper's"
    assert "the paper's" in wmtp("checkpoints", "show", stored.path, "step_10").stdout
    said = json.loads((stored.store / "pins/step_10@g1.json").read_text())
    assert (said["run"], said["step"], said["note"]) == ("demo", 10, "the paper's")


def test_retention_leaves_it_alone_until_it_is_unpinned(stored: Run) -> None:
    assert wmtp("checkpoints", "pin", stored.path / "step_10").exit_code == 0
    keep_last(stored, 1)
    stored.upload()
    assert states(stored.location) == {"step_30": ["durable"], "step_10": ["durable", "pinned"]}
    found = as_json(wmtp("checkpoints", "unpin", stored.location, "step_10", "--json"))
    assert (found["pinned"], found["changed"], found["pin"]) == (False, True, None)
    again = as_json(wmtp("checkpoints", "unpin", stored.location, "step_10", "--json"))
    assert again["changed"] is False
    stored.save(40)
    stored.upload()
    assert states(stored.location) == {"step_40": ["durable"]}


def test_the_first_pin_holds(stored: Run) -> None:
    first = as_json(wmtp("checkpoints", "pin", stored.path, "--note", "one", "--json"))
    second = as_json(wmtp("checkpoints", "pin", stored.path, "latest", "--note", "two", "--json"))
    assert (first["name"], first["changed"], second["changed"]) == ("step_30", True, False)
    assert second["pin"] == first["pin"]
    assert "pinned already" in wmtp("checkpoints", "pin", stored.path).stdout


def test_a_rebuild_finds_the_pin(stored: Run) -> None:
    assert wmtp("checkpoints", "pin", stored.path, "step_20").exit_code == 0
    (stored.store / "manifest.json").unlink()
    assert wmtp("checkpoints", "rebuild", stored.location).exit_code == 0
    assert states(stored.location)["step_20"] == ["durable", "pinned"]


def test_a_superseded_step_can_be_pinned(stored: Run) -> None:
    stored.start(after_step=10)
    stored.forget_here(20)
    stored.forget_here(30)
    stored.save(20)
    stored.upload()
    assert wmtp("checkpoints", "pin", stored.location, "step_30@g1").exit_code == 0
    assert states(stored.location)["step_30@g1"] == ["durable", "pinned", "superseded"]


def test_a_step_being_pruned_is_refused(stored: Run) -> None:
    stored.mark_deleting(10)
    stored.forget_here(10)
    result = wmtp("checkpoints", "pin", stored.path, "step_10@g1")
    assert result.exit_code == 1
    one_error(result, "step_10@g1", "it is being pruned")
    assert not (stored.store / "pins/step_10@g1.json").exists()


def test_a_step_that_is_only_here_is_refused(run: Run) -> None:
    run.save(10)
    result = wmtp("checkpoints", "pin", run.path, "step_10")
    assert result.exit_code == 1
    one_error(result, "step_10", "not in the store yet")


@pytest.mark.parametrize("command", ["pin", "unpin"])
def test_no_such_step(stored: Run, command: str) -> None:
    one_error(wmtp("checkpoints", command, stored.path, "step_11"), "there is no step_11", "step_30")


def test_a_note_without_end_is_refused(stored: Run) -> None:
    result = wmtp("checkpoints", "pin", stored.path, "--note", "x" * 2000)
    assert result.exit_code == 2
    one_error(result, "--note", "1000 characters")


def test_a_store_that_does_not_answer(run: Run, tmp_path: Path) -> None:
    run.save(10)
    run.use_stopped_server(tmp_path)
    one_error(wmtp("checkpoints", "pin", run.path, "step_10"), "the S3 server of this machine is not running")


def test_pins_of_a_run_in_place(in_place: Run) -> None:
    for step in (10, 20):
        in_place.save(step)
    in_place.upload()
    assert wmtp("checkpoints", "pin", in_place.path, "step_10").exit_code == 0
    keep_last(in_place, 1)
    in_place.save(30)
    in_place.upload()
    assert states(in_place.path) == {
        "step_30": ["local", "durable"],
        "step_10": ["local", "durable", "pinned"],
    }
