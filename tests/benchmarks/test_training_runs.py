"""What the report on all algorithms says of runs that keep their promises, and of such that don't."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training.run_all import Run, curves, picture, smooth, table, tenth_of


def line(step: int, *, loss: float, **more: Any) -> dict[str, Any]:
    return {"step": step, "loss": loss, "heads": [loss, loss + 0.123456789], "lr": 1e-3, **more}


def falling(**more: Any) -> list[dict[str, Any]]:
    return [line(step, loss=5.0 - 0.1 * step, **more) for step in range(1, 21)]


def run(name: str, lines: list[dict[str, Any]], held_out: tuple[float, ...] = (2.0, 3.0)) -> Run:
    return Run(name, lines, list(held_out), 1.5, 60.0)


STAGE_1 = [{"step": step, "loss": 9.0 - step, "value_loss": 9.0 - step, "stage": 1} for step in range(1, 6)]
WEIGHED = {"weight_mean": 1.0000001, "weight_max": 2.5, "kept": 1.0}

GOOD = [
    run("baseline-mtp", falling()),
    run("rho1-weighted", falling(**WEIGHED)),
    run("rho1-tokenskip", falling(weight_mean=0.7, weight_max=1.0, kept=0.7001)),
    run("critic-wmtp", STAGE_1 + falling(**WEIGHED, value_loss=3.0, stage=2)),
]


def test_runs_that_keep_their_promises_have_no_problems() -> None:
    assert [one.problems() for one in GOOD] == [[], [], [], []]
    assert len(GOOD[3].trained) == 20
    assert GOOD[0].nats(0) == pytest.approx(4.85) and GOOD[0].nats(-1) == pytest.approx(3.05)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (run("baseline-mtp", falling(), (3.0, 2.0)), "a lower loss than one before it"),
        (run("baseline-mtp", falling()[::-1]), "did not fall"),
        (run("rho1-weighted", falling(**{**WEIGHED, "weight_mean": 1.01})), "mean 1"),
        (run("rho1-tokenskip", falling(weight_mean=0.7, kept=0.6999)), "0.7 of the targets"),
        (run("rho1-tokenskip", falling(weight_mean=0.8, kept=0.8)), "0.7 of the targets"),
        (run("critic-wmtp", STAGE_1[::-1] + falling(**WEIGHED, stage=2)), "did not fall in stage 1"),
    ],
)
def test_each_broken_promise_is_a_problem(broken: Run, says: str) -> None:
    [problem] = broken.problems()
    assert says in problem


def test_the_table_has_a_row_for_each_run() -> None:
    lines = table(GOOD).splitlines()
    assert len(lines) == 2 + len(GOOD)
    assert "2.000 / 3.000" in lines[2] and "4.85 → 3.05" in lines[2]
    assert "8 → 4" in lines[5] and all(one.rstrip(" |").endswith("none") for one in lines[2:])


def test_what_is_kept_of_the_metrics_is_short_and_enough_for_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    kept = curves(GOOD[3])
    assert kept["heads"][:6] == [None] * 5 + [[4.9, 5.023]]
    assert "lr" not in kept and len(json.dumps(kept)) < 60 * len(GOOD[3].lines)
    picture(GOOD, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_tenths_and_smoothing_by_hand() -> None:
    assert tenth_of(range(20), 0) == 0.5 and tenth_of(range(20), -1) == 18.5
    assert tenth_of([3.0], 0) == tenth_of([3.0], -1) == 3.0
    assert smooth([1.0, 2.0, 6.0], span=2) == [1.0, 1.5, 4.0]
