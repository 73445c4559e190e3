"""The life of a run as its uploader tells it to other machines: for as long as there is something to upload.

So nobody elsewhere goes on before the last steps of a trainer that died are durable, and one that trains is
alive however long it saves nothing. Where checkpoints stay in the run directory its lock tells all, and of
several nodes the first one tells: nothing here does anything then.
"""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from uploader.generation import Claim
from uploader.heartbeat import Heart, beating
from uploader.layout import RunDirectory
from uploader.manifest_file import ManifestFile
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.store.base import ObjectStore
from uploader.store.retrying import RetryingStore


class Life:
    """Beats for the generation of a run directory that is the newest now.

    Args:
        store: not repeated yet: a beat that fails is no trouble of the uploads, and the next one is due soon.
        is_ours: whether the directory is still the one that is served.
        newest_step: on this disk.
    """

    def __init__(
        self,
        directory: RunDirectory,
        run: RunFile,
        store: ObjectStore,
        retry: RetryPolicy,
        *,
        is_ours: Callable[[], bool],
        newest_step: Callable[[], int | None],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._directory, self._run, self._is_ours = directory, run, is_ours
        self._over: int | None = None
        self._heart: Heart | None = None
        keys, every_s = run.keys(directory.path), run.upload.heartbeat_s
        if not keys.in_place and run.node == 0:
            store = RetryingStore(store, replace(retry, deadline_s=every_s))
            file = ManifestFile(store, run.run, keys)
            self._heart = Heart(store, file, self._claim, every_s, newest_step=newest_step, sleep=sleep)

    def told(self) -> AbstractAsyncContextManager[None]:
        """A context while which the run is told to live. A run that was lost meanwhile ends it.

        Raises:
            OwnershipError: a newer generation owns the run elsewhere.
        """
        return beating(self._heart)

    async def end(self, generation: int) -> None:
        """All that a generation left is durable and its trainer is gone: others may take over at once.

        Pruning may go on; that is nobody's life.
        """
        self._over = generation
        if self._heart is not None:
            await self._heart.release(generation)

    def is_over(self, generation: int) -> bool:
        """Whether this generation has ended, and so may be followed by anybody."""
        return self._over == generation

    def _claim(self) -> Claim:
        """A next start on this directory counts before it is served, unless its checkpoints go elsewhere."""
        if not self._is_ours():
            return Claim()
        found = RunFile.read(self._directory) or self._run
        goes_here = (found.destination, found.storage) == (self._run.destination, self._run.storage)
        return found if goes_here else Claim()
