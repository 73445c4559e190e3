"""Our upload beside every other way, and the limit of the machine: ``python -m benchmarks.upload [--short]``.

All send the same files to a server that only counts and to one that keeps, turn by turn, each in a process of
its own. Prints a table for each server and shape, and leaves them with JSON and a picture in
``benchmarks/results/``.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import machine, null_sink
from benchmarks.step_stall import RESULTS
from benchmarks.turns import in_turn
from benchmarks.upload_contenders import CONTENDERS, SINK_ONLY, Order
from benchmarks.upload_files import MIB, Shape, evict, make_step
from benchmarks.upload_report import picture, rows, standing, table
from benchmarks.upload_target import ANY, TARGETS, Target, serving, stored_bytes
from uploader import layout

STEP = layout.step_name(1)
WINDOW_TIMEOUT_S = 900.0
TRIAL_TIMEOUT_S = 30.0
FULL = [Shape.parse(text) for text in ("1x4096", "16x256", "2000x1")]
SHORT = {"sink": [Shape.parse(text) for text in ("1x512", "4x128", "200x1")], "server": [Shape.parse("4x32")]}


@dataclass(frozen=True)
class Plan:
    """One table: who sends what to whom.

    Attributes:
        cached: leave the files in the page cache; else each upload begins with none of them there.
    """

    target: str
    shape: Shape
    rounds: int
    contenders: tuple[str, ...]
    part_size_bytes: int
    parts_in_flight: int
    cached: bool

    @property
    def size_bytes(self) -> int:
        return self.shape.count * self.shape.size_bytes

    @property
    def title(self) -> str:
        cached = "cached, " if self.cached else ""
        rounds = f"medians of {self.rounds} rounds" if self.rounds > 1 else "one round"
        return f"{self.shape} to the {self.target}, {cached}{rounds}"


def measure(order: Order, target: Target, log: Path, timeout_s: float) -> dict[str, Any]:
    """Run one upload in a process of its own and look whether the server has it all.

    Returns:
        What was measured; or, under ``failed``, why it was not.
    """
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.upload_window", json.dumps(asdict(order)), str(result)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    before = null_sink.stats(target.url) if target.counts else {}
    problem = run_apart(command, environment | target.credentials, log, timeout_s)
    found_bytes, wanted_bytes = stored_bytes(target, order.prefix), sum(order.files.values())
    if problem is None and found_bytes != wanted_bytes:
        problem = f"the server has {found_bytes} of {wanted_bytes} bytes"
    if problem is not None:
        return {"contender": order.contender, "failed": problem}
    measured: dict[str, Any] = json.loads(result.read_text())
    return measured | (_counted(before, null_sink.stats(target.url)) if target.counts else {})


def _counted(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What the sink saw of one upload."""
    checked = Counter(after["checked_bytes"]) - Counter(before["checked_bytes"])
    return {
        "received_bytes": after["bytes_in"] - before["bytes_in"],
        "requests": after["requests"] - before["requests"],
        "sink_cpu_s": after["cpu_s"] - before["cpu_s"],
        "checked_bytes": dict(checked),
    }


def run_apart(command: list[str], environment: Mapping[str, str], log: Path, timeout_s: float) -> str | None:
    """Run a command with all it starts, and end them all; None, or what went wrong: the last line it left."""
    with open(log, "w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return f"not done within {timeout_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = log.read_text(errors="replace").strip().splitlines()
    return None if code == 0 else (said[-1] if said else f"exit code {code}")


def run(plan: Plan, scratch: Path) -> dict[str, Any]:
    """Measure a plan: in each round every contender once, each time in another order."""
    failed: dict[str, str] = {}
    runs: list[dict[str, Any]] = []
    interrupted = False
    try:
        trial = make_step(scratch / "trial" / STEP, Shape(1, MIB))
        whole = make_step(scratch / "whole" / STEP, plan.shape)
        for number in range(plan.rounds):
            for name in in_turn(plan.contenders, number):
                if name in failed:
                    continue
                done = _turn(plan, name, scratch, whole, trial if number == 0 else {})
                if "failed" in done:
                    failed[name] = done["failed"]
                    continue
                runs.append(done | {"round": number})
                print(f"  round {number + 1}: {name}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:  # what is measured is reported all the same
        interrupted = True
    return {"plan": asdict(plan), "failed": failed, "runs": runs, "interrupted": interrupted}


def _turn(
    plan: Plan, name: str, scratch: Path, files: dict[str, int], trial: dict[str, int]
) -> dict[str, Any]:
    """One upload to a fresh server, after that of one small file where there is one: it may not work."""
    with serving(plan.target, scratch) as target:
        order = Order(
            contender=name,
            directory=str(scratch / "whole" / STEP),
            files=files,
            endpoint_url=target.url,
            prefix="upload",
            part_size_bytes=plan.part_size_bytes,
            parts_in_flight=plan.parts_in_flight,
        )
        if trial:
            small = replace(order, directory=str(scratch / "trial" / STEP), files=trial, prefix="trial")
            tried = measure(small, target, scratch / "log", TRIAL_TIMEOUT_S)
            if "failed" in tried:
                return tried
        if not plan.cached:
            evict(scratch / "whole" / STEP)
        return measure(order, target, scratch / "log", WINDOW_TIMEOUT_S)


def plans(arguments: argparse.Namespace) -> list[Plan]:
    """What the command line asks for."""
    return [
        Plan(
            target=target,
            shape=shape,
            rounds=arguments.rounds or (1 if arguments.short else 3),
            contenders=tuple(_able(arguments.contender or CONTENDERS, target)),
            part_size_bytes=arguments.part * MIB,
            parts_in_flight=arguments.in_flight,
            cached=arguments.cached,
        )
        for target in arguments.target or TARGETS
        for shape in arguments.shape or (SHORT[target] if arguments.short else FULL)
    ]


def _able(names: Iterable[str], target: str) -> list[str]:
    return [name for name in names if target == "sink" or name not in SINK_ONLY]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload", description=__doc__)
    parser.add_argument("--short", action="store_true", help="two minutes: less to send, one round")
    parser.add_argument("--target", nargs="+", choices=TARGETS, help="the null sink, the embedded server")
    parser.add_argument("--shape", nargs="+", type=Shape.parse, metavar="COUNTxMiB")
    parser.add_argument("--rounds", type=int, help="how often each contender has its turn")
    parser.add_argument("--contender", nargs="+", choices=list(CONTENDERS))
    parser.add_argument("--part", type=int, default=16, metavar="MiB", help="size of a part")
    parser.add_argument("--in-flight", type=int, default=8, metavar="N", help="parts sent at once")
    parser.add_argument("--cached", action="store_true", help="leave the files in the page cache")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="where the files are: the disk that is measured")
    return parser.parse_args(arguments)


def show(plan: Plan, measured: dict[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    """The table of a plan with its title, and its rows."""
    result = rows(measured["runs"], plan.size_bytes, plan.contenders)
    lines = [f"## {plan.title}", "", table(result), ""]
    lines += standing(result, plan.part_size_bytes * plan.parts_in_flight)
    lines += [f"{name}: left out: {why}" for name, why in measured["failed"].items()]
    lines += ["interrupted before the last round"] if measured["interrupted"] else []
    return "\n".join(lines), result


def main() -> None:
    """Measure and report."""
    arguments = parse()
    os.environ |= ANY  # ours, to look at what the sink has; contenders get their own
    arguments.output.mkdir(parents=True, exist_ok=True)
    place = (arguments.scratch or arguments.output).absolute()
    place.mkdir(parents=True, exist_ok=True)
    about = machine.describe()
    print(machine.headline(about), flush=True)
    texts, whole, pictured = [machine.headline(about)], [], {}
    for plan in plans(arguments):
        began_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="upload-", dir=place) as scratch:
            measured = run(plan, Path(scratch))
        text, result = show(plan, measured)
        print(f"{text}\n({time.monotonic() - began_s:.0f} s)\n", flush=True)
        texts.append(text)
        whole.append({**measured, "rows": result})
        pictured[plan.title] = result
        _write(arguments.output, "\n\n".join(texts), {"machine": about, "tables": whole})
        picture(pictured, arguments.output / "upload.png")
        if measured["interrupted"]:
            break


def _write(output: Path, text: str, whole: dict[str, Any]) -> None:
    (output / "upload.md").write_text(text + "\n")
    (output / "upload.json").write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
