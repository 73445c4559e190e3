"""A run from its first step to the bucket, and every way to go on from there."""

import subprocess
import sys
from pathlib import Path

import pytest
from real_runs import RUN, Finished, Lab
from safetensors import safe_open

pytestmark = pytest.mark.e2e


def test_a_run_ends_in_the_bucket_and_can_only_be_continued_on_purpose(each_lab: Lab, tmp_path: Path) -> None:
    lab, bucket = each_lab, each_lab.bucket
    words = [sys.executable, "-m", "wmtp", "train"]
    done = subprocess.run(words, cwd=lab.path, env=lab.env, capture_output=True, text=True, check=False)
    first = Finished(done.returncode, done.stdout, done.stderr).require()

    assert "finished     step 40" in first.out
    assert f"latest step_40 in {lab.base}/{RUN}" in first.out
    assert f"wmtp train --resume latest --run-name {RUN} --max-steps 80" in first.out
    assert [line["step"] for line in lab.metrics()] == list(range(1, 41))
    kept = first.saved()[-3:]
    assert bucket.live_steps() == lab.steps() == kept and kept[-1] == 40
    bucket.require_exact()
    opened = tmp_path / "model.safetensors"
    opened.write_bytes(bucket.get("step_40/g1/model-rank00000-0001.safetensors") or b"")
    with safe_open(opened, framework="np") as shard:
        shapes = {name: shard.get_slice(name).get_shape() for name in shard.keys()}  # noqa: SIM118
    assert any(shape[-1] == 32 for shape in shapes.values())

    lab.train().require_error(1, "step_40", "--resume latest", "--run-name", "--fresh")
    assert bucket.live_steps() == kept

    again = lab.train("--resume", "auto").require()
    assert "the run is finished at step 40: there is nothing left to train" in again.out
    assert "--max-steps 80" in again.out

    changed = ("--set", "optim.learning_rate=2e-3")
    more = lab.train("--resume", "latest", "--max-steps", "50", *changed).require()
    assert "changed since the checkpoint: optim.learning_rate 0.001 -> 0.002" in more.out
    assert "resumed from" in more.out and "finished     step 50" in more.out
    assert [line["step"] for line in lab.metrics()] == list(range(1, 51))
    assert bucket.live_steps() == lab.steps() == [*kept, *more.saved()][-3:]
    bucket.require_exact()
