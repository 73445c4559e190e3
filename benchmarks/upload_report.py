"""From measured uploads to figures, a table, how ours stands, and a picture."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.upload_contenders import OURS, RAW

Row = dict[str, Any]
GIB = 1024**3

REACH_SPEED, REACH_CPU = 0.95, 1.1
REACH_BYTES = 96 * 1024**2
"""What ours is to reach: of the fastest peer's speed, of the leanest's CPU, of memory beside the parts."""


def row(runs: Sequence[dict[str, Any]], size_bytes: int) -> Row:
    """The figures of one contender: medians of its runs, and the worst."""
    walls_s = [one["wall_s"] for one in runs]
    return {
        "contender": runs[0]["contender"],
        "runs": len(runs),
        "mb_per_s": size_bytes / 1e6 / statistics.median(walls_s),
        "slowest_mb_per_s": size_bytes / 1e6 / max(walls_s),
        "cpu_s_per_gib": statistics.median(one["cpu_s"] for one in runs) / (size_bytes / GIB),
        "before_bytes": round(statistics.median(one["before_bytes"] for one in runs)),
        "peak_bytes": max(one["peak_bytes"] for one in runs),
        "checks": checks(runs[-1]["checked_bytes"]) if "checked_bytes" in runs[-1] else None,
    }


def checks(checked_bytes: Mapping[str, int]) -> str:
    """The checksums that most of the bytes came with."""
    return max(checked_bytes, key=lambda name: checked_bytes[name], default="none")


def rows(runs: Sequence[dict[str, Any]], size_bytes: int, order: Sequence[str]) -> list[Row]:
    """One row a contender that ran, in the given order."""
    names = [name for name in order if any(one["contender"] == name for one in runs)]
    return [row([one for one in runs if one["contender"] == name], size_bytes) for name in names]


def table(result: Sequence[Row]) -> str:
    """The rows as a table in Markdown. Memory in MB of 1e6 bytes."""
    cells = [
        ["contender", "MB/s", "slowest", "CPU s a GiB", "peak MB", "before MB", "checksums"],
        *(
            [
                one["contender"],
                f"{one['mb_per_s']:,.0f}",
                f"{one['slowest_mb_per_s']:,.0f}",
                f"{one['cpu_s_per_gib']:.2f}",
                f"{one['peak_bytes'] / 1e6:,.0f}",
                f"{one['before_bytes'] / 1e6:,.0f}",
                one["checks"] or "–",
            ]
            for one in result
        ),
    ]
    return report.markdown(cells)


def standing(result: Sequence[Row], parts_bytes: int) -> list[str]:
    """How ours stands beside the fastest and the leanest peer, and under its bound of memory.

    Args:
        parts_bytes: what all parts in flight come to.
    """
    peers = [one for one in result if one["contender"] not in (OURS, RAW)]
    mine = next((one for one in result if one["contender"] == OURS), None)
    if mine is None or not peers:
        return []
    fastest = max(peers, key=lambda one: one["mb_per_s"])
    leanest = min(peers, key=lambda one: one["cpu_s_per_gib"])
    speed = mine["mb_per_s"] / fastest["mb_per_s"]
    cpu = mine["cpu_s_per_gib"] / leanest["cpu_s_per_gib"] if leanest["cpu_s_per_gib"] else float("inf")
    allowed_bytes = REACH_BYTES + parts_bytes
    return [
        f"ours: {speed:.2f} of the fastest ({fastest['contender']}), to reach {REACH_SPEED}; "
        f"{cpu:.2f} of the leanest's CPU ({leanest['contender']}), at most {REACH_CPU}; "
        f"{mine['peak_bytes'] / 1e6:,.0f} MB, at most {allowed_bytes / 1e6:,.0f}",
        "",
    ]


def picture(tables: Mapping[str, Sequence[Row]], path: Path) -> None:
    """Speed, CPU and memory of every contender, one line of bars a table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels: dict[str, Callable[[Row], float]] = {
        "MB/s": lambda one: one["mb_per_s"],
        "CPU s a GiB": lambda one: one["cpu_s_per_gib"],
        "peak MB": lambda one: one["peak_bytes"] / 1e6,
    }
    height = sum(1 + 0.22 * len(result) for result in tables.values())
    figure, axes = plt.subplots(len(tables), len(panels), figsize=(10, height), squeeze=False)
    for line, (title, result) in zip(axes, tables.items(), strict=True):
        names = [one["contender"] for one in result]
        colours = ["tab:red" if name == OURS else "tab:gray" if name == RAW else "tab:blue" for name in names]
        for axis, (label, figure_of) in zip(line, panels.items(), strict=True):
            axis.barh(names, [figure_of(one) for one in result], color=colours)
            axis.invert_yaxis()
            axis.set_xlabel(label, fontsize=8)
            axis.tick_params(labelsize=7)
        line[0].set_title(title, fontsize=9, loc="left")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
