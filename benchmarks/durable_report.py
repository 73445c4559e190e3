"""From measured saves to figures, a table, how ours stands, and a picture."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report

Row = dict[str, Any]

APART, PIPELINED, IN_TURN = "apart", "pipelined", "write, then upload"
COLOURS = {PIPELINED: "tab:red", IN_TURN: "tab:blue"}
REACH = 1.15
"""Of the floor, what the time to durable is to be at most."""


def floors_ms(windows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """For each round the floor: the longer of writing alone and uploading alone, medians of the round."""
    floors = {}
    for window in windows:
        if window["way"] == APART:
            write_ms = statistics.median(one["write_ms"] for one in window["saves"])
            upload_ms = statistics.median(one["upload_ms"] for one in window["saves"])
            floors[window["round"]] = max(write_ms, upload_ms)
    return floors


def row(windows: Sequence[dict[str, Any]], floors: Mapping[int, float]) -> Row:
    """The figures of one way: each save beside the floor of its round, where there is one."""
    saves = [one for window in windows for one in window["saves"]]
    durable_ms = [one["durable_ms"] for one in saves]
    ratios = [
        one["durable_ms"] / floors[window["round"]]
        for window in windows
        if window["round"] in floors
        for one in window["saves"]
    ]
    return {
        "way": windows[0]["way"],
        "saves": len(saves),
        "durable_ms": statistics.median(durable_ms),
        "worst_ms": max(durable_ms),
        "of_floor": statistics.median(ratios) if ratios else None,
        "worst_of_floor": max(ratios, default=None),
        "local_ms": statistics.median(one["local_ms"] for one in saves),
        "after_local_ms": statistics.median(one["durable_ms"] - one["local_ms"] for one in saves),
    }


def rows(windows: Sequence[dict[str, Any]]) -> list[Row]:
    """A row for each way that ran, then what the floor is made of."""
    floors = floors_ms(windows)
    ways = [way for way in (PIPELINED, IN_TURN) if any(window["way"] == way for window in windows)]
    result = [row([window for window in windows if window["way"] == way], floors) for way in ways]
    alone = [one for window in windows if window["way"] == APART for one in window["saves"]]
    for name, field in (("write alone", "write_ms"), ("upload alone", "upload_ms")):
        taken_ms = [one[field] for one in alone]
        if taken_ms:
            result.append(
                {
                    "way": name,
                    "saves": len(taken_ms),
                    "durable_ms": statistics.median(taken_ms),
                    "worst_ms": max(taken_ms),
                }
            )
    return result


def table(result: Sequence[Row]) -> str:
    """The rows as a table in Markdown."""
    head = ["", "saves", "ms p50", "worst", "of max(write, upload)", "worst", "local after ms", "then"]
    cells = [head]
    for one in result:
        ratios = [_ratio(one.get("of_floor")), _ratio(one.get("worst_of_floor"))]
        times = [_ms(one.get("local_ms")), _ms(one.get("after_local_ms"))]
        cells.append(
            [one["way"], str(one["saves"]), _ms(one["durable_ms"]), _ms(one["worst_ms"]), *ratios, *times]
        )
    return report.markdown(cells)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _ratio(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def standing(result: Sequence[Row]) -> list[str]:
    """Ours beside what it is to reach."""
    ours = next((one for one in result if one["way"] == PIPELINED and one["of_floor"] is not None), None)
    if ours is None:
        return []
    median, worst = ours["of_floor"], ours["worst_of_floor"]
    return [f"ours: {median:.2f} × max(write, upload), to reach {REACH}; at worst {worst:.2f}", ""]


def picture(tables: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A bar a way, its worst save as a line beyond it; one panel a table."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    height = sum(1 + 0.3 * len(result) for result in tables.values())
    figure, axes = plt.subplots(len(tables), 1, figsize=(9, height), squeeze=False)
    for axis, (title, result) in zip(axes[:, 0], tables.items(), strict=True):
        medians_ms = [one["durable_ms"] for one in result]
        beyond_ms = [one["worst_ms"] - one["durable_ms"] for one in result]
        axis.barh(
            [one["way"] for one in result],
            medians_ms,
            xerr=[[0] * len(result), beyond_ms],
            color=[COLOURS.get(one["way"], "tab:gray") for one in result],
        )
        axis.invert_yaxis()
        axis.set_xlabel("ms, median and worst", fontsize=8)
        axis.set_title(title, fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
