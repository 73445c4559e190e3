"""Our local write beside the raw disk and other writers: ``python -m benchmarks.local_write``.

All write the same state durably, turn by turn; what was written is removed in between. ``raw`` is one file,
written block after block and fsynced, past the page cache (``direct``) and through it (``buffered``).
"""

import argparse
import json
import mmap
import os
import shutil
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.step_stall import RESULTS
from benchmarks.turns import in_turn
from benchmarks.workload import build
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.layout import RunDirectory
from wmtp.checkpoint.collect import Collector
from wmtp.checkpoint.copying import Landing
from wmtp.checkpoint.disk import FILES_AT_ONCE, Disk, FileSource
from wmtp.checkpoint.saver import SHARD_SIZE_BYTES
from wmtp.checkpoint.snapshot import Snapshot
from wmtp.checkpoint.writer import Description, write_checkpoint

Write = Callable[[Path], None]
"""Writes the whole state below a directory, durably."""

RAW = "raw direct"


@dataclass(frozen=True)
class State:
    """The state in all forms the writers take."""

    live: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    sources: list[FileSource]
    raw: memoryview

    @property
    def size_bytes(self) -> int:
        return sum(len(source.data) for source in self.sources)


def prepare(size_gb: float, shard_size_bytes: int) -> State:
    """Make the state and its snapshot, and as many raw bytes as the snapshot has."""
    workload = build("accelerator", size_gb, 0.0)
    collector = Collector(workload.model, {"main": workload.optimizer}, {}, {})
    groups, _ = collector.collect()
    snapshot = Snapshot(0, shard_size_bytes)
    snapshot.capture(groups, collector.buffers)
    snapshot.copy(Landing())
    arena = snapshot.arena
    sources = [
        FileSource(one.file_name, arena.bytes_of(one), arena.bytes_of(one, padded=True))
        for one in arena.images
    ]
    size_bytes = sum(len(source.data) for source in sources)
    memory = mmap.mmap(-1, size_bytes + -size_bytes % mmap.PAGESIZE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)  # as the snapshot's memory is
    raw = memoryview(memory)
    raw[:] = os.urandom(mmap.PAGESIZE) * (len(raw) // mmap.PAGESIZE)
    tensors = {name: one.detach() for group in groups.values() for name, one in group.items()}
    live = {"model": workload.model.state_dict(), "optim": workload.optimizer.state_dict()}
    return State(live, tensors, sources, raw)


def writers(state: State) -> dict[str, Write]:
    """Every way to write, by name."""
    ours: dict[str, Write] = {"ours": partial(write_ours, state, FILES_AT_ONCE)}
    several = {f"ours, {count} at once": partial(write_ours, state, count) for count in (1, 4)}
    return {
        RAW: partial(write_raw, state.raw, os.O_DIRECT),
        "raw buffered": partial(write_raw, state.raw, 0),
        **ours,
        **several,
        "safetensors": partial(write_safetensors, state),
        "torch.save": partial(write_torch, state),
        "dcp.save": partial(write_dcp, state),
    }


def write_raw(data: memoryview, flags: int, directory: Path) -> None:
    """One file, sequentially, and fsync."""
    descriptor = os.open(directory / "raw", os.O_WRONLY | os.O_CREAT | flags, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, len(data))
        for at in range(0, len(data), BLOCK_SIZE_BYTES):
            block = data[at : at + BLOCK_SIZE_BYTES]
            assert os.pwrite(descriptor, block, at) == len(block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_ours(state: State, files_at_once: int, directory: Path) -> None:
    """A whole checkpoint of ours, as the saver's writer thread writes it: checksums, records and rename."""
    what = Description("bench", 1, 1, datetime.now(UTC), {}, {})
    disk = Disk()
    disk.files_at_once = files_at_once
    disk.run(write_checkpoint(RunDirectory(directory), state.sources, what))


def write_safetensors(state: State, directory: Path) -> None:
    """``save_file`` into one file, and fsync."""
    from safetensors.torch import save_file

    save_file(state.tensors, directory / "state.safetensors")
    _fsync(directory / "state.safetensors")


def write_torch(state: State, directory: Path) -> None:
    """``torch.save`` into one file, and fsync."""
    torch.save(state.live, directory / "state.pt")
    _fsync(directory / "state.pt")


def write_dcp(state: State, directory: Path) -> None:
    """``dcp.save``, which fsyncs by itself."""
    from torch.distributed.checkpoint.state_dict_saver import save

    save(state.live, checkpoint_id=directory, no_dist=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def measure(ways: dict[str, Write], rounds: int, scratch: Path) -> dict[str, list[tuple[float, float]]]:
    """Seconds and CPU seconds of every write; each round in another order."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in in_turn(list(ways), number):
            scratch.mkdir(parents=True)
            began_s, cpu_s = time.perf_counter(), time.process_time()
            ways[name](scratch)
            taken[name].append((time.perf_counter() - began_s, time.process_time() - cpu_s))
            shutil.rmtree(scratch)
    return taken


def rows(taken: dict[str, list[tuple[float, float]]], size_bytes: int) -> list[dict[str, Any]]:
    """Medians for each way to write, and its speed as a part of the raw disk's, paired round by round."""
    return [
        {
            "writer": name,
            "mb_per_s": size_bytes / 1e6 / statistics.median(wall_s for wall_s, _ in runs),
            "slowest_mb_per_s": size_bytes / 1e6 / max(wall_s for wall_s, _ in runs),
            "cpu_s": statistics.median(cpu_s for _, cpu_s in runs),
            "of_raw": statistics.median(
                raw_s / wall_s for (raw_s, _), (wall_s, _) in zip(taken[RAW], runs, strict=True)
            ),
        }
        for name, runs in taken.items()
    ]


def table(result: Sequence[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    cells = [["writer", "MB/s", "slowest", "of raw direct", "CPU s"]]
    cells += [
        [
            one["writer"],
            f"{one['mb_per_s']:,.0f}",
            f"{one['slowest_mb_per_s']:,.0f}",
            f"{one['of_raw']:.2f}",
            f"{one['cpu_s']:.2f}",
        ]
        for one in result
    ]
    return report.markdown(cells)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.local_write", description=__doc__)
    parser.add_argument("--size", type=float, default=1.4, metavar="GB", help="of the state, in 1e9 bytes")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--shard", type=int, default=SHARD_SIZE_BYTES, metavar="BYTES", help="largest file")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--scratch", type=Path, help="where files go: the disk that is measured")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="torch.distributed")
    arguments.output.mkdir(parents=True, exist_ok=True)
    about = machine.describe()
    print(machine.headline(about), flush=True)
    state = prepare(arguments.size, arguments.shard)
    scratch = arguments.scratch or arguments.output / "scratch"
    taken = measure(writers(state), arguments.rounds, scratch / "write")
    result = rows(taken, state.size_bytes)
    shards = len(state.sources)
    title = f"## {state.size_bytes / 1e9:.2f} GB in {shards} files, medians of {arguments.rounds} rounds"
    print(f"{title}\n\n{table(result)}")
    text = f"{machine.headline(about)}\n\n{title}\n\n{table(result)}\n"
    (arguments.output / "local_write.md").write_text(text)
    whole = {"machine": about, "size_bytes": state.size_bytes, "rows": result, "taken": taken}
    (arguments.output / "local_write.json").write_text(json.dumps(whole, indent=1))


if __name__ == "__main__":
    main()
