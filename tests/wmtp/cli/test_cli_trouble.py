"""``wmtp checkpoints`` where something can't be read or reached, and how it is repaired."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_runs import (
    MODEL,
    Run,
    as_json,
    one_error,
    save_step,
    states,
    wmtp,
)

from uploader.layout import MANIFEST_KEY
from uploader.location import Location
from uploader.settings import StorageSettings
from wmtp.cli import places


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["there is no such directory"]),
        (lambda path: path.write_text(""), ["it is not a directory"]),
        (lambda path: path.mkdir(), ["there is no run"]),
    ],
    ids=["nothing", "a file", "an empty directory"],
)
@pytest.mark.parametrize("command", ["ls", "show", "verify", "rebuild"])
def test_no_run_there(tmp_path: Path, command: str, make: Callable[[Path], object], words: list[str]) -> None:
    make(tmp_path / "x")
    result = wmtp("checkpoints", command, tmp_path / "x")
    assert result.exit_code == 1
    one_error(result, str(tmp_path / "x"), *words)


def test_a_name_that_the_system_refuses(tmp_path: Path) -> None:
    result = wmtp("checkpoints", "ls", tmp_path / ("x" * 300))
    assert result.exit_code == 1
    one_error(result, "name too long")


COMMANDS = ["checkpoints ls", "checkpoints rebuild", "status", "uploader --once --watch"]
NOT_ROOT = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
"""What makes root ask for permission like anybody else."""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("closed", ["", "run.json"])
def test_what_may_not_be_read(run: Run, command: str, closed: str) -> None:
    prefix = NOT_ROOT if os.geteuid() == 0 else []
    if prefix and shutil.which(prefix[0]) is None:
        pytest.skip("root may read everything")
    run.save(10)
    path = run.path / closed
    mode = path.stat().st_mode
    path.chmod(0)
    try:
        arguments = [*prefix, sys.executable, "-m", "wmtp", *command.split(), str(run.path)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    finally:
        path.chmod(mode)
    if command == "status" and closed:
        assert (done.returncode, done.stderr) == (0, "")  # it does not read run.json
        return
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert "demo" in last
    assert "Permission denied" in last or "not readable" in last


def test_several_runs_where_one_is_meant(run: Run, tmp_path: Path) -> None:
    save_step(tmp_path / "ckpt" / "other", 5)
    result = wmtp("checkpoints", "show", tmp_path / "ckpt")
    assert result.exit_code == 2
    one_error(result, "it holds 2 runs", "demo, other")


def test_a_step_that_is_not_there(run: Run) -> None:
    run.save(10)
    run.save(20)
    for command in ("show", "verify"):
        result = wmtp("checkpoints", command, run.path, "step_30")
        assert result.exit_code == 1
        one_error(result, "there is no step_30", "step_20, step_10")


def test_garbage_in_status_json_is_told_and_hides_nothing(run: Run) -> None:
    run.save(10)
    run.upload()
    run.directory.status_file.write_text("garbage")
    result = wmtp("checkpoints", "ls", run.path)
    assert result.exit_code == 1
    assert "step_10" in result.stdout
    one_error(result, "status.json")


def test_a_truncated_manifest_names_the_command_that_repairs_it(run: Run) -> None:
    for step in (10, 20):
        run.save(step)
    run.upload()
    run.forget_here(10)
    manifest = run.store / MANIFEST_KEY
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:50])
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}

    result = wmtp("checkpoints", "ls", run.path, "--json")
    assert result.exit_code == 1
    assert [step["name"] for step in as_json(result)["steps"]] == ["step_20"]
    assert f"`wmtp checkpoints rebuild {run.path}`" in one_error(result, MANIFEST_KEY)
    by_uri = wmtp("checkpoints", "ls", run.location)
    assert by_uri.exit_code == 1
    one_error(by_uri, f"`wmtp checkpoints rebuild {run.location}`")

    rebuilt = wmtp("checkpoints", "rebuild", run.path, "--json")
    assert rebuilt.exit_code == 0
    assert as_json(rebuilt) == {
        "run": "demo",
        "store": str(run.location),
        "generation": 1,
        "latest": "step_20",
        "live": ["step_20", "step_10"],
        "superseded": [],
        "left_out": [],
    }
    assert json.loads(manifest.read_bytes()) == json.loads(whole)
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert wmtp("checkpoints", "verify", run.path).exit_code == 0


def test_rebuild_for_people(run: Run) -> None:
    run.save(10)
    run.upload()
    (run.store / MANIFEST_KEY).unlink()
    lines = wmtp("checkpoints", "rebuild", run.location).stdout.splitlines()
    assert lines[0] == f"{run.location}/manifest.json is written anew from the commit records"
    assert [line.split() for line in lines[1:]] == [
        ["generation", "1"],
        ["live", "step_10"],
        ["superseded", "none"],
    ]


def test_a_rebuild_leaves_out_what_is_not_all_there(run: Run) -> None:
    for step in (10, 20):
        run.save(step)
    run.upload()
    (run.store / "step_10" / "g1" / MODEL).unlink()
    found = as_json(wmtp("checkpoints", "rebuild", run.location, "--json"))
    assert (found["live"], len(found["left_out"])) == (["step_20"], 1)
    assert "step_10/g1/checkpoint.json: 1 of its files" in found["left_out"][0]
    last = wmtp("checkpoints", "rebuild", run.location).stdout.splitlines()[-1]
    assert last == f"  left out    {found['left_out'][0]}"


def test_rebuild_makes_no_run_where_there_is_none(run: Run, tmp_path: Path) -> None:
    run.save(10)
    run.upload()
    (tmp_path / "store" / "step_1").mkdir()
    result = wmtp("checkpoints", "rebuild", tmp_path / "store")
    assert result.exit_code == 1
    assert not (tmp_path / "store" / MANIFEST_KEY).exists()


def test_a_dead_endpoint_hides_nothing_of_the_disk(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "STORE_TIMEOUT_S", 0.0)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    run.save(10)
    run.use_dead_endpoint()
    for command in ("ls", "show", "verify"):
        result = wmtp("checkpoints", command, run.path)
        assert result.exit_code == 1
        assert "step_10" in result.stdout
        one_error(result, "no connection")
    one_error(wmtp("checkpoints", "rebuild", run.path), "no connection")


def test_a_stopped_server_of_this_machine_says_how_to_start_it(run: Run, tmp_path: Path) -> None:
    run.save(10)
    data = run.use_stopped_server(tmp_path)
    result = wmtp("checkpoints", "ls", run.path)
    assert result.exit_code == 1
    assert "step_10" in result.stdout
    one_error(result, f"`wmtp dev-s3 --data {data}`")


def test_a_config_that_names_no_store(tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text("storge: {}\n")
    result = wmtp("checkpoints", "ls", "s3://bucket/demo", "-c", "wrong.yaml")
    assert result.exit_code == 2
    one_error(result, "storge", "storage")


@pytest.mark.e2e
def test_a_run_in_s3(s3_place: tuple[Location, StorageSettings], tmp_path: Path) -> None:
    base, storage = s3_place
    run = Run(tmp_path / "ckpt" / "demo", base.join("demo"), storage)
    run.start()
    run.save(10)
    run.save(20)
    run.upload()
    run.forget_here(10)
    assert states(run.path) == {"step_20": ["local", "durable"], "step_10": ["durable"]}

    config = tmp_path / "configs" / "config.yaml"  # the one of the working directory
    config.parent.mkdir()
    config.write_text(json.dumps({"storage": storage.model_dump(exclude_none=True)}))
    shutil.rmtree(run.path)
    assert states(run.location) == {"step_20": ["durable"], "step_10": ["durable"]}
    shown = as_json(wmtp("checkpoints", "show", f"{run.location}/step_10", "--json", "-c", config))
    assert shown["record"] == f"{run.location}/step_10/g1/checkpoint.json"
    verified = wmtp("checkpoints", "verify", run.location)
    assert verified.exit_code == 0
    assert verified.stdout.count("  ok  ") == 2
    nothing = wmtp("checkpoints", "ls", base)
    assert nothing.exit_code == 1
    one_error(nothing, "there is no run", "runs below it: demo")
    wrong = wmtp("checkpoints", "ls", f"s3://no-such-bucket/{run.location.path}")
    assert wrong.exit_code == 1
    one_error(wrong, "no such bucket")
