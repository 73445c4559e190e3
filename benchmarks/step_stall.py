"""How long checkpoints hold up training, beside every peer: ``python -m benchmarks.step_stall [--short]``.

Every contender runs in windows of its own process, turn by turn, with the same state on the same disk. Prints
a table for each mode and size and leaves it with JSON and a picture in ``benchmarks/results/``.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from benchmarks import machine, null_sink, report
from benchmarks.contenders import BUCKET
from benchmarks.peers import CONTENDERS
from benchmarks.turns import in_turn
from benchmarks.window import WATCH, Order
from benchmarks.workload import Mode

RESULTS = Path(__file__).parent / "results"
SAVES = {0.1: 100, 1.4: 20, 5.0: 5}
SHORT = [name for name in CONTENDERS if name != "s3connector"]
STEP_S_PER_GB = 0.25
"""A larger model takes longer steps; this is still short of what any takes."""

WINDOW_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Servers:
    """The S3 servers of a run: the null sink, and SeaweedFS where a contender needs one that keeps."""

    sink_url: str
    server_url: str | None
    server_environment: dict[str, str]


@contextlib.contextmanager
def servers(names: Sequence[str], scratch: Path) -> Iterator[Servers]:
    """The servers that these contenders need."""
    with null_sink.running() as sink_url, contextlib.ExitStack() as stack:
        if "s3connector" not in names:
            yield Servers(sink_url, None, {})
            return
        from wmtp.dev_s3 import DevS3

        server = DevS3(scratch / "dev-s3")
        stack.callback(server.stop)
        server.start()
        server.ensure_bucket(BUCKET)
        yield Servers(
            sink_url, server.endpoint_url, {"AWS_SHARED_CREDENTIALS_FILE": str(server.credentials_file)}
        )


def measure(order: Order, environment: dict[str, str]) -> dict[str, Any]:
    """Run one window in a process of its own.

    Returns:
        What the window measured and its peak memory; or, under ``failed``, the last line it left.
    """
    result, log = Path(f"{order.directory}.json"), Path(f"{order.directory}.log")
    command = [sys.executable, "-m", "benchmarks.window", json.dumps(asdict(order)), str(result)]
    with (
        open(log, "w") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        ) as process,
    ):
        peak = machine.PeakMemory(process.pid)
        code = _follow(process, peak)
    shutil.rmtree(order.directory, ignore_errors=True)
    if code != 0 or not result.exists():
        lines = log.read_text().strip().splitlines()
        return {"contender": order.contender, "failed": lines[-1] if lines else f"exit code {code}"}
    measured: dict[str, Any] = json.loads(result.read_text())
    return {**measured, "peak_bytes": peak.trainer_bytes, "uploader_bytes": peak.uploader_bytes}


def _follow(process: subprocess.Popen[str], peak: machine.PeakMemory) -> int:
    """Watch the window's memory when it says so; kill it when it hangs; return its exit code."""
    limit = threading.Timer(WINDOW_TIMEOUT_S, process.kill)
    limit.start()
    assert process.stdout is not None
    with peak:
        for line in process.stdout:
            if line.strip() == WATCH:
                peak.begin()
        limit.cancel()
        return process.wait()


@dataclass(frozen=True)
class Plan:
    """One table: which contenders, and how they are measured."""

    mode: Mode
    size_gb: float
    saves: int
    rounds: int
    steps: int
    step_s: float
    contenders: tuple[str, ...]

    @property
    def title(self) -> str:
        step = f" with steps of {self.step_s} s" if self.mode == "accelerator" else ""
        saves = self.saves * self.rounds
        return f"{self.size_gb} GB, {self.mode}{step}, {saves} saves in {self.rounds} rounds"


def run(plan: Plan, scratch: Path) -> dict[str, Any]:
    """Measure a plan: in each round every contender once, each time in another order."""
    windows: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    with servers(plan.contenders, scratch) as its:
        with contextlib.suppress(KeyboardInterrupt):  # what is measured is reported all the same
            for number in range(plan.rounds):
                for name in in_turn(plan.contenders, number):
                    if name in failed:
                        continue
                    order = _order(plan, name, its, scratch / f"{name}-{number}")
                    window = measure(order, _environment(its, name))
                    if "failed" in window:
                        failed[name] = window["failed"]
                        continue
                    windows.append(window)
                    print(f"  round {number + 1}: {name}", file=sys.stderr, flush=True)
        sink = null_sink.stats(its.sink_url)
    by_plan = sorted(windows, key=lambda window: plan.contenders.index(window["contender"]))
    return {"plan": asdict(plan), "sink": sink, "failed": failed, "windows": by_plan}


def _order(plan: Plan, name: str, its: Servers, directory: Path) -> Order:
    return Order(
        contender=name,
        mode=plan.mode,
        size_gb=plan.size_gb,
        saves=plan.saves,
        steps=plan.steps,
        step_s=plan.step_s,
        directory=str(directory),
        sink_url=its.sink_url,
        server_url=its.server_url,
    )


def _environment(its: Servers, name: str) -> dict[str, str]:
    """Credentials for the server the contender speaks to: the sink takes any."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    if name == "s3connector":
        return own | its.server_environment
    return own | {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}


def show(plan: Plan, measured: dict[str, Any], about: dict[str, Any], output: Path) -> None:
    """Print the table, and write it with JSON and picture."""
    rows = report.rows(measured["windows"])
    lines = [f"## {plan.title}", "", report.table(rows), ""]
    lines += report.remarks(rows)
    lines += [f"{name}: left out: {why}" for name, why in measured["failed"].items()]
    lines += ["null sink: {:.1f} GB received, {:.1f} CPU s".format(
        measured["sink"]["bytes_in"] / 1e9, measured["sink"]["cpu_s"])]  # fmt: skip
    print("\n".join(lines), flush=True)
    name = f"step_stall-{plan.mode}-{plan.size_gb:g}GB"
    (output / f"{name}.md").write_text(machine.headline(about) + "\n\n" + "\n".join(lines) + "\n")
    whole = {"machine": about, "rows": rows, **measured}
    (output / f"{name}.json").write_text(json.dumps(whole, indent=1))
    report.picture(measured["windows"], plan.title, output / f"{name}.png")


def plans(arguments: argparse.Namespace) -> list[Plan]:
    """What the command line asks for."""
    import torch

    modes = arguments.mode or ["accelerator", *([] if arguments.short else ["cpu"])]
    if arguments.mode is None and torch.cuda.is_available():
        modes.append("cuda")
    sizes = arguments.size or ([0.1] if arguments.short else list(SAVES))
    names = arguments.contender or (SHORT if arguments.short else list(CONTENDERS))
    return [
        Plan(
            mode=mode,
            size_gb=size,
            rounds=_rounds(arguments, size),
            saves=arguments.saves or _saves(arguments, size),
            steps=arguments.steps,
            step_s=arguments.step or (0.1 if arguments.short else max(0.25, STEP_S_PER_GB * size)),
            contenders=tuple(names),
        )
        for mode in modes
        for size in sizes
    ]


def _rounds(arguments: argparse.Namespace, size_gb: float) -> int:
    return int(arguments.rounds or (1 if arguments.short else 4 if SAVES.get(size_gb, 20) == 20 else 5))


def _saves(arguments: argparse.Namespace, size_gb: float) -> int:
    return 3 if arguments.short else SAVES.get(size_gb, 20) // _rounds(arguments, size_gb)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_stall", description=__doc__)
    parser.add_argument("--short", action="store_true", help="two minutes: 0.1 GB, a few saves")
    parser.add_argument("--mode", nargs="+", choices=get_args(Mode))
    parser.add_argument("--size", nargs="+", type=float, metavar="GB", help="of the state, in 1e9 bytes")
    parser.add_argument("--saves", type=int, help="in each window")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    parser.add_argument("--steps", type=int, default=4, help="the least number of steps after a save")
    parser.add_argument("--step", type=float, metavar="S", help="length of a simulated step")
    parser.add_argument("--contender", nargs="+", choices=list(CONTENDERS))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="where checkpoints go: the disk that is measured")
    return parser.parse_args(arguments)


def main() -> None:
    """Measure and report."""
    arguments = parse()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    arguments.output.mkdir(parents=True, exist_ok=True)
    about = machine.describe()
    print(machine.headline(about), flush=True)
    for plan in plans(arguments):
        scratch = (arguments.scratch or arguments.output / "scratch").absolute()
        scratch.mkdir(parents=True, exist_ok=True)
        began_s = time.monotonic()
        try:
            show(plan, run(plan, scratch), about, arguments.output)
        finally:
            shutil.rmtree(scratch)
        print(f"({time.monotonic() - began_s:.0f} s)\n", flush=True)


if __name__ == "__main__":
    main()
