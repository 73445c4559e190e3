"""This process's hold on a run directory: the trainer's lock, and the takeover of the run in the store."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio

from uploader import files, layout
from uploader.errors import OwnershipError, WmtpError
from uploader.layout import RunDirectory
from uploader.lease import Lease
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.store import open_store
from uploader.store.retrying import RetryingStore
from wmtp.checkpoint.fetch import DOWNLOAD, Load, Say
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.settings.resume import Resume

LOCK_ATTEMPTS = 40
LOCK_WAIT_S = 0.05
_LEFT = re.compile(r"\.(?:run\.json|\.identity)\.[0-9]+\.tmp")


@contextmanager
def trainer_lock(directory: RunDirectory) -> Iterator[None]:
    """Hold a run directory as its only trainer, and clear what a dead one was still writing.

    The lock is tried for a while: the uploader takes it for an instant to see whether a trainer lives.

    Raises:
        OwnershipError: a living trainer holds it.
        DiskError: the directory can't be made or written.
    """
    with files.disk_errors("opening", directory.path):
        files.make_directory(directory.path)
        lock = _take(directory)
    try:
        with files.disk_errors("clearing", directory.path):
            _clear(directory.path)
        yield
    finally:
        os.close(lock)


def _clear(path: Path) -> None:
    for left in path.iterdir():
        if layout.parse_temporary(left.name) is not None or left.name in (DOWNLOAD, f"{DOWNLOAD}.tmp"):
            files.remove_tree(left)
        elif _LEFT.fullmatch(left.name):
            left.unlink()


def _take(directory: RunDirectory) -> int:
    for _ in range(LOCK_ATTEMPTS):
        lock = files.lock(directory.trainer_lock)
        if lock is not None:
            return lock
        time.sleep(LOCK_WAIT_S)
    raise OwnershipError(
        "another trainer is running on it",
        doing="starting on",
        subject=str(directory.path),
        hint="wait for it to end, stop it, or choose another --run-name",
    )


def take_over(
    directory: RunDirectory,
    run: RunFile,
    resume: Resume | None,
    load: Load,
    say: Say,
    *,
    fresh: bool,
    store_timeout_s: float,
    lease: Lease | None = None,
) -> Started:
    """Resume or start from scratch, own the run, and write ``run.json``.

    Args:
        load: puts a verified checkpoint into the training state.
        store_timeout_s: how long the store may be unreachable before the start gives up.
        lease: how owners on other machines are treated.

    Raises:
        WmtpError: see ``Takeover.start``; or the store can't be reached or refuses.
    """

    def retrying(error: WmtpError, attempt: int, wait_s: float) -> None:
        if attempt == 1:
            say(f"{error}; trying for {store_timeout_s:.0f} s")

    async def start() -> Started:
        async with open_store(run.location, run.storage) as opened:
            store = RetryingStore(opened, RetryPolicy(deadline_s=store_timeout_s), retrying)
            takeover = Takeover(directory, run, store, load, say, lease=lease)
            return await takeover.start(resume, fresh=fresh)

    return anyio.run(start)
