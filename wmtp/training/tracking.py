"""Where the numbers of a run go: what a tracker does, and the one that is always there: JSON lines on disk.

A resumed run cuts the lines after the step it resumes from, so every step is in the file once, whatever was
killed when. Imports neither torch nor any tracker's package.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Protocol, TypeAlias

from uploader.below import private
from uploader.errors import CorruptError
from uploader.files import disk_errors, make_directory

Metric: TypeAlias = float | int | str | list[float] | None


class Outcome(Enum):
    """How a run ended, in MLflow's words."""

    FINISHED = "FINISHED"
    KILLED = "KILLED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Entry:
    """What is to be written of one step.

    Attributes:
        at_s: when it was measured, in seconds since the epoch.
        labels: texts by name; a later one of a name replaces the earlier.
    """

    step: int
    metrics: Mapping[str, Metric]
    at_s: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def scalars(self) -> Iterator[tuple[str, float]]:
        """The numbers, each with a name: ``heads`` become ``head0``…, another list ``name/head0``…"""
        for name, value in self.metrics.items():
            if isinstance(value, list):
                above = "" if name == "heads" else f"{name}/"
                yield from ((f"{above}head{number}", float(one)) for number, one in enumerate(value))
            elif isinstance(value, int | float):
                yield name, float(value)


class Tracker(Protocol):
    """Somewhere to write to. Its methods may block and raise: ``Background`` calls them for whoever can't."""

    def write(self, entries: Sequence[Entry]) -> None:
        """Write entries, oldest first. The first call of all has none: it opens what is written to.

        Raises:
            Refused: they can't be written, now or later.
            Exception: anything else may heal, and the same entries may be given again.
        """
        ...

    def close(self, outcome: Outcome) -> None:
        """Say how the run ended. Raises as ``write`` does."""
        ...


class Refused(Exception):
    """A tracker's service does not take what it was sent, and sending it again changes nothing."""


class Nowhere:
    """Keeps nothing: on ranks other than the first, which measures the same and writes it down."""

    def write(self, entries: Sequence[Entry]) -> None:
        """As ``Tracker``."""

    def close(self, outcome: Outcome) -> None:
        """As ``Tracker``."""


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

    def write(self, entries: Sequence[Entry]) -> None:
        """Append a line for each; see ``log``."""
        for entry in entries:
            self.log(entry.step, entry.metrics)

    def close(self, outcome: Outcome = Outcome.FINISHED) -> None:
        """Close the file; how the run ended is not in it.

        Raises:
            DiskError: a line that was kept can't be written.
        """
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
