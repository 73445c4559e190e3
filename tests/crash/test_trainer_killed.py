"""The trainer dies by SIGKILL, at any moment: the next one goes on from the newest step, bit for bit."""

import random
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from real_runs import RUN, SLOW, Finished, Lab, References, Running, kill, until

pytestmark = pytest.mark.crash

FLAGS = ("--set", "data.gradient_accumulation=3")
"""A step takes some ten milliseconds: there is something to die in between one and the next."""


def start(lab: Lab, steps: int) -> Running:
    return lab.start("train", "--resume", "auto", "--max-steps", str(steps), *FLAGS)


def kill_when(running: Running, moment: Callable[[], bool], what: str) -> Finished:
    """Kill the trainer at a moment, or find that it has ended before."""
    until(lambda: running.ended or moment(), what)
    return running.kill()


def random_moment(lab: Lab, rng: random.Random, steps: int) -> tuple[Callable[[], bool], str]:
    """A condition on what the next trainer leaves on disk, to be asked before it starts."""
    metrics, run_file = lab.metrics_inode(), lab.run_file_inode()
    reached = lab.metrics()[-1]["step"] if metrics else 0
    step = rng.randint(min(reached, steps - 20), steps - 10)

    def taken_over() -> bool:
        return lab.run_file_inode() != run_file

    def at_step() -> bool:
        return lab.metrics_inode() != metrics and any(line["step"] >= step for line in lab.metrics())

    def writing() -> bool:
        return at_step() and any(lab.directory.glob("step_*.tmp"))

    return rng.choice(
        [(taken_over, "it takes over"), (at_step, f"step {step}"), (writing, f"a save after step {step}")]
    )


def resumed_from(said: str) -> int:
    """The step a trainer says it goes on from; 0 from scratch."""
    line = next(line for line in said.splitlines() if line.startswith(f"run {RUN},"))
    found = re.search(r"/step_([0-9]+)", line)
    return int(found[1]) if found else 0


@pytest.mark.parametrize(
    ("kills", "steps", "seed"),
    [(3, 120, 1), pytest.param(10, 300, 2, marks=SLOW)],
)
def test_a_killed_run_ends_as_if_nothing_had_happened(
    each_lab: Lab, reference: References, kills: int, steps: int, seed: int
) -> None:
    lab, rng = each_lab, random.Random(seed)
    for _ in range(kills):
        committed = max(lab.steps(), default=0)
        moment, what = random_moment(lab, rng, steps)
        ended = kill_when(start(lab, steps), moment, what)
        if f"run {RUN}," in ended.out:
            assert resumed_from(ended.out) == committed
    committed = max(lab.steps(), default=0)
    last = start(lab, steps).wait().require()

    assert resumed_from(last.out) == committed
    assert lab.files_of(steps) == reference(steps, *FLAGS)
    assert [line["step"] for line in lab.metrics()] == list(range(1, steps + 1))
    assert lab.bucket.live_steps() == lab.steps() and len(lab.steps()) == 3
    lab.bucket.require_exact()


@pytest.mark.parametrize(("kills", "steps"), [(1, 120), pytest.param(4, 600, marks=SLOW)])
def test_another_machine_goes_on_from_the_store_alone(
    tls_lab: Lab, reference: References, kills: int, steps: int
) -> None:
    lab = tls_lab
    durable = 0

    def further() -> bool:
        return (lab.status().get("newest_durable_step") or 0) > durable

    for _ in range(kills):
        before = durable
        kill_when(start(lab, steps), further, "a newer step is durable")
        for pid in lab.uploaders():
            kill(pid)
        shutil.rmtree(lab.directory)
        durable = max(lab.bucket.live_steps())
        assert durable > before
    last = start(lab, steps).wait().require()

    assert resumed_from(last.out) == durable
    assert [line["step"] for line in lab.metrics()] == list(range(durable + 1, steps + 1))
    assert lab.files_of(steps) == reference(steps, *FLAGS)
    lab.bucket.require_exact()


def test_an_uploader_whose_directory_was_deleted_leaves_it_to_the_next(lab: Lab) -> None:
    running = start(lab, 5000)
    until(lambda: lab.status().get("newest_durable_step"), "something is durable")
    running.kill()
    [old] = lab.uploaders()
    until(lambda: deleted(lab.directory), "the directory is deleted")

    running = start(lab, 5000)
    until(lambda: old not in lab.uploaders() and lab.status(), "another uploader serves the next trainer")
    assert not running.ended
    running.send(signal.SIGTERM)
    assert resumed_from(running.wait().require(143).out) > 0
    assert lab.status()["pid"] != old and lab.status()["state"] == "drained"
    lab.bucket.require_exact()


def deleted(directory: Path) -> bool:
    """Delete a directory in which somebody may be making files."""
    with suppress(OSError):
        shutil.rmtree(directory)
    return not directory.exists()
