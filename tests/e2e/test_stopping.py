"""Asked to stop in the middle: a checkpoint at the step's end, durable, and a rest as if never asked."""

import signal

import pytest
from real_runs import SLOW, Lab, References, until

pytestmark = pytest.mark.e2e

STEPS = 120
FLAGS = ("--max-steps", str(STEPS), "--set", "paths.checkpoints.save_interval=1000")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=SLOW)],
)
def test_a_signal_saves_the_step_and_the_rest_is_the_same(
    lab: Lab, reference: References, number: signal.Signals, code: int
) -> None:
    running = lab.start("train", *FLAGS)
    until(lambda: len(lab.metrics()) >= 20, "it trains")
    running.send(number)
    stopped = running.wait().require(code)

    [step] = lab.steps()
    assert 20 <= step < STEPS and len(lab.metrics()) == step
    assert f"stopped by {number.name} after step {step}" in stopped.out
    assert lab.bucket.live_steps() == [step]
    lab.bucket.require_exact()

    resumed = lab.train("--resume", "latest", *FLAGS).require()
    assert f"step_{step}\n" in resumed.out
    assert lab.files_of(STEPS) == reference(STEPS, *FLAGS)
    assert lab.bucket.live_steps() == [step, STEPS]
