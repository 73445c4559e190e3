"""The benchmarks run: the smallest of each, for what they report, not for how fast it is."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import growth, local_write, report
from benchmarks.contenders import Context, OursLocal
from benchmarks.step_stall import Plan, parse, plans, run
from benchmarks.window import Order
from benchmarks.window import run as run_window
from benchmarks.workload import build

TINY_GB = 0.004


@pytest.mark.parametrize("name", ["ours-local", "torch.save"])
def test_a_window_alternates_blocks_with_and_without_a_save(name: str, tmp_path: Path) -> None:
    order = Order(
        contender=name,
        mode="accelerator",
        size_gb=TINY_GB,
        saves=2,
        steps=2,
        step_s=0.001,
        directory=str(tmp_path / name),
        sink_url="",
        memory=False,
    )
    measured = run_window(order)
    assert [one["saves"] for one in measured["blocks"]] == [False, True, False, True, False]
    assert [len(one["steps_s"]) for one in measured["blocks"][1:3]] == [
        len(measured["blocks"][1]["steps_s"])
    ] * 2
    assert len(measured["local_ms"]) == 2
    assert all(one["blocked_s"] > 0 for one in measured["blocks"] if one["saves"])


def test_a_plan_runs_ours_with_its_uploader_and_names_who_failed(tmp_path: Path) -> None:
    plan = Plan("accelerator", TINY_GB, 1, 1, 2, 0.005, ("ours", "s3connector-sink"))
    measured = run(plan, tmp_path)
    done = {window["contender"] for window in measured["windows"]}
    assert "ours" in done
    assert done | measured["failed"].keys() == set(plan.contenders)
    assert measured["sink"]["bytes_in"] > 2 * measured["windows"][0]["size_bytes"]
    assert "ours" in report.table(report.rows(measured["windows"]))


def test_cpu_training_trains() -> None:
    workload = build("cpu", TINY_GB, 0.0)
    before = [one.detach().clone() for one in workload.model.parameters()]
    workload.forward_backward()
    workload.optimizer.step()
    changed = [not torch.equal(*pair) for pair in zip(before, workload.model.parameters(), strict=True)]
    assert all(changed)
    assert workload.size_bytes == pytest.approx(TINY_GB * 1e9, rel=0.5)


def test_the_simulated_optimizer_changes_every_tensor_and_page() -> None:
    workload = build("accelerator", TINY_GB, 0.0)
    before = [one.detach().clone() for one in workload.model.parameters()]
    workload.optimizer.step()
    for was, parameter in zip(before, workload.model.parameters(), strict=True):
        assert int((was != parameter).sum()) == -(-parameter.numel() // 1024)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_every_writer_writes(tmp_path: Path) -> None:
    state = local_write.prepare(TINY_GB, 500_000)
    ways = local_write.writers(state)
    if not _direct_works(tmp_path):
        del ways[local_write.RAW]
    for name, way in ways.items():
        directory = tmp_path / "write"
        directory.mkdir()
        way(directory)
        written = sum(one.stat().st_size for one in directory.rglob("*") if one.is_file())
        assert written >= state.size_bytes * 0.95, name
        shutil.rmtree(directory)


def _direct_works(directory: Path) -> bool:
    try:
        os.close(os.open(directory / "direct", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_the_command_line_asks_for_the_sizes_and_saves_of_the_issue() -> None:
    full = plans(parse([]))
    saves = {one.size_gb: one.saves * one.rounds for one in full}
    assert saves == {0.1: 100, 1.4: 20, 5.0: 5}
    assert {one.mode for one in full} >= {"accelerator", "cpu"}
    assert {one.size_gb for one in plans(parse(["--short"]))} == {0.1}


def test_a_few_saves_leave_no_thread_and_no_open_file(tmp_path: Path) -> None:
    context = Context(tmp_path, build("accelerator", TINY_GB, 0.0), "", None)
    contender = OursLocal(context)
    seen = growth.run(contender, context, 20)
    contender.close()
    trainer = growth.growth(seen)[0]
    assert (trainer.role, trainer.threads, trainer.files) == ("trainer", 0, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_thousand_saves_leave_no_memory_either(tmp_path: Path) -> None:
    context = Context(tmp_path, build("accelerator", TINY_GB, 0.0), "", None)
    contender = OursLocal(context)
    seen = growth.run(contender, context, 1000)
    contender.close()
    trainer = growth.growth(seen)[0]
    assert (trainer.threads, trainer.files) == (0, 0)
    assert trainer.memory_bytes < 8_000_000
