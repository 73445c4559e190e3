"""Prune and sweep one run: retention carried out after each commit, debris looked for once in a generation.

A store that refuses to delete must hold up neither a commit nor the disk, so that error is kept until
everything else is done.
"""

import logging
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial

from uploader import manifest, prune
from uploader.backlog import Backlog
from uploader.errors import OwnershipError, WmtpError
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.run import RunFile
from uploader.status import StatusFile
from uploader.store.base import ObjectStore
from uploader.unfinished import give_up_unwanted
from uploader.watch import LocalStep

log = logging.getLogger("uploader")


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
    ) -> None:
        self._directory, self._store, self._manifest, self._keys = directory, store, file, keys
        self._journal, self._status, self._now = journal, status, now
        self._error: WmtpError | None = None
        self._swept_generation: int | None = None

    async def prune(
        self, run: RunFile, index: Manifest, local: list[LocalStep], backlog: Backlog
    ) -> Manifest:
        """The disk, then the store; returns the manifest as it is then.

        Raises:
            OwnershipError: a newer generation owns the run.
        """
        discard = backlog.discard
        if self._keys.in_place:  # what is in the manifest goes by way of the manifest
            discard = [one for one in discard if one.name not in index.names()]
        gone = await prune.discard_local(self._directory, discard)
        if gone:
            self._status.pruned(gone, where="local")
        self._error = None
        if run.node != 0 or (run.upload.delete_grace_s and backlog.upload):
            return index  # the grace must not delay a commit
        try:
            return await self._prune_store(run, index, local)
        except OwnershipError:
            raise
        except WmtpError as error:
            self._error = error
            return index

    async def _prune_store(self, run: RunFile, index: Manifest, local: list[LocalStep]) -> Manifest:
        now, long_ago = await prune.store_times(
            self._store, index, run.retention, run.upload.keep_superseded_s, self._now()
        )
        names = prune.superfluous(index, run.retention, now=now, long_ago=long_ago)
        if not names and not index.deleting:
            return index
        remove: prune.Remove = partial(prune.remove_objects, self._store, self._keys)
        if self._keys.in_place:
            remove = partial(prune.remove_directory, self._directory, local)
        gone = await prune.prune_store(self._manifest, names, run, remove, run.upload.delete_grace_s)
        if gone:
            self._status.pruned([entry.step for entry in gone], where="remote")
        return await self._manifest.update(partial(manifest.adopted, claim=run))

    async def finish(
        self, run: RunFile, index: Manifest, local: list[LocalStep], wanted: Collection[str]
    ) -> None:
        """Give up uploads that nobody wants any more, sweep what former generations left, and tell what
        could not be pruned.

        Args:
            wanted: the steps, as ``step_N@gG``, that wait for their upload or are being written.

        Raises:
            WmtpError: the store refused to delete.
        """
        if not self._keys.in_place:
            await give_up_unwanted(self._store, self._journal, wanted)
        if run.node == 0 and not self._keys.in_place and self._swept_generation != run.generation:
            stale_s = run.upload.stale_upload_s
            swept = await prune.sweep(self._store, index, run, local, self._journal, stale_s)
            self._swept_generation = run.generation
            if swept:
                log.info("swept %d objects that no step names", swept)
        if self._error is not None:
            raise self._error
