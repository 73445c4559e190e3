"""A thousand checkpoints in one process must leave no trace in it: ``python -m benchmarks.growth``.

Counts the memory, threads and open files of the trainer, and of the uploader that uploads and prunes beside
it, after each tenth of the saves. The first tenth, in which caches fill, is not compared.
"""

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import machine, null_sink, report
from benchmarks.contenders import Contender, Context, Ours, OursLocal
from benchmarks.step_stall import RESULTS
from benchmarks.workload import build

SAVE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Held:
    """What one process holds; ``role`` is its place in this benchmark."""

    role: str
    memory_bytes: int
    threads: int
    files: int


def held(pid: int) -> Held:
    """Resident memory, threads and open files of a process."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    memory_kib, threads = status["VmRSS"].split()[0], status["Threads"]
    command = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    role = next((one for one in ("uploader", "benchmarks.null_sink") if one in command), "trainer")
    return Held(role, int(memory_kib) * 1024, int(threads), len(os.listdir(f"/proc/{pid}/fd")))


def run(contender: Contender, context: Context, saves: int, looks: int = 10) -> list[list[Held]]:
    """Save again and again; what this process and its children hold, after each tenth of the saves."""
    seen = []
    for step in range(1, saves + 1):
        context.workload.forward_backward()
        contender.fence()
        context.workload.optimizer.step()
        contender.save(step)
        _wait(contender)
        if step % max(1, saves // looks) == 0:
            seen.append([held(pid) for pid in machine.family(os.getpid())])
            contender.tidy()
    return seen


def _wait(contender: Contender) -> None:
    deadline_s = time.monotonic() + SAVE_TIMEOUT_S
    while not contender.idle():
        assert time.monotonic() < deadline_s, "the save does not end"
        time.sleep(0.002)


def growth(seen: Sequence[Sequence[Held]]) -> list[Held]:
    """By how much each process grew from the first look to the last; of the sink nothing is asked."""
    return [
        Held(
            first.role,
            last.memory_bytes - first.memory_bytes,
            last.threads - first.threads,
            last.files - first.files,
        )
        for first, last in zip(seen[0], seen[-1], strict=True)
        if first.role != "benchmarks.null_sink"
    ]


def main() -> None:
    """Measure and report; the exit code tells whether something grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--saves", type=int, default=1000)
    parser.add_argument("--size", type=float, default=0.01, metavar="GB")
    parser.add_argument("--allow", type=float, default=8.0, metavar="MB", help="memory that is no growth")
    parser.add_argument("--local", action="store_true", help="without an uploader")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    os.environ |= {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    arguments.output.mkdir(parents=True, exist_ok=True)
    scratch = arguments.output / "growth"
    scratch.mkdir()
    about = machine.describe()
    print(machine.headline(about), flush=True)
    try:
        with null_sink.running() as url:
            context = Context(scratch, build("accelerator", arguments.size, 0.0), url, None)
            contender = (OursLocal if arguments.local else Ours)(context)
            seen = run(contender, context, arguments.saves)
            contender.close()
    finally:
        shutil.rmtree(scratch)
    grown = growth(seen)
    cells = [["after", *(f"{one.role}: MB, threads, files" for one in seen[0])]]
    for number, look in enumerate(seen, 1):
        each = [f"{one.memory_bytes / 1e6:.1f}, {one.threads}, {one.files}" for one in look]
        cells.append([str(number * max(1, arguments.saves // 10)), *each])
    text = report.markdown(cells)
    print(text)
    (arguments.output / "growth.md").write_text(f"{machine.headline(about)}\n\n{text}\n")
    whole = {"machine": about, "seen": [[asdict(one) for one in look] for look in seen]}
    (arguments.output / "growth.json").write_text(json.dumps(whole, indent=1))
    grew = any(one.memory_bytes > arguments.allow * 1e6 or one.threads > 0 or one.files > 0 for one in grown)
    print("it grew" if grew else "nothing grew")
    sys.exit(int(grew))


if __name__ == "__main__":
    main()
