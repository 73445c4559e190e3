"""A whole, tiny run inside the test's process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uploader import layout
from wmtp.checkpoint.uploader_process import Uploading
from wmtp.settings import Flags, load_settings
from wmtp.training.job import run_job

RECIPE: dict[str, Any] = {
    "train": {"max_steps": 12},
    "data": {"train": "./text", "sequence_length": 16, "batch_size": 2, "gradient_accumulation": 2},
    "model": {
        "hidden_size": 16, "intermediate_size": 24, "trunk_layers": 1,
        "heads": 2, "attention_heads": 2, "kv_heads": 1, "dropout": 0.1,
    },
}  # fmt: skip

FIXED = ("paths.checkpoints.save_interval=6", "paths.checkpoints.keep_last=9", "log_interval=100")

Line = dict[str, Any]
Train = Callable[..., list[Line]]


def run(directory: Path, name: str, *overrides: str, resume: str | None = None, code: int = 0) -> list[Line]:
    """Run a job in a directory that has a recipe; every sixth step is saved, nothing is uploaded.

    Args:
        code: the exit code it must have.

    Returns:
        Its metrics.
    """
    flags = Flags(run_name=name, resume=resume)
    settings = load_settings(None, "recipe.yaml", [*FIXED, *overrides], flags, {}, directory)
    assert run_job(settings, Uploading.NONE, again="wmtp train") == code
    return metrics_of(settings.local_dir)


def metrics_of(run_directory: Path) -> list[Line]:
    return [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]


def files_of(directory: Path) -> dict[str, bytes]:
    """A step's files by name, without records: those say when they were made."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if not layout.is_record(path.name)}


def stored(directory: Path) -> dict[str, Any]:
    """A step's training state: its tensors and all else, but for the settings that it was made with."""
    files: dict[str, Any] = dict(files_of(directory))
    tree = json.loads(files.pop("state-rank00000.json"))
    return files | {name: tree[name] for name in ("model", "optim")} | tree["extra"]
