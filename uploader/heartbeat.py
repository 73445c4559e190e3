"""The owner's sign of life: ``generations/NNNN.heartbeat.json``, rewritten with a higher count at each beat.

No clock is in it. Whoever wants the run from elsewhere watches whether it changes (``lease``). An owner that
has lost the run learns so at its next beat, and writes nothing.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated

import anyio
from pydantic import Field

from uploader import layout, manifest
from uploader.bounds import Count, Generation
from uploader.errors import CorruptError, ObjectMissing, OwnershipError, WmtpError
from uploader.generation import Claim, Owner
from uploader.manifest_file import ManifestFile
from uploader.record import decode
from uploader.seal import Sealed
from uploader.settings import SCHEMA_VERSION
from uploader.store.base import ObjectStore

log = logging.getLogger("uploader")

MAX_COUNT = 2**53
RELEASE_S = 10.0
"""How long an owner that ends tries to say so."""


class Heartbeat(Sealed):
    """``generations/NNNN.heartbeat.json``.

    Attributes:
        owner: the trainer, whoever writes this for it.
        count: of beats in this generation; another one with each.
        every_s: how long the owner may take for the next one.
        newest_step: on the owner's disk; None while there is none.
        released: the owner has ended, and left nothing undone.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    generation: Generation
    owner: Owner | None
    count: Count
    every_s: Annotated[float, Field(gt=0, le=3600)]
    newest_step: Count | None = None
    released: bool = False


async def read(store: ObjectStore, number: int) -> Heartbeat | None:
    """The heartbeat of a generation; None where there is none. One that can't be read counts as none:
    a living owner writes the next one.
    """
    key = layout.heartbeat_key(number)
    try:
        data, _ = await store.get(key)
        return decode(Heartbeat, data, subject=f"{store.uri}/{key}")
    except ObjectMissing:
        return None
    except CorruptError as error:
        log.warning("%s; it counts as none", error)
        return None


class Heart:
    """The owner's side.

    Args:
        claim: the generation to beat for, asked anew before each beat; generation 0 has nobody to tell.
        newest_step: on this disk.
    """

    def __init__(
        self,
        store: ObjectStore,
        file: ManifestFile,
        claim: Callable[[], Claim],
        every_s: float,
        *,
        newest_step: Callable[[], int | None] = lambda: None,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._store, self._manifest, self._claim = store, file, claim
        self._every_s, self._newest_step, self._sleep = every_s, newest_step, sleep
        self._last: Heartbeat | None = None
        self._ended: int | None = None

    async def beat(self) -> None:
        """Say once that the owner lives, or that it has ended.

        Raises:
            OwnershipError: a newer generation owns the run; nothing was written.
            StoreError: the store refused.
        """
        if self._claim().generation == 0:
            return
        index = await self._manifest.read()
        claim = self._claim()  # after the manifest: a next start here tells us before it changes that
        if index is not None:
            manifest.check_owner(index, claim)
        if self._last is None or self._last.generation != claim.generation:
            self._last = await read(self._store, claim.generation)
        released = claim.generation == self._ended
        if released and self._last is not None and self._last.released:
            return
        beat = Heartbeat(
            generation=claim.generation,
            owner=claim.owner,
            count=0 if self._last is None else (self._last.count + 1) % MAX_COUNT,
            every_s=self._every_s,
            newest_step=self._newest_step(),
            released=released,
        )
        await self._store.put(layout.heartbeat_key(claim.generation), beat.encode())
        self._last = beat

    async def release(self, number: int) -> None:
        """Say that the owner of a generation has ended, if that can be said: who comes next need not wait.

        Where a next start has taken our place meanwhile, it is not released.
        """
        self._ended = number
        try:
            with anyio.move_on_after(RELEASE_S) as scope:
                await self.beat()
            if scope.cancelled_caught:
                log.warning("the run was not released: the store gave no answer within %.0f s", RELEASE_S)
        except WmtpError as error:
            log.warning("the run was not released: %s", error)

    async def begin(self) -> None:
        """Beat, unless the store refuses: it is asked again at the next beat.

        Raises:
            OwnershipError: a newer generation owns the run.
        """
        try:
            await self.beat()
        except OwnershipError:
            raise
        except WmtpError as error:
            log.warning("no heartbeat: %s", error)

    async def go_on(self) -> None:
        """Beat until cancelled.

        Raises:
            OwnershipError: a newer generation owns the run.
        """
        while True:
            await self._sleep(self._every_s)
            await self.begin()


@asynccontextmanager
async def beating(heart: Heart | None) -> AsyncIterator[None]:
    """Beat while the context lasts. A run that was lost meanwhile ends it.

    Raises:
        OwnershipError: a newer generation owns the run.
    """
    if heart is None:
        yield
        return
    await heart.begin()
    try:
        async with anyio.create_task_group() as group:
            group.start_soon(heart.go_on)
            yield
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:
        raise _cause(errors) from None


def _cause(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Of what went wrong in the context and beside it the loss of the run, else whatever there is."""
    lost, _ = errors.split(OwnershipError)
    first: BaseException = lost or errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first
