"""Two ranks train, die, and any number of ranks goes on, here or on a machine that has nothing."""

import json
import shutil
import signal
import socket
from pathlib import Path

import pytest
from real_runs import Finished, Lab, Running, kill, until

from uploader.files import is_locked
from uploader.layout import RunDirectory

STEPS = 40


def start(lab: Lab, ranks: int, *flags: str) -> list[Running]:
    """The ranks of a run as torchrun starts them, with nobody watching over them."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    every = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        lab.start("train", *flags, env={k: str(v) for k, v in {**every, "RANK": n, "LOCAL_RANK": n}.items()})
        for n in range(ranks)
    ]


def train(lab: Lab, ranks: int, *flags: str) -> list[Finished]:
    return [one.wait().require() for one in start(lab, ranks, *flags)]


def losses(directory: Path) -> dict[int, float]:
    """Of each step of a run."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def killed_after_ten_steps(lab: Lab) -> int:
    """Two ranks and their uploader, killed once a step is durable; the newest durable step."""
    ranks = start(lab, 2)
    until(lambda: (lab.status().get("newest_durable_step") or 0) >= 10, "a step is durable")
    for one in ranks:
        one.kill()
    for pid in lab.uploaders():
        kill(pid)
    return int(lab.status()["newest_durable_step"])


def test_two_ranks_train_to_a_store_and_end_when_all_is_durable(lab: Lab) -> None:
    first, second = train(lab, 2)
    assert "2 ranks of cpu" in first.out
    assert second.out == ""
    names = lab.bucket.keys(f"step_{STEPS}/")
    for rank in (0, 1):
        assert any(f"model-rank{rank:05d}" in name for name in names)
        assert any(f"state-rank{rank:05d}" in name for name in names)
    assert "torchrun --standalone --nproc-per-node 2 -m wmtp train" in first.out
    lab.start("checkpoints", "verify", str(lab.directory), "--deep").wait().require()
    lab.start("eval", str(lab.directory), "latest").wait().require()


@pytest.mark.parametrize("ranks", [2, 1, 3])
def test_a_killed_run_goes_on_with_any_number_of_ranks_on_another_machine(lab: Lab, ranks: int) -> None:
    train(lab, 2, "--run-name", "whole", "--no-uploader")
    whole = losses(lab.directory.with_name("whole"))
    durable = killed_after_ten_steps(lab)
    shutil.rmtree(lab.directory)
    first, *others = train(lab, ranks, "--resume", "latest")
    assert all(one.out == "" for one in others)
    went_on = losses(lab.directory)
    began = min(went_on) - 1  # the uploader may have died before it told of its last commit
    assert began >= durable and f"/step_{began}/g1\n" in first.out
    assert [*went_on] == [*range(began + 1, STEPS + 1)]
    if ranks == 2:
        assert went_on == {step: whole[step] for step in went_on}
    else:
        assert "ranks 2 -> " in first.out
        assert went_on == pytest.approx({step: whole[step] for step in went_on}, abs=1e-5)


def test_sigterm_at_one_rank_stops_all_with_a_checkpoint(lab: Lab) -> None:
    ranks = start(lab, 2, "--max-steps", "100000", "--no-uploader")
    until(lambda: len(lab.metrics()) > 5, "steps")
    ranks[1].send(signal.SIGTERM)
    ended = [one.wait() for one in ranks]
    assert [one.code for one in ended] == [143, 143]
    assert not is_locked(RunDirectory(lab.directory).trainer_lock)
    assert lab.steps()[-1] == lab.metrics()[-1]["step"]
