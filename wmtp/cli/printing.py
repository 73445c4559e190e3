"""Runs, steps and verdicts as text for people."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from uploader.errors import plain
from wmtp.cli.inventory import Inventory
from wmtp.cli.steps import Step
from wmtp.cli.verification import Verdict


def heading(inventory: Inventory) -> str:
    place = inventory.place
    here = "" if place.directory is None else f" in {place.directory.path}"
    store = f"store {place.location}" if place.location else "store unknown"
    return f"run {place.run}{here}, {store}"


def print_table(steps: list[Step]) -> None:
    if not steps:
        print("  no checkpoints yet")
        return
    now = datetime.now(UTC)
    rows = [("STEP", "STATES", "SIZE", "AGE", "LOSS")]
    for step in steps:
        age = "" if step.created_at is None else _age(now, step.created_at)
        loss = step.metrics.get("loss")
        shown = f"{loss:.4f}" if isinstance(loss, float) else "" if loss is None else str(loss)
        rows.append((step.name, ", ".join(step.states), _size(step.size_bytes), age, shown))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, states, *numbers in rows:
        words = [f"{text:>{width}}" for text, width in zip(numbers, widths[2:], strict=True)]
        print(plain("  ".join([f"  {name:<{widths[0]}}", f"{states:<{widths[1]}}", *words]).rstrip()))


def _size(size_bytes: int | None) -> str:
    if size_bytes is None:
        return ""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes} B"


def _age(now: datetime, then: datetime) -> str:
    seconds = max(0, int((now - then).total_seconds()))
    for unit, length_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length_s:
            return f"{seconds // length_s} {unit}"
    return f"{seconds} s"


def print_step(shown: dict[str, Any]) -> None:
    print(f"{shown['name']} of run {shown['run']}")
    pairs = {
        "states": ", ".join(shown["states"]),
        "generation": shown["generation"],
        "created": shown["created_at"],
        "world size": shown["world_size"],
        "local": shown["local"],
        "store": shown["store"],
        "record": shown["record"],
        "pinned": shown["pin"] and "by {by} at {at}: {note}".format(**shown["pin"]).removesuffix(": "),
        "metrics": ", ".join(f"{name} {value}" for name, value in shown["metrics"].items()),
        "fingerprints": ", ".join(f"{name} {value}" for name, value in shown["fingerprints"].items()),
        "files": f"{len(shown['files'])}, {_size(sum(file['size_bytes'] for file in shown['files']))}",
    }
    for name, value in pairs.items():
        if value is not None and value != "":
            print(plain(f"  {name:<12}  {value}"))
    width = max(len(file["path"]) for file in shown["files"])
    for file in shown["files"]:
        print(f"    {file['path']:<{width}}  {file['size_bytes']:>12}  {file['crc64nvme']}")


def print_verdict(verdict: Verdict, say: Callable[[str], None]) -> None:
    for problem in verdict.problems:
        say(f"  damaged  {verdict.step.name}: {problem}")
    if not verdict.checked and verdict.step.seen:
        say(f"  unread   {verdict.step.name}: another trainer's, compared with nothing before it is uploaded")
    elif not verdict.checked:
        say(f"  gone     {verdict.step.name}: pruned")
    elif not verdict.problems:
        say(f"  ok       {verdict.step.name}: {', '.join(verdict.checked)}")


def print_rebuilt(found: dict[str, Any]) -> None:
    print(f"{found['store']}/manifest.json is written anew from the commit records")
    print(f"  generation  {found['generation']}")
    print(f"  live        {', '.join(found['live']) or 'none'}")
    print(f"  superseded  {', '.join(found['superseded']) or 'none'}")
    for problem in found["left_out"]:
        print(f"  left out    {problem}")
