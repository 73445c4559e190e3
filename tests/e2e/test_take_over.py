"""A run moves from one machine to another: at once after its end, by force, or after a wait."""

import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from real_runs import Lab, kill, until

pytestmark = pytest.mark.e2e

SLOW_STEPS = ("--set", "data.gradient_accumulation=8")
FOR_LONG = (*SLOW_STEPS, "--max-steps", "2000")


@pytest.fixture
def other(lab: Lab, tmp_path: Path) -> Iterator[Lab]:
    """Another machine: a directory of its own, and the same store."""
    with closing(Lab(tmp_path / "other", lab.base, lab._storage)) as opened:
        yield opened


def test_a_run_that_ended_goes_on_elsewhere_at_once(lab: Lab, other: Lab) -> None:
    lab.train().require()
    ended = other.train("--resume", "latest", "--max-steps", "50").require()
    assert "step_40/g1" in ended.out and "watching its heartbeat" not in ended.out
    assert lab.bucket.live_steps()[-1] == 50
    lab.bucket.require_exact()


def test_a_run_that_lives_is_refused_and_taken_by_force(lab: Lab, other: Lab) -> None:
    first = lab.start("train", *FOR_LONG)
    until(lambda: lab.status().get("newest_durable_step"), "something is durable")

    refused = other.train("--resume", "latest", *FOR_LONG)
    refused.require_error(1, "generation 1 of", "(process ", "lives", "step_", "--take-over")
    assert not first.ended and not other.steps()

    step = max(lab.bucket.live_steps())
    flags = (*SLOW_STEPS, "--max-steps", str(step + 20))
    second = other.train("--resume", "latest", "--take-over", *flags).require()
    assert "generation 2" in second.out or "generation 3" in second.out
    until(lambda: lab.status().get("state") == "failed", "the first one's uploader ends")
    assert "owns it since" in lab.status()["error"]
    first.send(signal.SIGTERM)
    first.wait().require_error(3, "owns it since", "is safe on this disk")
    assert lab.bucket.live_steps()[-1] == step + 20
    lab.bucket.require_exact()


def test_a_run_that_was_killed_goes_on_elsewhere_after_a_wait(lab: Lab, other: Lab) -> None:
    first = lab.start("train", *FOR_LONG)
    until(lambda: lab.status().get("newest_durable_step"), "something is durable")
    first.kill()
    for pid in lab.uploaders():
        kill(pid)
    step = max(lab.bucket.live_steps())
    ended = other.train("--resume", "latest", *SLOW_STEPS, "--max-steps", str(step + 10)).require()
    assert "watching its heartbeat" in ended.out
    assert lab.bucket.live_steps()[-1] == step + 10
    lab.bucket.require_exact()
