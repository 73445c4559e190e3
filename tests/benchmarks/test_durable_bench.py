"""Time to durable: worked examples of its figures, and the smallest run of all ways."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import durable_report, null_sink
from benchmarks.durable_report import APART, IN_TURN, PIPELINED
from benchmarks.durable_window import WAYS, Order, Quiet
from benchmarks.time_to_durable import Plan, parse, plans, run
from benchmarks.upload_target import ANY
from uploader.events import CheckpointSaved, ShardSaved
from uploader.queue import EventQueue
from uploader.record import FileRecord
from wmtp.checkpoint.disk import Announce

TINY_GB = 0.004
FIELDS = {
    PIPELINED: {"durable_ms", "local_ms"},
    IN_TURN: {"durable_ms", "local_ms"},
    APART: {"write_ms", "upload_ms"},
}


def apart(number: int, *pairs: tuple[float, float]) -> Any:
    saves = [{"write_ms": write_ms, "upload_ms": upload_ms} for write_ms, upload_ms in pairs]
    return {"way": APART, "round": number, "saves": saves}


def ours(number: int, *pairs: tuple[float, float], way: str = PIPELINED) -> Any:
    saves = [{"durable_ms": durable_ms, "local_ms": local_ms} for durable_ms, local_ms in pairs]
    return {"way": way, "round": number, "saves": saves}


WINDOWS = [
    apart(0, (100, 300), (120, 200), (110, 400)),
    apart(1, (500, 200)),
    ours(0, (330, 130), (360, 160)),
    ours(1, (550, 510), (900, 500)),
    ours(1, (1000, 500), way=IN_TURN),
]


def test_the_floor_of_a_round_is_the_longer_of_its_medians() -> None:
    assert durable_report.floors_ms(WINDOWS) == {0: 300, 1: 500}


def test_each_save_stands_beside_the_floor_of_its_round() -> None:
    mine, in_turn, write, upload = durable_report.rows(WINDOWS)
    assert (mine["way"], mine["saves"], mine["worst_ms"]) == (PIPELINED, 4, 900)
    assert (mine["of_floor"], mine["worst_of_floor"]) == pytest.approx((1.15, 1.8))
    assert mine["after_local_ms"] == 200
    assert (in_turn["way"], in_turn["of_floor"]) == (IN_TURN, 2.0)
    assert (write["durable_ms"], upload["worst_ms"]) == (115, 400)
    assert "1.15 × max(write, upload)" in durable_report.standing([mine])[0]


def test_without_a_floor_there_is_no_ratio() -> None:
    mine = durable_report.rows([ours(0, (330, 130))])
    assert mine[0]["of_floor"] is None
    assert durable_report.standing(mine) == []
    assert "–" in durable_report.table(mine)


def test_a_quiet_disk_announces_steps_and_no_files(tmp_path: Path) -> None:
    queue, disk = tmp_path / "events", Quiet()
    shard = FileRecord.of_bytes("model.safetensors", b"weights")
    disk.perform(Announce(queue, ShardSaved(generation=1, step=1, file=shard), durable=False))
    disk.perform(Announce(queue, CheckpointSaved(generation=1, step=1)))
    assert EventQueue(queue).receive() == [CheckpointSaved(generation=1, step=1)]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_makes_saves_durable(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in ANY.items():
        monkeypatch.setenv(variable, value)
    with null_sink.running() as url:
        order = Order(
            way=way,
            size_gb=TINY_GB,
            saves=1,
            step_s=0.005,
            shard_size_bytes=None,
            directory=str(tmp_path),
            sink_url=url,
        )
        first, second = WAYS[way](order)
        assert first.keys() == second.keys() == FIELDS[way]
        assert min(*first.values(), *second.values()) > 0
        assert null_sink.stats(url)["bytes_in"] >= 2 * TINY_GB * 1e9


@pytest.mark.slow
def test_a_plan_runs_every_way_in_its_own_process(tmp_path: Path) -> None:
    plan = Plan(TINY_GB, rate_mb_per_s=0.0, rounds=1, saves=1, step_s=0.005, shard_size_bytes=None)
    measured = run(plan, tmp_path)
    assert measured["failed"] == {}
    assert sorted(window["way"] for window in measured["windows"]) == sorted(WAYS)  # in a drawn order
    assert durable_report.standing(durable_report.rows(measured["windows"]))


def test_the_command_line_asks_for_both_sizes_at_both_rates() -> None:
    assert [(one.size_gb, one.rate_mb_per_s) for one in plans(parse([]))] == [
        (0.1, 0.0),
        (0.1, 400.0),
        (1.4, 0.0),
        (1.4, 400.0),
    ]
    assert [one.size_gb for one in plans(parse(["--size", "5", "--rate", "0"]))] == [5.0]
    assert {one.size_gb for one in plans(parse(["--short"]))} == {0.1}
