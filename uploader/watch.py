"""Committed steps on disk, and a wake-up when something changes.

The disk is the truth and is looked at again after every wake-up; a lost notification costs at most one
polling interval.
"""

from collections.abc import AsyncGenerator, Callable, Set
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from uploader import below, inotify, layout
from uploader.errors import CorruptError
from uploader.files import disk_errors
from uploader.layout import RunDirectory
from uploader.record import NodeRecord, decode
from uploader.retention import Committed


@dataclass(frozen=True, slots=True)
class LocalStep:
    """A step this node committed locally.

    Attributes:
        encoded: the node record's bytes as they lie on disk: what goes to the store.
        is_ours: whether a trainer of ours wrote it, which leaves pruning to the uploader.
    """

    is_ours: ClassVar[bool] = True
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

    def check(self) -> None:
        """Raise ``CorruptError`` if a file changed since it was recorded: of a committed step none does."""


class LocalSteps:
    """The committed steps of a run directory. A record is read once; afterwards only its file's times are.

    Args:
        run: whose they have to be: a step that somebody put there from another run is none of this one's.

    ``foreign.ForeignSteps`` also finds those of a trainer that writes no records; the methods that it needs
    for that have nothing to do here.

    Attributes:
        end_with_trainer: whether none comes any more once nobody holds the trainer's lock.
    """

    end_with_trainer: ClassVar[bool] = True

    def __init__(self, directory: RunDirectory, *, node: int = 0, run: str | None = None) -> None:
        self._directory, self._node, self._owned_by = directory, node, run
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
                if path.is_symlink():
                    problem = "its directory is a link: it is left alone"
                    raise CorruptError(problem, doing="reading", subject=str(record_path))
                key = (path.name, status.st_ino, status.st_mtime_ns)
                known[key] = self._known.get(key) or self._read(path)
            except (FileNotFoundError, NotADirectoryError):
                continue  # not ours, or being pruned
            except CorruptError as error:
                errors.append(error)
            else:
                steps.append(known[key])
        self._known = known
        return sorted(steps, key=lambda local: -local.step), errors

    def _read(self, path: Path) -> LocalStep:
        step = read_step(path, node=self._node)
        if self._owned_by not in (None, step.record.run):
            subject = str(path / layout.node_record(self._node))
            raise CorruptError(f"it is that of run {step.record.run!r}", doing="reading", subject=subject)
        return step

    async def take(self, choose: Callable[[list[Committed]], Set[int]]) -> bool:
        """Make a step of the newest checkpoint found that has no record yet; whether there was one.

        Args:
            choose: says which steps are wanted of those found.
        """
        return False

    def vanished(self) -> Set[int]:
        """Steps that went, other than by our hand, since this was asked last."""
        return frozenset()

    def incomplete(self) -> list[str]:
        """What was found and is not complete, with the reasons."""
        return []

    def settles_in_s(self) -> float | None:
        """After how many seconds another look may find more without any change; None if it won't."""
        return None


def read_step(path: Path, *, node: int = 0) -> LocalStep:
    """The step in a local directory.

    Raises:
        FileNotFoundError: the directory has no node record: it was never committed.
        CorruptError: the record can't be read, or it is another step's or node's.
    """
    record_path = path / layout.node_record(node)
    encoded = below.read_small(record_path)
    record = decode(NodeRecord, encoded, subject=str(record_path))
    if (record.step, record.node) != (layout.parse_step(path.name), node):
        problem = f"it is the record of {layout.step_name(record.step)}, node {record.node}"
        raise CorruptError(problem, doing="reading", subject=str(record_path))
    return LocalStep(path, record, encoded)


async def changes(path: Path, *, poll_s: float) -> AsyncGenerator[None, None]:
    """Yield at once, then when something in the directory changed, and at least every ``poll_s`` seconds.

    A directory that is deleted gives one notification and then none: hence the polling.

    Raises:
        FileNotFoundError: there is no such directory.
    """
    with inotify.watching(path) as there:
        while True:
            yield
            await there.wait(poll_s)
