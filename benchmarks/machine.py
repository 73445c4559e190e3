"""What a run tells of the machine, and what processes take of it: CPU seconds and memory (Linux)."""

import os
import platform
import resource
import shlex
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

_TICKS = os.sysconf("SC_CLK_TCK")


def describe() -> dict[str, Any]:
    """The command and the machine a result belongs to."""
    import torch

    return {
        "command": shlex.join([Path(sys.executable).name, "-m", _module(), *sys.argv[1:]]),
        "cores": os.cpu_count(),
        "processor": _processor(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "load": round(os.getloadavg()[0], 2),
    }


def headline(machine: dict[str, Any]) -> str:
    """``describe`` in one line."""
    return (
        "$ {command}\n# {cores} cores ({processor}), {memory_gb} GB, torch {torch} with {threads} threads, "
        "accelerator: {device}, load {load}"
    ).format(**machine)


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else sys.argv[0]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(directory.name))
        if fields:
            children.setdefault(int(fields[1]), []).append(int(directory.name))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def cpu_s(pid: int) -> float:
    """CPU seconds of a process, its descendants, and those of them that have ended."""
    return sum(sum(map(int, fields[11:15])) for one in family(pid) if (fields := _stat(one))) / _TICKS


def _stat(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` after the name; none of a process that has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


@dataclass(frozen=True)
class ThreadTime:
    """Where the calling thread's time has gone, in seconds, and its page faults (Linux).

    Attributes:
        queued_s: it could have run, but other threads had the cores.
    """

    user_s: float
    system_s: float
    queued_s: float
    faults: int

    @classmethod
    def now(cls) -> "ThreadTime":
        usage = resource.getrusage(resource.RUSAGE_THREAD)
        _, queued_ns, _ = Path("/proc/thread-self/schedstat").read_text().split()
        faults = usage.ru_minflt + usage.ru_majflt
        return cls(usage.ru_utime, usage.ru_stime, int(queued_ns) / 1e9, faults)

    def since(self, before: "ThreadTime") -> "ThreadTime":
        """What came between the two."""
        return ThreadTime(
            self.user_s - before.user_s,
            self.system_s - before.system_s,
            self.queued_s - before.queued_s,
            self.faults - before.faults,
        )


class PeakMemory:
    """The highest memory of a process and its descendants, from ``begin`` to the end of the context.

    Proportional set size: what processes share counts once. Uploaders of ours count apart.

    Attributes:
        trainer_bytes, uploader_bytes: the peaks.
    """

    def __init__(self, pid: int, *, every_s: float = 0.02) -> None:
        self.trainer_bytes = self.uploader_bytes = 0
        self._pid, self._every_s = pid, every_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self) -> None:
        """Begin to watch: each look takes the processes some milliseconds."""
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            trainer = uploader = 0
            for pid in family(self._pid):
                if _is_uploader(pid):
                    uploader += _pss_bytes(pid)
                else:
                    trainer += _pss_bytes(pid)
            self.trainer_bytes = max(self.trainer_bytes, trainer)
            self.uploader_bytes = max(self.uploader_bytes, uploader)


def _is_uploader(pid: int) -> bool:
    try:
        return b"\0uploader\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
