"""From ``save()`` to the manifest moved: ``python -m benchmarks.time_to_durable [--short]``.

Ours, which sends each file as soon as it is written, beside the same code told of nothing but the whole
checkpoint, and beside the floor: the longer of writing alone and uploading alone. All take turns, each in a
process of its own, against the null sink as it is and one as slow as a network.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import machine, null_sink
from benchmarks.durable_report import picture, rows, standing, table
from benchmarks.durable_window import RUN, WAYS, Order
from benchmarks.step_stall import RESULTS
from benchmarks.turns import in_turn
from benchmarks.upload import run_apart
from benchmarks.upload_target import ANY
from uploader import files
from uploader.layout import RunDirectory
from uploader.status import read_status

SIZES_GB = (0.1, 1.4)
RATES_MB_PER_S = (0.0, 400.0)
WINDOW_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Plan:
    """One table.

    Attributes:
        rate_mb_per_s: what the sink takes; 0: all it can.
        saves: in each window; one more comes first and is not counted.
        step_s: length of a step of the simulated accelerator, which goes on all the time.
    """

    size_gb: float
    rate_mb_per_s: float
    rounds: int
    saves: int
    step_s: float
    shard_size_bytes: int | None

    @property
    def title(self) -> str:
        sink = f"a sink that takes {self.rate_mb_per_s:g} MB/s" if self.rate_mb_per_s else "the sink"
        return f"{self.size_gb:g} GB to {sink}, {self.rounds * self.saves} saves in {self.rounds} rounds"


def run(plan: Plan, scratch: Path) -> dict[str, Any]:
    """Measure a plan: in each round every way once, each time beginning with another."""
    windows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    interrupted = False
    try:
        for number in range(plan.rounds):
            for way in in_turn(list(WAYS), number):
                if way in failed:
                    continue
                done = _turn(plan, way, scratch / f"{way}-{number}")
                if "failed" in done:
                    failed[way] = done["failed"]
                    continue
                windows.append(done | {"round": number})
                print(f"  round {number + 1}: {way}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:  # what is measured is reported all the same
        interrupted = True
    return {"plan": asdict(plan), "failed": failed, "windows": windows, "interrupted": interrupted}


def _turn(plan: Plan, way: str, directory: Path) -> dict[str, Any]:
    """One window, with a sink of its own."""
    result, log = directory.with_suffix(".json"), directory.with_suffix(".log")
    directory.mkdir()
    with null_sink.running(plan.rate_mb_per_s or None) as url:
        order = Order(
            way=way,
            size_gb=plan.size_gb,
            saves=plan.saves,
            step_s=plan.step_s,
            shard_size_bytes=plan.shard_size_bytes,
            directory=str(directory),
            sink_url=url,
        )
        command = [sys.executable, "-m", "benchmarks.durable_window", json.dumps(asdict(order)), str(result)]
        try:
            problem = run_apart(command, os.environ | ANY, log, WINDOW_TIMEOUT_S)
        finally:
            _end_uploader(RunDirectory(directory / RUN))
            shutil.rmtree(directory, ignore_errors=True)
    return {"way": way, "failed": problem} if problem is not None else json.loads(result.read_text())


def _end_uploader(run: RunDirectory) -> None:
    """End one whose window was cut short: it has a session of its own, and would try the sink for ever."""
    status = read_status(run.status_file)
    if status is not None and files.is_locked(run.uploader_lock):
        os.kill(status.pid, signal.SIGKILL)


def plans(arguments: argparse.Namespace) -> list[Plan]:
    """What the command line asks for."""
    short = arguments.short
    return [
        Plan(
            size_gb=size_gb,
            rate_mb_per_s=rate,
            rounds=arguments.rounds or (2 if short else 5),
            saves=arguments.saves or (3 if short else 4),
            step_s=arguments.step,
            shard_size_bytes=arguments.shard,
        )
        for size_gb in arguments.size or (SIZES_GB[:1] if short else SIZES_GB)
        for rate in arguments.rate or RATES_MB_PER_S
    ]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_durable", description=__doc__)
    parser.add_argument("--short", action="store_true", help="two minutes: 0.1 GB, a few saves")
    parser.add_argument("--size", nargs="+", type=float, metavar="GB", help="of the state: 5, say")
    parser.add_argument("--rate", nargs="+", type=float, metavar="MB/s", help="of the sink; 0: all it can")
    parser.add_argument("--rounds", type=int, help="how often each way has its turn")
    parser.add_argument("--saves", type=int, help="in each window")
    parser.add_argument("--step", type=float, default=0.1, metavar="S", help="length of a simulated step")
    parser.add_argument("--shard", type=int, metavar="BYTES", help="largest file, if not the default")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="where checkpoints go: the disk that is measured")
    return parser.parse_args(arguments)


def show(plan: Plan, measured: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The table of a plan with its title, and its rows."""
    result = rows(measured["windows"])
    lines = [f"## {plan.title}", "", table(result), "", *standing(result)]
    lines += [f"{way}: left out: {why}" for way, why in measured["failed"].items()]
    lines += ["interrupted before the last round"] if measured["interrupted"] else []
    return "\n".join(lines), result


def main() -> None:
    """Measure and report."""
    arguments = parse()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    place = (arguments.scratch or arguments.output).absolute()
    for directory in (arguments.output, place):
        directory.mkdir(parents=True, exist_ok=True)
    about = machine.describe()
    print(machine.headline(about), flush=True)
    texts, whole, pictured = [machine.headline(about)], [], {}
    for plan in plans(arguments):
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="durable-", dir=place) as scratch:
            measured = run(plan, Path(scratch))
        text, result = show(plan, measured)
        print(f"{text}\n({time.monotonic() - began_s:.0f} s)\n", flush=True)
        texts.append(text)
        whole.append({**measured, "rows": result})
        pictured[plan.title] = result
        (arguments.output / "time_to_durable.md").write_text("\n\n".join(texts) + "\n")
        report = json.dumps({"machine": about, "tables": whole}, indent=1)
        (arguments.output / "time_to_durable.json").write_text(report)
        picture(pictured, arguments.output / "time_to_durable.png")
        if measured["interrupted"]:
            break


if __name__ == "__main__":
    main()
