"""Two on one run: a second trainer is refused; a next one is served by the uploader that is there."""

import pytest
from real_runs import Lab, until

pytestmark = pytest.mark.e2e

SLOWLY = ("--set", "data.gradient_accumulation=8", "--max-steps", "2000")


def test_a_second_trainer_is_refused_and_the_next_is_served_by_the_uploader_there(lab: Lab) -> None:
    first = lab.start("train", *SLOWLY)
    until(lambda: lab.metrics(), "it trains")
    refused = lab.train("--resume", "latest", *SLOWLY)
    refused.require_error(1, "another trainer", str(lab.directory), "--run-name")
    until(lambda: lab.status().get("newest_durable_step"), "something is durable")
    [uploader] = lab.uploaders()
    first.kill()
    assert lab.uploaders() == [uploader]

    step = max(lab.steps())
    second = lab.train("--resume", "auto", "--max-steps", str(step + 10), *SLOWLY[:2]).require()

    assert f"/step_{step}\n" in second.out and "generation 2" in second.out
    assert lab.status()["pid"] == uploader
    assert lab.bucket.live_steps() == lab.steps() and lab.steps()[-1] == step + 10
    lab.bucket.require_exact()
