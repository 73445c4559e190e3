"""The store or the disk fails in the middle: training goes on, and what was committed stays."""

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_runs import Lab, Mortal, Place, kill, until

from wmtp.seaweedfs import find_process

pytestmark = pytest.mark.e2e

SLOWLY = ("--max-steps", "120", "--set", "data.gradient_accumulation=8")
"""Some seconds of training, so that the uploader is there long before the end."""


def test_a_store_that_stays_away_costs_an_exit_code_and_no_step(mortal: Mortal) -> None:
    server, lab = mortal
    running = lab.start("train", *SLOWLY, "--set", "paths.checkpoints.durable_timeout_s=1")
    until(lambda: lab.status().get("newest_durable_step"), "something is durable")
    kill(find_process(server.data / "objects") or 0)
    said = running.wait().require_error(
        3, "waiting for the last checkpoint", str(lab.directory), "safe on this disk"
    )

    assert "no connection" in said and f"wmtp uploader --watch {lab.directory}" in said
    assert len(lab.metrics()) == 120 and lab.steps()[-1] == 120
    assert lab.uploaders() != []

    server.start()
    until(lambda: lab.uploaders() == [], "the uploader drains and ends by itself")
    assert lab.bucket.live_steps() == lab.steps() and lab.steps()[-1] == 120
    lab.bucket.require_exact()


def test_a_signal_ends_the_waiting_and_the_uploader_goes_on(mortal: Mortal) -> None:
    server, lab = mortal
    running = lab.start("train", *SLOWLY)
    until(lambda: lab.status().get("newest_durable_step"), "something is durable")
    kill(find_process(server.data / "objects") or 0)
    events = lab.directory / "events-rank00000.jsonl"
    until(lambda: events.exists() and "run_finished" in events.read_text(), "the training ends")
    until(lambda: lab.status()["state"] == "retrying", "it waits for the store")
    running.send(signal.SIGTERM)
    stopped = running.wait().require(143)

    assert f"the checkpoints in {lab.directory} are safe on this disk" in stopped.out
    assert len(lab.uploaders()) == 1 and lab.steps()[-1] == 120


def test_a_detached_uploader_drains_and_ends_by_itself(lab: Lab) -> None:
    lab.train("--detach-uploader").require()
    assert lab.steps()[-1] == 40
    until(lambda: lab.status().get("state") == "drained" and lab.uploaders() == [], "it drains and ends")
    assert lab.bucket.live_steps() == lab.steps()
    lab.bucket.require_exact()


@pytest.fixture
def small_disk(tmp_path: Path, s3_place: Place) -> Iterator[Lab]:
    """A lab whose checkpoints are first written to a disk of two megabytes: room for three of them."""
    with contextlib.closing(Lab(tmp_path / "lab", *s3_place)) as lab:
        disk = lab.path / "ckpt"
        disk.mkdir()
        if (problem := mount("-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk))) is not None:
            pytest.skip(f"no disk can be mounted here: {problem}")
        try:
            yield lab
        finally:
            lab.close()
            subprocess.run([shutil.which("umount") or "umount", "--lazy", disk], check=True)


def mount(*words: str) -> str | None:
    """Mount; what is in the way of that, if anything is."""
    program = shutil.which("mount")
    if program is None:
        return "there is no mount"
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    return (done.stderr.strip() or "it is refused") if done.returncode else None


def test_a_full_disk_is_said_and_what_was_committed_still_loads(small_disk: Lab) -> None:
    lab = small_disk
    full = lab.train("--no-uploader").require(1)
    told = [line for line in full.out.splitlines() if "not saved" in line]
    assert told and all("free some space" in line for line in told)
    (last,) = full.err.splitlines()
    assert last.startswith("wmtp: error: ") and "No space left on device" in last
    assert str(lab.directory) in last
    committed = max(lab.steps())

    assert mount("-o", "remount,size=8m", str(lab.path / "ckpt")) is None
    resumed = lab.train("--resume", "latest").require()
    assert f"/step_{committed}\n" in resumed.out
    assert lab.bucket.live_steps() == lab.steps() and lab.steps()[-1] == 40
    assert [line["step"] for line in lab.metrics()] == list(range(1, 41))


def test_a_disk_that_became_read_only_is_said(small_disk: Lab) -> None:
    lab = small_disk
    assert mount("-o", "remount,ro", str(lab.path / "ckpt")) is None
    lab.train().require_error(1, str(lab.path / "ckpt"), "Read-only file system", "local_path")
