"""From measured windows to figures, a table and a picture."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Window = dict[str, Any]
Row = dict[str, Any]

SAVES_FOR_P99 = 100
STEPS_FOR_P99 = 100


def quantile(values: Sequence[float], q: float) -> float:
    """The smallest value that at least ``q`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


def worst(values: Sequence[float], enough: int) -> float:
    """The 99th percentile where there are enough values to speak of one, else the maximum."""
    return quantile(values, 0.99) if len(values) >= enough else max(values)


def lost_s(blocks: Sequence[dict[str, Any]]) -> list[float]:
    """What each save cost: its block's time beyond as many steps of the blocks before and after it."""
    lost = []
    for before, block, after in zip(blocks[0::2], blocks[1::2], blocks[2::2], strict=False):
        plain_s = before["steps_s"] + after["steps_s"]
        steps_s = block["steps_s"]
        lost.append(sum(steps_s) - len(steps_s) * statistics.fmean(plain_s))
    return lost


def cpu_s(blocks: Sequence[dict[str, Any]]) -> list[float]:
    """CPU seconds of each save, as ``lost_s``."""
    spent = []
    for before, block, after in zip(blocks[0::2], blocks[1::2], blocks[2::2], strict=False):
        plain_s = (before["cpu_s"] + after["cpu_s"]) / (len(before["steps_s"]) + len(after["steps_s"]))
        spent.append(block["cpu_s"] - len(block["steps_s"]) * plain_s)
    return spent


def row(windows: Sequence[Window]) -> Row:
    """The figures of one contender from all its windows. Times in milliseconds, but for CPU seconds."""
    saves = [block for window in windows for block in window["blocks"] if block["saves"]]
    plain = [block for window in windows for block in window["blocks"] if not block["saves"]]
    blocked = [block["blocked_s"] * 1e3 for block in saves]
    lost = [one * 1e3 for window in windows for one in lost_s(window["blocks"])]
    with_save = [one * 1e3 for block in saves for one in block["steps_s"]]
    without = [one * 1e3 for block in plain for one in block["steps_s"]]
    local = [one for window in windows for one in window["local_ms"]]
    copies = [one for window in windows for one in window["copy_ms"]]
    peaks = [window["peak_bytes"] for window in windows if window.get("peak_bytes")]
    uploaders = [window["uploader_bytes"] for window in windows if window.get("uploader_bytes")]
    return {
        "contender": windows[0]["contender"],
        "size_bytes": windows[0]["size_bytes"],
        "saves": len(saves),
        "blocked_p50_ms": statistics.median(blocked),
        "blocked_worst_ms": worst(blocked, SAVES_FOR_P99),
        "blocked_max_ms": max(blocked),
        "first_blocked_ms": statistics.median(window["first"]["blocked_s"] * 1e3 for window in windows),
        "lost_ms": statistics.fmean(lost),
        "lost_error_ms": statistics.stdev(lost) / math.sqrt(len(lost)) if len(lost) > 1 else None,
        "lost_median_ms": statistics.median(lost),
        "steps": len(with_save),
        "step_worst_ms": worst(with_save, STEPS_FOR_P99),
        "plain_step_worst_ms": worst(without, STEPS_FOR_P99),
        "plain_step_p50_ms": statistics.median(without),
        "local_ms": statistics.median(local) if local else None,
        "copy_ms": statistics.median(copies) if copies else None,
        "slowest_step": _slowest(saves),
        "cpu_s": statistics.fmean(one for window in windows for one in cpu_s(window["blocks"])),
        "peak_bytes": max(peaks, default=None),
        "uploader_bytes": max(uploaders, default=None),
    }


def _slowest(blocks: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The slowest step of some blocks, and where its thread's time went."""
    step_s, time = max(
        (pair for block in blocks for pair in zip(block["steps_s"], block["times"], strict=True)),
        key=lambda pair: pair[0],
    )
    return {
        "ms": step_s * 1e3,
        "user_ms": time["user_s"] * 1e3,
        "system_ms": time["system_s"] * 1e3,
        "queued_ms": time["queued_s"] * 1e3,
        "faults": time["faults"],
    }


def rows(windows: Sequence[Window]) -> list[Row]:
    """One row a contender, in the order in which they first ran; memory is told beyond that of ``none``."""
    names = list(dict.fromkeys(window["contender"] for window in windows))
    table = [row([window for window in windows if window["contender"] == name]) for name in names]
    base_bytes = next((one["peak_bytes"] for one in table if one["contender"] == "none"), None)
    for one in table:
        known = base_bytes is not None and one["peak_bytes"] is not None
        one["extra_bytes"] = one["peak_bytes"] - base_bytes if known else None
    return table


def table(result: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    p99 = "p99" if min(one["saves"] for one in result) >= SAVES_FOR_P99 else "max"
    columns: dict[str, Callable[[Row], str]] = {
        "contender": lambda one: str(one["contender"]),
        "blocked p50 ms": lambda one: _number(one["blocked_p50_ms"]),
        f"blocked {p99} ms": lambda one: _number(one["blocked_worst_ms"]),
        "first save ms": lambda one: _number(one["first_blocked_ms"]),
        "lost ms a checkpoint": _lost,
        "median": lambda one: f"{one['lost_median_ms']:,.1f}",
        "step p99 ms with save": lambda one: _number(one["step_worst_ms"]),
        "without": lambda one: _number(one["plain_step_worst_ms"]),
        "copied after ms": lambda one: _number(one["copy_ms"]),
        "local after ms": lambda one: _number(one["local_ms"]),
        "extra memory / state": _memory,
        "CPU s": lambda one: f"{one['cpu_s']:.2f}",
    }
    cells = [list(columns), *([show(one) for show in columns.values()] for one in result)]
    return markdown(cells)


def remarks(result: Sequence[Row]) -> list[str]:
    """Where a contender's slowest step with a save spent its time; and, of each whose copy takes longer than
    a step, what it blocked, beside what no overlap could hide.
    """
    slowest = [
        f"{one['contender']}: the slowest step with a save: {step['ms']:,.0f} ms, of it "
        f"{step['user_ms']:,.0f} computing, "
        f"{step['system_ms']:,.0f} in the kernel ({step['faults']:,} page faults), "
        f"{step['queued_ms']:,.0f} waiting for a core"
        for one in result
        for step in [one["slowest_step"]]
    ]
    return slowest + [
        f"{one['contender']}: the copy takes {one['copy_ms']:.0f} ms, a step {one['plain_step_p50_ms']:.0f}, "
        f"so {one['copy_ms'] - one['plain_step_p50_ms']:.0f} ms can't be hidden; "
        f"it blocked {one['blocked_p50_ms']:.0f}"
        for one in result
        if one["copy_ms"] is not None and one["copy_ms"] > one["plain_step_p50_ms"]
    ]


def markdown(cells: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the head; all columns but the first to the right."""
    widths = [max(len(line[at]) for line in cells) for at in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(widths[at]) if not at else cell.rjust(widths[at])
                          for at, cell in enumerate(line)) + " |"
        for line in cells
    ]  # fmt: skip
    rule = "|".join("-" * (width + 1) + ("-" if not at else ":") for at, width in enumerate(widths))
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:,.0f}"


def _lost(one: Row) -> str:
    error = one["lost_error_ms"]
    return f"{one['lost_ms']:,.1f}" + ("" if error is None else f" ± {error:,.1f}")


def _memory(one: Row) -> str:
    if one["extra_bytes"] is None:
        return "–"
    uploader = "" if not one["uploader_bytes"] else f" + {one['uploader_bytes'] / 1e6:.0f} MB"
    return f"{one['extra_bytes'] / one['size_bytes']:.2f}{uploader}"


def picture(windows: Sequence[Window], title: str, path: Path) -> None:
    """Step time over time, one line a contender from its first window, each save marked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter

    first = {window["contender"]: window for window in reversed(windows)}
    names = list(dict.fromkeys(window["contender"] for window in windows))
    figure, axes = plt.subplots(
        len(names), 1, sharex=True, sharey=True, figsize=(10, 1 + 0.95 * len(names)), squeeze=False
    )
    for axis, name in zip(axes[:, 0], names, strict=True):
        at_s, steps_ms, saves_s = _line(first[name]["blocks"])
        axis.plot(at_s, steps_ms, linewidth=1, color="tab:blue", drawstyle="steps-post")
        for save_s in saves_s:
            axis.axvline(save_s, color="tab:red", linewidth=0.8, linestyle=":")
        axis.set_yscale("log")
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.tick_params(labelsize=7)
    axes[-1, 0].set_xlabel("seconds of training; a dotted line is a save", fontsize=8)
    figure.suptitle(f"Step time in ms: {title}", fontsize=10)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _line(blocks: Sequence[dict[str, Any]]) -> tuple[list[float], list[float], list[float]]:
    """Seconds of training, step times in milliseconds, and where the saves are."""
    at_s: list[float] = []
    steps_ms: list[float] = []
    saves_s: list[float] = []
    now_s = 0.0
    for block in blocks:
        if block["saves"]:
            saves_s.append(now_s)
        for step_s in block["steps_s"]:
            at_s.append(now_s)
            steps_ms.append(step_s * 1e3)
            now_s += step_s
    return at_s, steps_ms, saves_s
