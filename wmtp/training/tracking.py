"""What people see of a run: its metrics as JSON lines on disk, and lines (or a bar) on the terminal.

A resumed run cuts the lines after the step it resumes from, so every step is in the file once, whatever was
killed when. Imports neither torch nor, before there is a terminal, rich.
"""

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO, TypeAlias

from uploader.below import private
from uploader.errors import CorruptError
from uploader.files import disk_errors, make_directory

if TYPE_CHECKING:
    import rich.progress

Metric: TypeAlias = float | int | str | list[float] | None


class MetricsLog:
    """An append-only file, one JSON object a line, each with its ``step``; a line is in the file once logged.

    Args:
        path: the file; made, with its directories, if it isn't there.
        resume_step: lines of later steps are cut away before anything is appended; 0 begins anew.

    Raises:
        DiskError: the file can't be written.
        CorruptError: a line before the last is not a JSON object with a step.
    """

    def __init__(self, path: Path, *, resume_step: int) -> None:
        self.path = path
        with disk_errors("writing metrics to", self.path):
            make_directory(path.parent)
            self._cut(resume_step)
            self._file = open(path, "a", encoding="utf-8", opener=private)  # noqa: SIM115  (closed by close)

    def log(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Append one line; a number that is not finite becomes null, for JSON has no other.

        Raises:
            DiskError: the line can't be written. It is kept, and written with a later one.
        """
        line = {"step": step} | {name: _finite(value) for name, value in metrics.items()}
        with disk_errors("writing metrics to", self.path):
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        with disk_errors("writing metrics to", self.path):
            self._file.close()

    def _cut(self, resume_step: int) -> None:
        """Keep the whole lines up to ``resume_step``; written beside and renamed: a crash here loses none."""
        lines = self.path.read_bytes().splitlines(keepends=True) if self.path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            lines.pop()
        kept = [line for number, line in enumerate(lines, 1) if self._step(line, number) <= resume_step]
        beside = self.path.with_name(self.path.name + ".tmp")
        with open(beside, "wb", opener=private) as file:
            file.writelines(kept)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)

    def _step(self, line: bytes, number: int) -> int:
        try:
            return int(json.loads(line)["step"])
        except (ValueError, TypeError, KeyError) as error:
            raise CorruptError(
                "not a JSON object with a step",
                doing="reading",
                subject=f"{self.path}:{number}",
                hint="move the file away to begin a new one",
            ) from error


def _finite(value: Metric) -> Metric | list[float | None]:
    if isinstance(value, list):
        return [number if math.isfinite(number) else None for number in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Progress:
    """Progress of a run, as a context manager: lines, and below them a bar where ``stream`` is a terminal.

    Args:
        max_steps: where the bar ends.
        stream: where to write; standard output by default.
    """

    def __init__(self, max_steps: int, stream: TextIO | None = None) -> None:
        self.max_steps = max_steps
        self._stream = stream or sys.stdout
        self._bar: rich.progress.Progress | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty():
            self._bar = _terminal_bar(self._stream)
            self._task = self._bar.add_task("training", total=self.max_steps)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """Move the bar to ``step``; writes no line."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def step(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Write a line with the step and its metrics, numbers to four digits."""
        self.advance(step)
        words = [f"step {step}/{self.max_steps}", *(f"{name} {_short(metrics[name])}" for name in metrics)]
        self.note("  ".join(words))

    def note(self, line: str) -> None:
        """Write a line as it is."""
        if self._bar:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print(line, file=self._stream, flush=True)


def _short(value: Metric) -> str:
    if isinstance(value, list):
        return "/".join(_short(number) for number in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _terminal_bar(stream: TextIO) -> "rich.progress.Progress":
    from rich import progress
    from rich.console import Console

    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), progress.MofNCompleteColumn())
    return progress.Progress(*columns, progress.TimeRemainingColumn(), console=Console(file=stream))
