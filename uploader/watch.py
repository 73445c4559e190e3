"""Committed steps on disk, and a wake-up when something changes.

The disk is the truth and is looked at again after every wake-up; a lost notification costs at most one
polling interval.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import anyio
from watchfiles import awatch

from uploader import layout
from uploader.errors import CorruptError
from uploader.files import disk_errors
from uploader.layout import RunDirectory
from uploader.record import NodeRecord, decode


@dataclass(frozen=True, slots=True)
class LocalStep:
    """A step this node committed locally.

    Attributes:
        encoded: the node record's bytes as they lie on disk: what goes to the store.
    """

    path: Path
    record: NodeRecord
    encoded: bytes

    @property
    def name(self) -> str:
        """``step_N@gG``."""
        return layout.step_at(self.step, self.generation)

    @property
    def step(self) -> int:
        return self.record.step

    @property
    def generation(self) -> int:
        return self.record.generation


class LocalSteps:
    """The committed steps of a run directory. A record is read once; afterwards only its file's times are."""

    def __init__(self, directory: RunDirectory, *, node: int = 0) -> None:
        self._directory, self._node = directory, node
        self._known: dict[tuple[str, int, int], LocalStep] = {}

    def scan(self) -> tuple[list[LocalStep], list[CorruptError]]:
        """Every committed step, newest first, and an error for each record that can't be read.

        Raises:
            DiskError: the directory can't be read.
        """
        with disk_errors("looking at", self._directory.path):
            return self._scan()

    def _scan(self) -> tuple[list[LocalStep], list[CorruptError]]:
        steps, errors = [], []
        known = {}
        for path in self._directory.path.iterdir() if self._directory.path.exists() else ():
            if layout.parse_step(path.name) is None:
                continue
            record_path = path / layout.node_record(self._node)
            try:
                status = record_path.stat()
                key = (path.name, status.st_ino, status.st_mtime_ns)
                known[key] = self._known.get(key) or read_step(path, node=self._node)
            except (FileNotFoundError, NotADirectoryError):
                continue  # not ours, or being pruned
            except CorruptError as error:
                errors.append(error)
            else:
                steps.append(known[key])
        self._known = known
        return sorted(steps, key=lambda local: -local.step), errors


def read_step(path: Path, *, node: int = 0) -> LocalStep:
    """The step in a local directory.

    Raises:
        FileNotFoundError: the directory has no node record: it was never committed.
        CorruptError: the record can't be read, or it is another step's.
    """
    record_path = path / layout.node_record(node)
    encoded = record_path.read_bytes()
    record = decode(NodeRecord, encoded, subject=str(record_path))
    if record.step != layout.parse_step(path.name):
        problem = f"it is the record of {layout.step_name(record.step)}"
        raise CorruptError(problem, doing="reading", subject=str(record_path))
    return LocalStep(path, record, encoded)


async def changes(path: Path, *, stop: anyio.Event, poll_s: float) -> AsyncGenerator[None, None]:
    """Yield at once, then when something in the directory changed, and at least every ``poll_s`` seconds.

    A directory that is deleted gives one notification and then none: hence the polling.
    """
    yield
    events = awatch(
        path,
        recursive=False,
        step=10,
        debounce=50,
        stop_event=stop,
        yield_on_timeout=True,
        rust_timeout=int(poll_s * 1000),
        watch_filter=None,
        ignore_permission_denied=True,
    )
    async for _ in events:
        yield
