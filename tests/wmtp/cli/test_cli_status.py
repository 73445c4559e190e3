"""``wmtp status`` of runs that are served, were served, and never were."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli_runs import Run, as_json, one_error, save_step, start_wmtp, wmtp

from uploader import files

FIELDS = {"directory", "trainer", "uploader", "status", "error"}


def test_a_run_that_was_uploaded(run: Run) -> None:
    run.save(10)
    run.upload()
    shown = as_json(result := wmtp("status", run.path, "--json"))
    assert result.exit_code == 0
    assert shown.keys() == FIELDS
    assert (shown["trainer"], shown["uploader"], shown["error"]) == ("not running", "not running", None)
    status = shown["status"]
    assert status["destination"] == str(run.location)
    assert status["newest_durable_step"] == 10
    assert status["durability_lag_steps"] == 0
    text = wmtp("status", run.path).stdout
    assert "newest local step_10, newest durable step_10, lag 0 steps" in text
    assert "1 durable, 0 skipped" in text


def test_who_is_running_is_told_by_the_locks(run: Run) -> None:
    run.directory.uploader_directory.mkdir()
    held = [files.lock(run.directory.trainer_lock), files.lock(run.directory.uploader_lock)]
    try:
        shown = as_json(wmtp("status", run.path, "--json"))
        assert (shown["trainer"], shown["uploader"]) == ("running", "running")
        assert shown["status"] is None
        assert "uploader  running; none has run here yet" in wmtp("status", run.path).stdout
    finally:
        for descriptor in held:
            assert descriptor is not None
            os.close(descriptor)


def test_all_runs_of_the_default_directories(run: Run, in_place: Run) -> None:
    lines = wmtp("status", "--json").stdout.splitlines()
    assert [json.loads(line)["directory"] for line in lines] == [str(run.path), str(in_place.path)]


def test_what_is_wrong_is_shown(run: Run) -> None:
    step = run.save(10)
    (step / "model-rank00000-0001.safetensors").write_bytes(b"other")
    assert wmtp("uploader", "--watch", run.path, "--once").exit_code == 1
    text = wmtp("status", run.path).stdout
    assert "corrupt   step_10@g1: " in text
    assert "  error     " in text


def test_garbage_of_one_run_does_not_hide_the_others(run: Run, tmp_path: Path) -> None:
    run.save(10)
    run.upload()
    broken = tmp_path / "ckpt" / "broken"
    save_step(broken, 1)
    (broken / ".uploader").mkdir()
    (broken / ".uploader" / "status.json").write_text("garbage")
    result = wmtp("status", tmp_path / "ckpt", "--json")
    assert result.exit_code == 1
    first, second = map(json.loads, result.stdout.splitlines())
    assert "broken/.uploader/status.json" in first["error"]
    assert second["status"]["newest_durable_step"] == 10
    assert "broken/.uploader/status.json" in wmtp("status", tmp_path / "ckpt").stdout


@pytest.mark.parametrize("kind", ["nothing", "a file", "an empty directory"])
def test_no_run_there(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "a file":
        path.touch()
    elif kind == "an empty directory":
        path.mkdir()
    result = wmtp("status", path)
    assert result.exit_code == 2
    one_error(result, str(path))


def test_no_run_in_the_default_directories(tmp_path: Path) -> None:
    one_error(wmtp("status"), "ckpt: there is no such directory")


def test_watch_goes_on_until_ctrl_c(run: Run) -> None:
    process = start_wmtp("status", run.path, "--json", "--watch")
    assert process.stdout is not None
    shown = [json.loads(process.stdout.readline()) for _ in range(2)]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "wmtp: interrupted\n"
    assert [one["directory"] for one in shown] == [str(run.path)] * 2


def test_a_reader_that_goes_away_is_no_error(run: Run) -> None:
    """``wmtp status --watch | head -1``."""
    process = start_wmtp("status", run.path, "--json", "--watch")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0
    assert process.stderr.read() == ""
    process.stderr.close()


def test_a_reader_that_was_never_there_is_no_error(run: Run) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = [sys.executable, "-m", "wmtp", "status", str(run.path)]
    done = subprocess.run(arguments, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")
