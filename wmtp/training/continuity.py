"""Whether a run goes on as what left a checkpoint: what may differ is told, what may not is refused."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from uploader.errors import StartRefused


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields that differ, each with both values."""
    names = sorted({*was, *now})
    return [(name, was.get(name), now.get(name)) for name in names if was.get(name) != now.get(name)]


def refuse_differences(was: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """A run goes on exactly, or not at all.

    Raises:
        StartRefused: model, data or seed are not those of the checkpoint; names the fields.
    """
    found = [
        f"{section}.{name} is {here!r}, in the checkpoint {there!r}"
        for section in ("model", "data")
        for name, there, here in differences(was.get(section, {}), now[section])
    ]
    if was.get("seed") != now["seed"]:
        found.append(f"seed is {now['seed']}, in the checkpoint {was.get('seed')}")
    if found:
        raise StartRefused(
            "; ".join(found),
            doing="resuming from",
            subject=str(path),
            hint="set them back, or start another run with --run-name",
        )
