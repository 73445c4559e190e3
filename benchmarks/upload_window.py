"""One upload in a process of its own: ``python -m benchmarks.upload_window ORDER RESULT``, both JSON.

Imports, clients and connections come before the measuring. Memory is the kernel's own high-water mark, so
nothing is sampled while the upload runs.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.upload_contenders import CONTENDERS, Order


def measure(order: Order) -> dict[str, Any]:
    """Upload once.

    Returns:
        Seconds from the first call until the store has everything, CPU seconds of this process and its
        descendants, and their resident memory: before, and at most.
    """
    upload = CONTENDERS[order.contender](order)
    before_bytes = forget_peak()
    cpu_before_s, began_s = machine.cpu_s(os.getpid()), time.perf_counter()
    upload()
    wall_s = time.perf_counter() - began_s
    return {
        "contender": order.contender,
        "wall_s": wall_s,
        "cpu_s": machine.cpu_s(os.getpid()) - cpu_before_s,
        "before_bytes": before_bytes,
        "peak_bytes": peak_bytes(),
    }


def forget_peak() -> int:
    """Let the high-water mark be what is resident now, and return that."""
    Path("/proc/self/clear_refs").write_text("5")
    return _resident(os.getpid(), "VmRSS")


def peak_bytes() -> int:
    """The most that this process held since ``forget_peak``, and each of its descendants ever.

    Of those that have ended, the largest counts; the kernel knows no more.
    """
    living = sum(_resident(pid, "VmHWM") for pid in machine.family(os.getpid()))
    return living + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _resident(pid: int, field: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)


def main() -> None:
    """Do what the order says; end at once, whatever threads and helpers are left."""
    result = measure(Order(**json.loads(sys.argv[1])))
    Path(sys.argv[2]).write_text(json.dumps(result))
    os._exit(0)


if __name__ == "__main__":
    main()
