"""Every resolved value and where it came from, as rows for ``--dry-run``. No secret is among them."""

import re
from collections.abc import Iterator
from typing import Any

from wmtp.settings.read import dotted
from wmtp.settings.resolved import Resolved

Row = tuple[str, str, str]

_USER_OF_URL = re.compile(r"(?<=://)[^/\s]+@")
_HIDDEN = ("launcher.resources.env.",)
_IN_FIRST_ROWS = (
    "run.",
    "seed",
    "data.train",
    "train.max_steps",
    "train.num_epochs",
    "train.checkpointing.",
    "paths.checkpoints.base_path",
    "paths.checkpoints.local_path",
    "paths.checkpoints.save_interval",
    "paths.checkpoints.keep_last",
    "paths.checkpoints.retention.",
    "paths.checkpoints.local_retention.",
    "paths.checkpoints.save_final",
    "paths.checkpoints.upload.max_bandwidth",
)


def describe(resolved: Resolved) -> list[Row]:
    """Rows of (name, value, where it came from): first what was worked out, then each remaining setting."""
    return [*_worked_out(resolved), *_as_written(resolved)]


def _worked_out(resolved: Resolved) -> Iterator[Row]:
    sources = resolved.sources
    upload = "nothing is uploaded" if resolved.in_place else "its checkpoints are uploaded"
    length = "epochs" if resolved.max_steps is None else "max steps"
    resume = str(resolved.resume) if resolved.resume else "no, from scratch"
    yield "run name", resolved.run_name, sources["run_name"]
    yield "tags", _text(resolved.tags), sources["tags"]
    yield "base", str(resolved.base), sources["base"]
    yield "location", str(resolved.location), "base and run name"
    yield "local directory", f"{resolved.local_dir} ({upload})", sources["local_dir"]
    yield "save interval", f"{resolved.save_interval} steps", sources["save_interval"]
    yield "retention", str(resolved.retention), sources["keep_last"]
    yield "local retention", str(resolved.local_retention), sources["local_retention"]
    yield "save final", _text(resolved.save_final), sources["save_final"]
    yield "max bandwidth", _bandwidth(resolved.upload.max_bandwidth_bytes_per_s), sources["max_bandwidth"]
    yield length, _text(resolved.max_steps or resolved.num_epochs), sources["max_steps"]
    yield "resume", resume, sources["resume"]
    yield "seed", str(resolved.seed), sources["seed"]
    yield "dataset", str(resolved.dataset or "the standard library's source"), sources["dataset"]


def _bandwidth(bytes_per_s: int | None) -> str:
    return "no limit" if bytes_per_s is None else f"{bytes_per_s / 1e6:g} MB/s"


def _as_written(resolved: Resolved) -> Iterator[Row]:
    for document in (resolved.config, resolved.recipe):
        for key, value in _leaves(document.model_dump(by_alias=True), ""):
            if not key.startswith(_IN_FIRST_ROWS):
                yield key, shown(key, _text(value)), resolved.leaf_sources.get(key, "default")


def shown(key: str, text: str) -> str:
    """A setting as people may see it: without what could be a secret."""
    return "(set)" if key.startswith(_HIDDEN) else _USER_OF_URL.sub("***@", text)


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, below in value.items():
            yield from _leaves(below, dotted(key, name))
    else:
        yield key, value


def _text(value: object) -> str:
    """The value as YAML writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    return str(value)
