"""Several ranks write one checkpoint, and any number of ranks goes on from it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import HuggingFaceStorageReader

from uploader import checksum
from uploader.watch import read_step
from wmtp.checkpoint.load import read_checkpoint

SCRIPT = Path(__file__).with_name("several_ranks.py")
Seen: TypeAlias = list[dict[str, Any]]


def run(directory: Path, ranks: int, resume: str, steps: int, *events: str) -> Seen:
    """Train with so many ranks; what each saw."""
    out = directory.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    words = [str(SCRIPT), str(directory), resume, str(steps), str(out), *events]
    root = str(Path(__file__).parents[3])
    done = subprocess.run(
        [sys.executable, *(launcher if ranks > 1 else ()), *words],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def mean_losses(seen: Sequence[dict[str, Any]]) -> list[float]:
    return list(seen[0]["losses"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def whole_run(place: Path) -> Seen:
    return run(place / "whole/run", 2, "none", 8, "eval")


@pytest.fixture(scope="module")
def half(place: Path) -> Path:
    """A run directory after four steps of two ranks."""
    run(place / "half/run", 2, "none", 4, "eval")
    return place / "half/run"


def resumed(half: Path, ranks: int) -> Seen:
    directory = half.parent.parent / f"resumed{ranks}" / "run"
    shutil.copytree(half, directory)
    return run(directory, ranks, "latest", 8, "eval")


def test_at_the_same_number_of_ranks_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    whole_run: Seen, half: Path
) -> None:
    seen = resumed(half, 2)
    for rank in (0, 1):
        assert seen[rank]["began"] == 4
        assert seen[rank]["losses"] == whole_run[rank]["losses"][4:]
        assert seen[rank]["state"] == whole_run[rank]["state"]
        assert seen[rank]["moments"] == whole_run[rank]["moments"]
        assert seen[rank]["own"] == rank
    assert seen[0]["random"] != seen[1]["random"]


@pytest.mark.parametrize("ranks", [1, 3])
def test_with_another_number_of_ranks_it_is_the_same_state_and_the_losses_agree(
    whole_run: Seen, half: Path, ranks: int
) -> None:
    seen, at_four = resumed(half, ranks), resumed_state(half)
    for one in seen:
        assert one["loaded"] == at_four
        assert one["own"] == 0, "what was each rank's own is rank 0's"
    assert mean_losses(seen) == pytest.approx(mean_losses(whole_run)[4:], abs=1e-5)
    assert len({one["random"] for one in seen}) == ranks
    record = read_step(half.parent.parent / f"resumed{ranks}/run/step_8").record
    assert (record.world_size, record.ranks) == (ranks, [*range(ranks)])
    announced = sorted((half.parent.parent / f"resumed{ranks}/run").glob("events-*"))
    assert len(announced) == ranks, "nobody reads those of ranks that are not there any more"


def resumed_state(half: Path) -> dict[str, str]:
    """The model of the half run, whole, as our own reader puts it together from the files."""
    local = read_step(half / "step_4")
    loaded = read_checkpoint(local.path, local.record)
    return {name: bits(loaded.tensors[ref["$tensor"]]) for name, ref in loaded.tree["model"].items()}


def bits(tensor: torch.Tensor) -> str:
    return checksum.of_bytes(memoryview(tensor.contiguous().view(-1).view(torch.uint8).numpy()))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_stock_pytorch_reads_what_several_ranks_wrote(half: Path) -> None:
    local = read_step(half / "step_4")
    ours = read_checkpoint(local.path, local.record)
    names = [ref["$tensor"] for ref in ours.tree["model"].values()]
    state = {name: torch.zeros_like(ours.tensors[name]) for name in names}
    dcp.load(state, storage_reader=HuggingFaceStorageReader(str(local.path)), no_dist=True)
    for name, one in state.items():
        assert torch.equal(one, ours.tensors[name]), name


def test_each_element_is_saved_once_and_empty_shards_not_at_all(half: Path) -> None:
    record = read_step(half / "step_4").record
    by_rank = [{one.path for one in record.files if f"rank{rank:05d}" in one.path} for rank in (0, 1)]
    assert all(any(path.startswith(kind) for path in by_rank[1]) for kind in ("model", "optim", "state"))
    tensors = read_checkpoint(half / "step_4", record).tensors
    assert {name for name in tensors if name.endswith("@1")} == {"extra.own.number@1"}
    assert tensors["few"].shape == (1,)
    assert tensors["count"].item() == 8  # four steps, each with a forward pass in training and one after it


def test_a_model_that_every_rank_has_whole_is_saved_once(place: Path) -> None:
    directory = place / "plain/run"
    both = run(directory, 2, "none", 4, "plain")
    files = {one.path for one in read_step(directory / "step_4").record.files}
    assert not [path for path in files if path.startswith(("model-rank00001", "optim-rank00001"))]
    [alone] = run(directory, 1, "latest", 6, "plain")
    assert alone["loaded"] == both[0]["state"] == both[1]["state"]


@pytest.mark.parametrize(("rank", "step"), [(0, 2), (1, 4)])
def test_a_rank_whose_disk_is_full_fails_the_step_for_all_and_names_itself(
    place: Path, rank: int, step: int
) -> None:
    """The last step is not given up: all ranks save it again."""
    directory = place / f"full{rank}/run"
    seen = run(directory, 2, "none", 4, f"full={step}@{rank}")
    found = sorted(one.name for one in directory.glob("step_*"))
    assert found == (["step_4"] if step == 2 else ["step_2", "step_4"])
    at = 0 if step == 2 else 1
    assert "No space left on device" in seen[rank]["errors"][at]
    waits = "rank 1 has not written its part within 2 s"
    assert (waits in seen[0]["errors"][at]) == (rank == 1)
    assert [one["errors"][-1] for one in seen] == ["", ""]
