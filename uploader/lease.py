"""Whether the owner of a run on another machine lives, told without comparing two clocks.

Its heartbeat is watched for ``lease_s`` of one's own monotonic clock. Released or unchanged: it is gone.
Changed: it lives. This keeps two living trainers apart, and no more than that: what a former owner may still
do is decided by the manifest's compare-and-swap, whatever was watched.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial

import anyio

from uploader import heartbeat, layout
from uploader.errors import OwnershipError
from uploader.generation import Owner
from uploader.heartbeat import Heartbeat
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side

LOOKS = 30
"""How often an owner is looked at in the time of a lease."""
BEATS = 2
"""An owner is given the time of so many of its own beats, where that is more than the lease."""


class Sign(Enum):
    """What is known of an owner."""

    LIVES = "it was seen to live"
    GONE = "it has ended, or gave no sign of life for long enough"
    UNKNOWN = "it was not watched for long enough"


def sign(first: Heartbeat | None, now: Heartbeat | None, watched_s: float, lease_s: float) -> Sign:
    """What a heartbeat and the one before ``watched_s`` seconds, by one's own clock, tell. Pure."""
    if now is not None and now.released:
        return Sign.GONE
    if now is not None and now != first:
        return Sign.LIVES
    return Sign.GONE if watched_s >= patience(now, lease_s) else Sign.UNKNOWN


def patience(now: Heartbeat | None, lease_s: float) -> float:
    """For how many seconds an owner is watched that gives no sign of life. Pure."""
    return lease_s if now is None else max(lease_s, BEATS * now.every_s)


@dataclass(frozen=True)
class Lease:
    """How a start treats owners of the run on other machines.

    Attributes:
        lease_s: for how long one is watched that gives no sign of life.
        forced: take the run, whoever lives.
        sleep, clock: seconds, monotonic; the event loop's own, or a test's.
    """

    lease_s: float = 60.0
    forced: bool = False
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep
    clock: Callable[[], float] = anyio.current_time

    async def wait_for(
        self,
        store: ObjectStore,
        run: str,
        owners: Iterable[tuple[int, Owner | None]],
        say: Callable[[str], None],
    ) -> bool:
        """Watch the owners of generations until all are gone; whether that took any time.

        Raises:
            OwnershipError: one of them lives; the message says who it is and what its newest step is.
        """
        if self.forced:
            return False
        waited: list[bool] = []

        async def watch(number: int, owner: Owner | None) -> None:
            waited.append(await self._watch(store, run, number, owner, say))

        await side_by_side(partial(watch, *one) for one in owners)
        return any(waited)

    async def _watch(
        self, store: ObjectStore, run: str, number: int, owner: Owner | None, say: Callable[[str], None]
    ) -> bool:
        """Each time is taken so that the watch seems shorter than it was."""
        now = first = await heartbeat.read(store, number)
        began_s = self.clock()
        found, looks, watched_s = sign(first, now, 0.0, self.lease_s), 0, 0.0
        while found is Sign.UNKNOWN:
            if not looks:
                who = owner or f"the process that took generation {number}"
                watch_s = patience(now, self.lease_s)
                say(f"run {run} is owned by {who}, watching its heartbeat for {watch_s:.0f} s")
            await self.sleep(self.lease_s / LOOKS)
            watched_s = self.clock() - began_s
            now, looks = await heartbeat.read(store, number), looks + 1
            found = sign(first, now, watched_s, self.lease_s)
        if found is Sign.LIVES and now is not None:
            raise _lives(run, now)
        return looks > 0


def _lives(run: str, beat: Heartbeat) -> OwnershipError:
    step = "no step yet" if beat.newest_step is None else layout.step_name(beat.newest_step)
    since = beat.owner.told_since if beat.owner is not None else ""
    return OwnershipError(
        f"generation {beat.generation} of {beat.owner} owns it{since} and lives (newest on its disk: {step})",
        doing="starting on",
        subject=f"run {run}",
        hint="stop that trainer, choose another --run-name, or take the run from it with --take-over",
    )
