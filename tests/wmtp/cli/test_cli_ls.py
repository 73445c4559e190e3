"""``wmtp checkpoints ls`` and ``show`` of whole runs."""

import json
import os
from pathlib import Path

import pytest
from cli_runs import (
    FILES,
    MODEL,
    RUN_FIELDS,
    STEP_FIELDS,
    Run,
    as_json,
    one_error,
    save_step,
    states,
    wmtp,
)

from uploader.layout import MANIFEST_KEY


def test_ls_shows_disk_and_store_together(run: Run) -> None:
    run.save(10)
    run.save(20)
    run.upload()
    run.forget_here(10)
    run.save(30)
    result = wmtp("checkpoints", "ls", run.path, "--json")
    listed = as_json(result)
    assert result.exit_code == 0
    assert listed.keys() == RUN_FIELDS | {"latest", "steps"}
    assert listed["run"] == "demo"
    assert listed["directory"] == str(run.path)
    assert listed["store"] == str(run.location)
    assert listed["latest"] == "step_30"
    assert listed["errors"] == []
    assert all(step.keys() == STEP_FIELDS for step in listed["steps"])
    assert [(step["name"], step["states"]) for step in listed["steps"]] == [
        ("step_30", ["local"]),
        ("step_20", ["local", "durable"]),
        ("step_10", ["durable"]),
    ]
    newest = listed["steps"][0]
    assert newest["metrics"] == {"loss": 2.5}
    assert newest["size_bytes"] == sum(map(len, FILES.values()))
    assert newest["created_at"] == "2026-01-01T00:00:30+00:00"


def test_ls_for_people(run: Run) -> None:
    run.save(10)
    run.upload()
    result = wmtp("checkpoints", "ls", run.path)
    heading, titles, row = result.stdout.splitlines()
    assert heading == f"run demo in {run.path}, store {run.location}"
    assert titles.split() == ["STEP", "STATES", "SIZE", "AGE", "LOSS"]
    assert row.split()[:3] == ["step_10", "local,", "durable"]
    assert row.endswith("2.5000")


@pytest.mark.parametrize("form", ["{}", "file://{}", "{}/"])
def test_ls_of_a_file_store(run: Run, form: str) -> None:
    run.save(10)
    run.upload()
    assert states(form.format(run.store)) == {"step_10": ["durable"]}


def test_ls_of_a_run_in_place(in_place: Run) -> None:
    in_place.save(10)
    in_place.upload()
    in_place.save(20)
    expected = {"step_20": ["local"], "step_10": ["local", "durable"]}
    assert states(in_place.path) == states(in_place.location) == expected


def test_ls_of_a_parent_lists_every_run(run: Run, tmp_path: Path) -> None:
    run.save(10)
    save_step(tmp_path / "ckpt" / "other", 5)
    (tmp_path / "ckpt" / "no-run").mkdir()
    lines = wmtp("checkpoints", "ls", tmp_path / "ckpt", "--json").stdout.splitlines()
    assert [(one["run"], one["latest"]) for one in map(json.loads, lines)] == [
        ("demo", "step_10"),
        ("other", "step_5"),
    ]


def test_one_broken_run_of_a_parent_does_not_hide_the_others(run: Run, tmp_path: Path) -> None:
    run.save(10)
    (tmp_path / "ckpt" / "broken").mkdir()
    (tmp_path / "ckpt" / "broken" / "run.json").write_text("{")
    result = wmtp("checkpoints", "ls", tmp_path / "ckpt", "--json")
    assert result.exit_code == 1
    assert as_json(result)["run"] == "demo"
    one_error(result, "broken/run.json", "start the trainer again")


def test_superseded_steps_keep_a_name_of_their_own(run: Run) -> None:
    run.save(10)
    run.save(20)
    run.upload()
    run.start(after_step=10)
    run.forget_here(20)
    run.save(20)
    run.upload()
    assert states(run.path) == {
        "step_20": ["local", "durable"],
        "step_20@g1": ["durable", "superseded"],
        "step_10": ["local", "durable"],
    }


def test_a_local_step_that_leads_nowhere_is_superseded(run: Run) -> None:
    run.save(10)
    run.save(20)
    run.start(after_step=10)
    assert states(run.path) == {"step_20@g1": ["local", "superseded"], "step_10": ["local"]}


def test_a_step_being_pruned_is_not_durable(run: Run) -> None:
    for step in (10, 20):
        run.save(step)
    run.upload()
    run.mark_deleting(10)
    run.forget_here(10)
    assert states(run.path) == {"step_20": ["local", "durable"], "step_10@g1": ["pruning"]}


@pytest.mark.parametrize("what", ["a file is short", "a file is missing", "the record is garbage"])
def test_a_damaged_copy_is_corrupt(run: Run, what: str) -> None:
    run.save(10)
    run.upload()
    step = run.save(20)
    run.upload()
    match what:
        case "a file is short":
            os.truncate(step / MODEL, 3)
        case "a file is missing":
            (step / MODEL).unlink()
        case _:
            (step / "node-0000.json").write_text("{")
    assert states(run.path)["step_20"] == ["corrupt", "durable"]


def test_a_damaged_step_that_is_nowhere_else(run: Run) -> None:
    (run.save(10) / "node-0000.json").write_text("garbage")
    listed = as_json(wmtp("checkpoints", "ls", run.path, "--json"))
    (step,) = listed["steps"]
    assert (step["name"], step["states"], step["generation"]) == ("step_10", ["corrupt"], None)
    assert listed["latest"] is None
    assert wmtp("checkpoints", "ls", run.path).stdout.splitlines()[-1].split() == ["step_10", "corrupt"]
    assert wmtp("checkpoints", "show", run.path, "step_10").exit_code == 1


def test_ls_of_a_run_without_checkpoints(run: Run) -> None:
    result = wmtp("checkpoints", "ls", run.path)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "  no checkpoints yet")


def test_a_run_that_only_an_uploader_knows(tmp_path: Path) -> None:
    """Without ``run.json`` the destination is the one its uploader wrote down."""
    path = tmp_path / "ckpt" / "foreign"
    save_step(path, 10)
    assert states(path) == {"step_10": ["local"]}
    assert as_json(wmtp("checkpoints", "ls", path, "--json"))["store"] is None
    assert wmtp("uploader", "--watch", path, "--to", tmp_path / "store", "--once").exit_code == 0
    assert states(path) == {"step_10": ["local", "durable"]}


def test_show_the_latest(run: Run) -> None:
    run.save(10)
    run.save(20)
    run.upload()
    shown = as_json(wmtp("checkpoints", "show", run.path, "--json"))
    fields = {"local", "record", "pin", "world_size", "fingerprints", "files"}
    assert shown.keys() == RUN_FIELDS | STEP_FIELDS | fields
    assert shown["name"] == "step_20"
    assert shown["local"] == str(run.directory.step(20))
    assert shown["record"] == f"{run.location}/step_20/g1/checkpoint.json"
    assert shown["fingerprints"] == {"model": "abc"}
    assert shown["world_size"] == 1
    files = {file["path"]: file for file in shown["files"]}
    assert files.keys() == {*FILES, "node-0000.json"}
    assert files[MODEL].keys() == {"path", "size_bytes", "crc64nvme"}
    text = wmtp("checkpoints", "show", run.path).stdout
    assert files[MODEL]["crc64nvme"] in text
    assert text.startswith("step_20 of run demo\n")


def test_show_a_local_step(run: Run) -> None:
    run.save(10)
    shown = as_json(wmtp("checkpoints", "show", run.path, "step_10", "--json"))
    assert shown["record"] == str(run.directory.step(10) / "node-0000.json")
    assert shown["states"] == ["local"]


def test_show_names_the_step_in_every_way(run: Run) -> None:
    run.save(10)
    run.save(20)
    run.upload()
    run.start(after_step=10)
    run.save(30)
    run.upload()
    ways = {
        (f"{run.path}/step_10",): "step_10",
        (f"{run.location}/step_10",): "step_10",
        (run.path, "step_10@g1"): "step_10",
        (run.path, "step_20@g1"): "step_20@g1",
        (run.location, "latest"): "step_30",
    }
    for arguments, name in ways.items():
        assert as_json(wmtp("checkpoints", "show", *arguments, "--json"))["name"] == name
    assert wmtp("checkpoints", "show", run.path, "step_20").exit_code == 1
    assert wmtp("checkpoints", "show", run.path / "step_10", "step_20").exit_code == 2


@pytest.mark.parametrize(
    ("name", "step"),
    [("checkpoint-500", 500), ("checkpoint_step_70.pt", 70), ("step=30.ckpt", 30), ("global_step8", 8)],
)
def test_the_run_directory_of_another_trainer(tmp_path: Path, name: str, step: int) -> None:
    path = tmp_path / "outputs" / "foreign"
    path.mkdir(parents=True)
    checkpoint = path / name
    if "." in name:
        checkpoint.write_bytes(b"\x80weights")
    else:
        checkpoint.mkdir()
        (checkpoint / "trainer_state.json").write_text("{}")
    size_bytes = 8 if "." in name else 2
    listed = as_json(wmtp("checkpoints", "ls", path, "--json"))
    (found,) = listed["steps"]
    assert found.keys() == STEP_FIELDS
    assert (listed["directory"], listed["store"], listed["latest"]) == (str(path), None, f"step_{step}")
    assert (found["name"], found["states"], found["size_bytes"]) == (f"step_{step}", ["local"], size_bytes)
    lines = wmtp("checkpoints", "ls", path.parent).stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [f"step_{step}"]
    upload = ("uploader", "--watch", path, "--to", tmp_path / "store", "--once", "--quiet-s", "0")
    assert wmtp(*upload).exit_code == 0
    assert states(path) == {f"step_{step}": ["local", "durable"]}
    assert wmtp("checkpoints", "pin", path, f"step_{step}").exit_code == 0
    assert states(tmp_path / "store" / "foreign") == {f"step_{step}": ["durable", "pinned"]}


def test_a_file_store_is_no_foreign_run_even_without_its_manifest(run: Run) -> None:
    run.save(10)
    run.upload()
    (run.store / MANIFEST_KEY).unlink()
    listed = as_json(wmtp("checkpoints", "ls", f"file://{run.store}", "--json"))
    assert (listed["directory"], listed["store"]) == (None, str(run.location))
    assert [step["states"] for step in listed["steps"]] == [["durable"]]


def test_what_a_record_says_moves_no_cursor(run: Run) -> None:
    hostile = "\x1b[2J\r\x9b31m"
    run.save(10, metrics={"loss": hostile, hostile: 1.0})
    run.upload()
    for words in (("ls",), ("show",), ("verify",)):
        said = wmtp("checkpoints", *words, run.path)
        assert said.exit_code == 0
        assert not {"\x1b", "\r", "\x9b"} & {*said.output}
    assert as_json(wmtp("checkpoints", "ls", run.path, "--json"))["steps"][0]["metrics"]["loss"] == hostile
