"""Prune and sweep one run: retention carried out after each commit, debris looked for once in a generation.

No commit waits for it. Beside an upload it is cut off when that ends; alone it stops after some seconds for a
look at the disk; a grace is no wait but a time to come back at. What a store refuses to delete is told, left
marked, and tried again after ``RETRY_S``: it holds up neither a commit, nor the disk, nor another step.
"""

import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial

import anyio

from uploader import discard, manifest, prune
from uploader.backlog import Backlog
from uploader.errors import OwnershipError, WmtpError
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.prune import Ages
from uploader.run import RunFile
from uploader.status import StatusFile
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side, task_group
from uploader.unfinished import give_up_unwanted
from uploader.watch import LocalStep

log = logging.getLogger("uploader")

SLICE_S, SLICE_OF_ENTRY_S = 5.0, 0.0005
"""How long pruning goes on before the disk is looked at again, and how much longer for each step listed: a
manifest of a hundred thousand steps takes seconds to be written."""
RETRY_S = 600.0
"""After how long the store is asked again what it refused."""
AT_ONCE = 8
"""Steps that are removed side by side."""
DROPS = 5
"""How often in a slice the entries of those that went are dropped: what a cut may make us look at twice."""
PRUNING, TRASH, DEBRIS = "pruning", "trash", "debris"
"""What ``undeletable`` calls that which has no step's name."""


def slice_s(index: Manifest) -> float:
    """For how many seconds pruning goes on in one go. Pure."""
    return SLICE_S + SLICE_OF_ENTRY_S * len(index.names())


class Upkeep:
    """Keeps the disk and the store of one run as retention says. Node 0 prunes the store for all nodes."""

    def __init__(
        self,
        directory: RunDirectory,
        store: ObjectStore,
        file: ManifestFile,
        keys: RunKeys,
        journal: Journal,
        status: StatusFile,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._directory, self._store, self._manifest, self._keys = directory, store, file, keys
        self._journal, self._status, self._now, self._monotonic = journal, status, now, monotonic
        self._ages = Ages(store)
        self._again_s = math.inf
        self._refused: dict[str, tuple[WmtpError, float]] = {}
        self._swept: tuple[int, bool] | None = None

    @property
    def error(self) -> WmtpError | None:
        """What the store refused to delete; None where it refused nothing."""
        return next((error for error, _ in self._refused.values()), None)

    @property
    def is_due(self) -> bool:
        """Whether pruning goes on now by itself: it was cut off, or a grace is over."""
        return self._monotonic() >= self._again_s

    @property
    def comes_back(self) -> bool:
        """Whether something is left that will be pruned in time."""
        return self._again_s < math.inf

    async def discard(self, index: Manifest, backlog: Backlog) -> None:
        """Take from the disk what may go; it is deleted later."""
        steps = backlog.discard
        if self._keys.in_place:  # what is in the manifest goes by way of the manifest
            steps = [one for one in steps if one.name not in index.names()]
        gone = await discard.discard_local(self._directory, steps)
        if gone:
            self._status.pruned(gone, where="local")

    @asynccontextmanager
    async def beside(self, run: RunFile, index: Manifest, local: list[LocalStep]) -> AsyncIterator[None]:
        """Prune while the block runs, and not a moment longer.

        What is begun may have had its effect; the next time goes on from there.
        """
        async with task_group() as group:
            group.start_soon(self._prune, run, index, local)
            yield
            group.cancel_scope.cancel()

    async def prune(self, run: RunFile, index: Manifest, local: list[LocalStep]) -> Manifest:
        """Prune the store and empty the trash, as far as that goes in a slice of time; the manifest then.

        Raises:
            OwnershipError: a newer generation owns the run.
        """
        with anyio.move_on_after(slice_s(index)):
            return await self._prune(run, index, local)
        return index

    async def _prune(self, run: RunFile, index: Manifest, local: list[LocalStep]) -> Manifest:
        self._again_s = self._monotonic()  # where this is cut off
        again_s = math.inf
        if run.node == 0 and self._may_try(PRUNING):
            async with self._told(PRUNING):
                index, again_s = await self._prune_store(run, index, local)
        async with self._told(TRASH):
            await discard.empty_trash(self._directory)
        self._again_s = again_s
        return index

    async def _prune_store(
        self, run: RunFile, index: Manifest, local: list[LocalStep]
    ) -> tuple[Manifest, float]:
        """The manifest afterwards, and when to come back for what has its grace."""
        await self._ages.look(index, run.retention, run.upload.keep_superseded_s, self._now())
        names = prune.superfluous(index, run.retention, self._ages)
        if not names and not index.deleting:
            return index, math.inf
        grace_s = run.upload.delete_grace_s
        index = await prune.mark(self._store, self._manifest, names, run, grace_s, self._now())
        waits_s = await prune.due_in_s(self._store, index, grace_s, self._now())
        due = [
            entry
            for entry in index.deleting.values()
            if not waits_s[entry.name] and self._may_try(entry.name)
        ]
        index = await self._remove(run, index, local, due)
        later_s = [wait_s for wait_s in waits_s.values() if wait_s]
        return index, self._monotonic() + min(later_s, default=math.inf)

    async def _remove(
        self, run: RunFile, index: Manifest, local: list[LocalStep], due: Sequence[Entry]
    ) -> Manifest:
        """Remove steps, some side by side, and drop the entries of those that went."""
        gone, since_s = list[Entry](), self._monotonic()
        for start in range(0, len(due), AT_ONCE):
            batch, is_last = due[start : start + AT_ONCE], start + AT_ONCE >= len(due)
            await side_by_side(partial(self._remove_one, run, local, entry, gone) for entry in batch)
            if gone and (is_last or self._monotonic() - since_s >= slice_s(index) / DROPS):
                index = await self._drop(run, gone)
                gone, since_s = [], self._monotonic()
        return index

    async def _drop(self, run: RunFile, gone: list[Entry]) -> Manifest:
        names = [entry.name for entry in gone]
        index = await self._manifest.update(lambda one: manifest.dropped(one, names, run))
        self._status.pruned([entry.step for entry in gone], where="remote")
        return index

    async def _remove_one(
        self, run: RunFile, local: list[LocalStep], entry: Entry, gone: list[Entry]
    ) -> None:
        """Remove a step's objects. It is added to ``gone``, unless a loader holds it or the store refuses."""
        async with self._told(entry.name):
            if self._keys.in_place:
                mine = [one for one in local if one.name == entry.name]
                if len(await discard.discard_local(self._directory, mine)) < len(mine):
                    return
            else:
                purge = run.upload.purge_versions
                await prune.remove_objects(self._store, self._keys, entry, purge=purge)
            gone.append(entry)

    @asynccontextmanager
    async def _told(self, what: str) -> AsyncIterator[None]:
        """Tell of what is refused in the block, and go on behind it."""
        try:
            yield
        except OwnershipError:
            raise
        except WmtpError as error:
            log.error("%s: not deleted, tried again in %.0f s: %s", what, RETRY_S, error)
            self._refused[what] = error, self._monotonic() + RETRY_S
        else:
            if self._refused.pop(what, None) is None:
                return
        self._status.show(undeletable={name: str(error) for name, (error, _) in self._refused.items()})

    def _may_try(self, what: str) -> bool:
        return what not in self._refused or self._monotonic() >= self._refused[what][1]

    async def finish(
        self, run: RunFile, index: Manifest, local: list[LocalStep], wanted: Collection[str]
    ) -> None:
        """Give up uploads that nobody wants any more, and sweep what former generations left.

        Args:
            wanted: the steps, as ``step_N@gG``, that wait for their upload or are being written.
        """
        if self._keys.in_place or not self._may_try(DEBRIS):
            return
        async with self._told(DEBRIS):
            await give_up_unwanted(self._store, self._journal, wanted)
            # Once at its start, and once what it began with is older than ``latest``, and so debris, too.
            reached = run.generation, any(one.generation == run.generation for one in index.live.values())
            if run.node == 0 and self._swept != reached:
                stale_s = run.upload.stale_upload_s
                pending = [one for one in local if one.name in wanted]
                swept = await prune.sweep(self._store, index, run, pending, self._journal, stale_s)
                self._swept = reached
                if swept:
                    log.info("swept %d objects that no step names", swept)
