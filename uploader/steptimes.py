"""A trainer's step times, as it publishes them to the uploader beside it: a ring in a mapped file.

Little-endian, 4,096 bytes: the magic ``WMTPSTEP``, the number of steps so far (u64), then 255 entries of two
doubles: when a step ended and how long it took, in seconds of the monotonic clock, which all processes of a
machine share. Writing one is two stores to memory: no call of the kernel, no thread. Nothing is synchronised:
an entry that is read while it is written is at worst one wrong number among many.
"""

import hashlib
import mmap
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from uploader.below import private
from uploader.layout import RunDirectory

MAGIC = b"WMTPSTEP"
HEADER = struct.Struct("<8sQ")
ENTRY = struct.Struct("<dd")
SIZE_BYTES = 4096
ENTRIES = (SIZE_BYTES - HEADER.size) // ENTRY.size


class StepTime(NamedTuple):
    """One optimizer step: from the end of the one before to its own."""

    ended_s: float
    took_s: float

    @property
    def began_s(self) -> float:
        return self.ended_s - self.took_s


SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
"""Where there is one, the ring is there: a page of a disk's file may have to wait for that disk's journal,
and the training thread with it. A sidecar in a container of its own does not see it: nothing is paced then.
"""


def path_of(directory: RunDirectory, rank: int, *, memory: Path = SHARED_MEMORY) -> Path:
    """The ring of a rank: in shared memory by the run directory's path, else in the run directory."""
    name = f"steps-rank{rank:05}.ring"
    if not os.access(memory, os.W_OK):
        return directory.path / name
    run = hashlib.sha256(os.fsencode(directory.path.resolve())).hexdigest()[:16]
    return memory / f"wmtp-{os.getuid()}-{run}-{name}"


class StepTimes:
    """The trainer's end: call ``ended`` once after each step.

    Raises (when made):
        OSError: the file can't be made.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock, self._count = path, clock, 0
        self._last_s: float | None = None
        temporary = path.with_name(f".{path.name}.tmp")
        with open(temporary, "w+b", opener=private) as file:
            file.write(HEADER.pack(MAGIC, 0).ljust(SIZE_BYTES, b"\0"))
            file.flush()
            self._ring = mmap.mmap(file.fileno(), SIZE_BYTES)
        os.replace(temporary, path)  # a reader keeps what it has; nothing half made is seen

    def ended(self) -> None:
        """Note that a step ended now. The first one is only where the second begins."""
        now_s, last_s = self._clock(), self._last_s
        self._last_s = now_s
        if last_s is not None:
            ENTRY.pack_into(
                self._ring, HEADER.size + self._count % ENTRIES * ENTRY.size, now_s, now_s - last_s
            )
            self._count += 1
            HEADER.pack_into(self._ring, 0, MAGIC, self._count)

    def close(self) -> None:
        """Remove the ring: there are no more steps."""
        self._ring.close()
        self._path.unlink(missing_ok=True)


def read_steps(path: Path) -> list[StepTime]:
    """The latest steps, oldest first; none where no trainer of this format has written."""
    try:
        with open(path, "rb", opener=private) as file:
            data = file.read(SIZE_BYTES + 1)
    except OSError:  # no trainer publishes them, or another user does: it is not paced
        return []
    if len(data) != SIZE_BYTES or not data.startswith(MAGIC):
        return []
    _, count = HEADER.unpack_from(data)
    steps = [StepTime(*pair) for pair in ENTRY.iter_unpack(data[HEADER.size :])]
    return sorted(step for step in steps[:count] if step.took_s > 0)
