"""``wmtp uploader`` as a process: once, watching a parent, stopped by a signal."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import IO

import pytest
from cli_runs import Run, as_json, one_error, save_step, start_wmtp, wmtp

from uploader.layout import MANIFEST_KEY
from uploader.status import read_status


def upload_once(*arguments: object) -> subprocess.CompletedProcess[str]:
    process = start_wmtp("uploader", *arguments, "--once")
    out, said = process.communicate(timeout=60)
    assert "Traceback" not in said
    return subprocess.CompletedProcess(process.args, process.returncode, out, said)


def live(store: Path) -> list[str]:
    return list(json.loads((store / MANIFEST_KEY).read_text())["live"])


def read_until(stream: IO[str] | None, text: str) -> str:
    """The first line that holds the text; the test's own timeout ends the wait."""
    assert stream is not None
    return next(line for line in stream if text in line)


def test_once_goes_where_run_json_says(run: Run) -> None:
    run.save(10)
    run.save(20)
    done = upload_once("--watch", run.path)
    assert done.returncode == 0, done.stderr
    assert live(run.store) == ["step_20", "step_10"]
    assert "step_20: durable" in done.stderr
    status = read_status(run.directory.status_file)
    assert status is not None
    assert (status.state, status.newest_durable_step) == ("drained", 20)
    assert wmtp("checkpoints", "verify", run.location).exit_code == 0


@pytest.mark.parametrize("how", ["--to", "--config"])
def test_once_without_run_json(tmp_path: Path, how: str) -> None:
    """The run goes below ``--to``, else below the base of the config, by its directory's name."""
    save_step(tmp_path / "ckpt" / "foreign", 10)
    (tmp_path / "config.yaml").write_text("paths: {checkpoints: {base_path: file://./store}}\n")
    words = ["--to", "file://./store"] if how == "--to" else ["--config", "config.yaml"]
    done = upload_once("--watch", "ckpt/foreign", *words)
    assert done.returncode == 0, done.stderr
    assert live(tmp_path / "store" / "foreign") == ["step_10"]


def test_once_does_not_know_where_to(tmp_path: Path) -> None:
    save_step(tmp_path / "ckpt" / "foreign", 10)
    result = wmtp("uploader", "--watch", "ckpt/foreign", "--once")
    assert result.exit_code == 2
    assert "--to s3://bucket/prefix" in result.stderr


def test_once_serves_every_run_of_a_parent(run: Run, tmp_path: Path) -> None:
    run.save(10)
    save_step(tmp_path / "ckpt" / "foreign", 5)
    done = upload_once("--watch", tmp_path / "ckpt", "--to", tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert live(run.store) == ["step_10"]
    assert live(tmp_path / "elsewhere" / "foreign") == ["step_5"]


def test_once_of_an_empty_parent_has_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    assert upload_once("--watch", "ckpt").returncode == 0
    assert list((tmp_path / "ckpt").iterdir()) == []


@pytest.mark.parametrize("kind", ["nothing", "a file"])
def test_a_directory_that_is_not_there(tmp_path: Path, kind: str) -> None:
    if kind == "a file":
        (tmp_path / "x").touch()
    result = wmtp("uploader", "--watch", "x")
    assert result.exit_code == 2
    one_error(result, "watching x: ")


def test_garbage_in_run_json(run: Run) -> None:
    run.directory.run_file.write_text("garbage")
    done = upload_once("--watch", run.path)
    assert done.returncode == 1
    assert "run.json" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("wmtp: error: ")


def test_a_destination_that_is_none(run: Run) -> None:
    for words in (["--to", "ftp://host/x"], ["--to", ""], ["-c", "no-such.yaml"]):
        result = wmtp("uploader", "--watch", run.path, "--once", *words)
        assert result.exit_code == 2
        one_error(result)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_parent_is_watched_until_a_signal(run: Run, tmp_path: Path, number: int, code: int) -> None:
    run.save(10)
    trainer = os.open(run.directory.trainer_lock, os.O_RDWR | os.O_CREAT)
    process = start_wmtp("uploader", "--watch", tmp_path / "ckpt", "--to", tmp_path / "elsewhere")
    try:
        read_until(process.stderr, "step_10: durable")
        save_step(tmp_path / "new", 5)
        (tmp_path / "new").rename(tmp_path / "ckpt" / "new")  # a run that comes while it watches
        read_until(process.stderr, "step_5: durable")
    finally:
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        os.close(trainer)
    assert process.returncode == code
    assert "Traceback" not in said
    assert live(run.store) == ["step_10"]
    assert live(tmp_path / "elsewhere" / "new") == ["step_5"]


def test_a_stopped_server_of_this_machine_is_told_and_waited_for(run: Run, tmp_path: Path) -> None:
    run.save(10)
    data = run.use_stopped_server(tmp_path)
    process = start_wmtp("uploader", "--watch", run.path, "--once")
    try:
        assert f"`wmtp dev-s3 --data {data}`" in read_until(process.stderr, "not running")
        assert "attempt 1" in read_until(process.stderr, "no connection")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143


def test_an_uploader_that_is_there_already(run: Run) -> None:
    process = start_wmtp("uploader", "--watch", run.path)
    try:
        read_until(process.stderr, str(run.path))
        assert as_json(wmtp("status", run.path, "--json"))["uploader"] == "running"
        done = upload_once("--watch", run.path)
        assert done.returncode == 1
        assert "another uploader serves it already" in done.stderr
    finally:
        process.terminate()
        process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("words", "stays"),
    [
        ([], [1, 2, 3, 4, 5, 6]),
        (["--keep-last", "2"], [5, 6]),
        (["--keep-every", "2"], [2, 4, 5, 6]),
        (["--keep-last", "1", "--keep-every", "3"], [3, 6]),
        (["--keep-last", "1", "--keep-for-s", "1e9"], [1, 2, 3, 4, 5, 6]),
    ],
)
def test_what_stays_of_a_run_without_run_json(tmp_path: Path, words: list[str], stays: list[int]) -> None:
    (tmp_path / "out").mkdir()
    for step in range(1, 7):
        (tmp_path / "out" / f"step_{step}.pt").write_bytes(b"weights")
    upload = ("uploader", "--watch", tmp_path / "out", "--to", tmp_path / "store", "--once", "--quiet-s", "0")
    assert wmtp(*upload, *words).exit_code == 0
    assert sorted(live(tmp_path / "store" / "out")) == [f"step_{step}" for step in stays]
    assert len([*(tmp_path / "out").glob("step_*.pt")]) == 6  # nothing of it is deleted here


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--keep-last", "0", "0 would prune every checkpoint; the newest is always kept: use 1 or more"),
        ("--keep-every", "0", "0 should be greater than or equal to 1"),
        ("--keep-for-s", "0", "0.0 should be greater than 0"),
        ("--keep-for-s", "nan", "nan should be a finite number"),
    ],
)
def test_a_rule_is_checked_as_in_a_config(run: Run, option: str, value: str, says: str) -> None:
    result = wmtp("uploader", "--watch", run.path, "--once", option, value)
    assert result.exit_code == 2
    one_error(result, f"{option}: {says}")
