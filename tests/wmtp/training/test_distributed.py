"""Several ranks: together they do what one process does, decide alike, and end together."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import together
import torch
from jobs import Train, metrics_of
from torch.multiprocessing.spawn import ProcessRaisedException

from uploader.errors import SettingsError
from wmtp.ranks import Ranks
from wmtp.training.agreement import Known, over_ranks
from wmtp.training.distributed import device_of, join
from wmtp.training.objective import on_host
from wmtp.training.setup import build

UNEVEN = ("data.batch_size=5", "data.gradient_accumulation=2", "optim.ema_decay=0.9")
TOKENSKIP = "train.algo=rho1-tokenskip"
CRITIC = ("train.algo=critic-wmtp", "loss.critic.stage1_steps=2")


@pytest.mark.parametrize("world_size", [2, 3])
def test_all_algorithms_do_what_one_process_does(
    train: Train, reference: str, tmp_path: Path, world_size: int
) -> None:
    alike = [
        (*UNEVEN, "train.validation.every=2"),
        ("train.algo=rho1-weighted", reference, "data.batch_size=3"),
        (TOKENSKIP, reference, "data.batch_size=4"),
        (*CRITIC, reference, "data.batch_size=4"),
    ]
    works = [partial(together.like_one_process, directory=tmp_path, overrides=one) for one in alike]
    skip = (TOKENSKIP, reference, *UNEVEN)
    together.run(world_size, *works, partial(together.keep_the_same, directory=tmp_path, overrides=skip))


def test_decisions_are_made_together(train: Train, tmp_path: Path) -> None:
    together.run(
        2,
        partial(together.stop_together, directory=tmp_path, at=2, ends=3),
        partial(together.stop_together, directory=tmp_path, at=4, ends=4),
        partial(together.skip_together, directory=tmp_path),
        partial(together.refuse_together, directory=tmp_path),
        partial(together.leave_with_rank_0, directory=tmp_path),
        partial(together.hear_rank_0_first, directory=tmp_path),
    )


def test_precision_memory_averages_and_validation(train: Train, tmp_path: Path) -> None:
    works = (
        together.accumulate_in_bfloat16,
        together.recompute,
        together.ema_begins_as_the_weights,
        together.measure_alike,
    )
    together.run(3, *(partial(work, directory=tmp_path) for work in works))


def test_rank_0_alone_speaks_and_writes_down_what_one_process_would(train: Train, tmp_path: Path) -> None:
    every_2 = "paths.checkpoints.save_interval=2"
    train("one", "model.dropout=0", "train.max_steps=4", "data.batch_size=4", every_2)
    together.run(
        2,
        partial(together.job, directory=tmp_path, name="several", overrides=(every_2,)),
        partial(together.interrupted_job, directory=tmp_path, name="stopped"),
    )
    one, several = (metrics_of(tmp_path / f"checkpoints/{name}") for name in ("one", "several"))
    together.same_lines(several, one)
    said = (tmp_path / "several-0.out").read_text()
    assert "M parameters on 2 ranks of cpu, from scratch" in said and "finished     step 4" in said
    assert (tmp_path / "several-1.out").read_text() == ""
    assert "stopped by SIGINT after step 2" in (tmp_path / "stopped-0.out").read_text()
    assert (tmp_path / "stopped-1.out").read_text() == ""
    assert len(metrics_of(tmp_path / "checkpoints/stopped")) == 2


def test_torchrun_starts_ranks_and_the_command_for_more_does_so_again(train: Train, tmp_path: Path) -> None:
    words = ["train", "--no-uploader", "--run-name", "run", "--recipe", "recipe.yaml", "--max-steps", "2"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ended = subprocess.run(
        [*torchrun, "-m", "wmtp", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("parameters on 2 ranks of cpu") == 1
    program = "torchrun --standalone --nproc-per-node 2 -m wmtp"
    again = f"{program} train --resume latest --recipe recipe.yaml --run-name run"
    assert f"  {again} --max-steps 4\n  wmtp status {tmp_path}/checkpoints/run\n" in ended.stdout
    assert len(metrics_of(tmp_path / "checkpoints/run")) == 2


def test_an_error_of_one_rank_says_whose_it_is() -> None:
    with pytest.raises(ProcessRaisedException, match=r"(rank 1: data\.train: there is none|is gone)"):
        together.run(2, together.fail_alone)


def test_a_rank_that_is_gone_is_told_in_one_line() -> None:
    together.run(2, together.vanish)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") or shutil.which("g++")), reason="there is no C++ compiler")
def test_compiled_ranks_do_what_one_does(train: Train, tmp_path: Path) -> None:
    together.run(2, partial(together.compiled, directory=tmp_path))


def test_without_torchrun_one_is_alone() -> None:
    for environ in ({}, {"WORLD_SIZE": "1", "RANK": "0"}):
        with join(environ) as ranks:
            assert ranks == Ranks() and ranks.is_first


def test_more_than_one_machine_is_refused() -> None:
    environ = {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "RANK": "0"}
    with pytest.raises(SettingsError, match=r"--nnodes: 4 ranks .* 2 of them on this machine"), join(environ):
        pass


def test_fewer_samples_than_ranks_are_refused(train: Train, tmp_path: Path) -> None:
    settings = together.settings_of(tmp_path, "data.batch_size=2")
    with pytest.raises(SettingsError, match=r"data\.batch_size: 2 .* too few for 3 ranks; raise it to 3"):
        build(settings, Ranks(rank=0, world_size=3))


def test_each_rank_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto", 1) == device_of("cpu", 1) == torch.device("cpu")
    with pytest.raises(SettingsError, match="there is no CUDA device"):
        device_of("cuda", 1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert device_of("auto", None) == torch.device("cuda")
    assert device_of("auto", 1) == torch.device("cuda", 1)
    assert device_of("cpu", 1) == torch.device("cpu")
    with pytest.raises(SettingsError, match=r"devices\.device: .* rank 2, for there are 2; lower --nproc"):
        device_of("auto", 2)


@pytest.mark.parametrize(
    "known", [Known(), Known(busy=True), Known(signals=(15,)), Known(busy=True, signals=(2,))]
)
def test_what_a_rank_knows_survives_the_reduction_and_leaves_the_numbers_alone(known: Known) -> None:
    measures = {"loss": torch.tensor(2.5), "heads": torch.tensor([1.0, 2.0]), "kept": torch.tensor(0.5)}
    numbers = on_host(over_ranks(measures, known, Ranks()))
    assert Known.taken_from(numbers) == known
    assert numbers == {"loss": 2.5, "heads": [1.0, 2.0], "kept": 0.5}
