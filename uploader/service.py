"""The uploader of one run, as a table of contents: look, upload and commit, prune, sweep; then wait.

There is no second path for recovery. Each round looks at the disk and at the manifest and does what is
missing; the first round after a crash is like any other. Events only wake it and say that a run has ended.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence, Set
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import anyio

from uploader import early, layout, manifest
from uploader.backlog import Backlog, sort_out
from uploader.commit import commit, is_committed
from uploader.early import HeadStart
from uploader.errors import (
    BucketMissing,
    CorruptError,
    NotDurable,
    OwnershipError,
    StoreError,
    TooLarge,
    WmtpError,
)
from uploader.events import Event, RunFinished, ShardSaved
from uploader.files import is_locked
from uploader.flow import Flow
from uploader.foreign import disagreements, worth_reading
from uploader.journal import Journal
from uploader.layout import RunDirectory
from uploader.ledger import Ledger
from uploader.life import Life
from uploader.manifest import Entry, Manifest
from uploader.manifest_file import ManifestFile
from uploader.queue import EventQueue
from uploader.retention import Committed
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.status import StatusFile
from uploader.store.base import ObjectStore
from uploader.store.retrying import RetryingStore
from uploader.upkeep import Upkeep
from uploader.used import UsedKeys
from uploader.watch import LocalStep, LocalSteps, changes

log = logging.getLogger("uploader")

POLL_S = 5.0
"""How long a lost notification can go unnoticed."""
EARLY_S = 0.01
"""A timer may end a little before its time."""


@dataclass(frozen=True)
class Clocks:
    """The moments and waits of a service; injected by tests."""

    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    monotonic: Callable[[], float] = time.monotonic
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep


class RunService:
    """Serves one run directory and one destination until the run is over.

    Args:
        run: the run as ``run.json`` says, or as the command line does where there is none.
        store: the run's location; requests are repeated here.
        status: is told of everything.
        steps: finds the steps on disk; by default those of a trainer of ours.
        is_ours: whether the directory is still the one that this process locked.
        flow: the bounds on what is in flight, where other runs share them.
    """

    def __init__(
        self,
        directory: RunDirectory,
        run: RunFile,
        store: ObjectStore,
        status: StatusFile,
        clocks: Clocks,
        is_ours: Callable[[], bool] = lambda: True,
        steps: LocalSteps | None = None,
        flow: Flow | None = None,
    ) -> None:
        self._is_ours = is_ours
        self._directory, self._run, self._status, self._clocks = directory, run, status, clocks
        self._keys = run.keys(directory.path)
        self._flow = flow or Flow(run.upload, clocks.monotonic)
        retry = replace(
            clocks.retry,
            cap_s=run.upload.max_wait_s,
            request_timeout_s=run.upload.request_timeout_s,
            slowest_bytes_per_s=self._flow.slowest_bytes_per_s,
        )
        self._store = RetryingStore(store, retry, self._retrying, self._flow.sent)
        self._manifest = ManifestFile(self._store, run.run, self._keys)
        self._steps = steps or LocalSteps(directory, node=run.node, run=run.run if run.generation else None)
        self._queues = [EventQueue(directory.events(rank)) for rank in run.local_ranks]
        self._journal = Journal(directory)
        self._upkeep = Upkeep(
            directory,
            self._store,
            self._manifest,
            self._keys,
            self._journal,
            status,
            clocks.now,
            clocks.monotonic,
        )
        self._head_start = HeadStart(directory, self._store, self._keys, self._flow, self._journal)
        self._life = Life(
            directory,
            run,
            store,
            retry,
            is_ours=is_ours,
            newest_step=lambda: status.status.newest_local_step,
            sleep=clocks.sleep,
        )
        self._index = Manifest(run=run.run)
        self._used = UsedKeys(directory, run.destination)
        self._ledger = Ledger(status)
        self._error: WmtpError | None = None
        self._settled: object = None
        self._took = False
        self._trainer_gone_s: float | None = None

    @property
    def run(self) -> RunFile:
        """The run as it is served now."""
        return self._run

    async def serve(self) -> None:
        """Work until the run is finished, or its trainer is gone, and nothing is left to do.

        Returns early where ``run.json`` wants another service: the caller makes that one. And where the
        directory was deleted: one that was made anew has an uploader of its own.

        Raises:
            OwnershipError: a newer generation owns the run elsewhere.
            WmtpError: the run is over and some of it could not be made durable.
        """
        try:
            async with self._life.told():
                await self._serve()
        except OwnershipError:
            if not self._life.is_over(self._run.generation):
                raise
            # Whoever goes on with a run that is over prunes what is left, too.

    async def _serve(self) -> None:
        async with aclosing(changes(self._directory.path, poll_s=POLL_S)) as wakes:
            async for _ in wakes:
                if not (self._is_ours() and self._adopt_run_file()):
                    return
                events = await self.round()
                if self._is_over(events):
                    lingers = self._lingers()
                    if lingers:
                        self._status.show(state="drained", upload=None)
                    else:
                        self._end(events)
                    await self._life.end(self._run.generation)
                    if not lingers:
                        return

    async def once(self) -> None:
        """Do what there is to do now; foreign checkpoints may need some time to show that they are complete.

        Raises:
            NotDurable: all that is complete is durable, but something is not complete; the message names it.
            WmtpError: some of it could not be made durable.
        """
        waits = 2  # until what its format proves is still, and until the rest is quiet
        while self._adopt_run_file():
            events = await self.round()
            wait_s = self._steps.settles_in_s() if waits else None
            if wait_s is not None and not self._took:
                waits -= 1
                await self._clocks.retry.sleep(wait_s + EARLY_S)
            elif not (self._took or self._upkeep.is_due or self._is_followed()):
                self._end(events, self._steps.incomplete())
                if not is_locked(self._directory.trainer_lock):
                    await self._life.end(self._run.generation)
                return

    async def round(self) -> list[Event]:
        """Look at everything, do what is missing, and return the events it looked at that are still pending.

        An error that cannot heal is shown and ends the round; the next change on disk tries again.

        Raises:
            OwnershipError: a newer generation owns the run elsewhere.
        """
        # Events before the disk: the step of an event that was received is on disk by then. One that
        # comes later, a run's end above all, waits for the next round, which will see its step.
        events = self._receive()
        self._took = False
        local = await self._look()
        try:
            if self._signature(local) != self._settled or self._upkeep.is_due:
                local = await self._work(local)
                self._show_outcome()
            await self._get_ahead(local)
        except OwnershipError:
            if not self._is_followed():
                raise
            return []
        except WmtpError as error:
            self._error = error
            self._status.failed(error)
        self._settled = self._signature(local)
        self._acknowledge(events, local)
        pending = self._receive()
        return [event for event in events if event in pending]

    def _show_outcome(self) -> None:
        """What the store refused is an error; what it refused to delete is told already."""
        refused = next(iter(self._ledger.refused.values()), None)
        self._error = refused or self._upkeep.error
        if refused is not None:
            self._status.failed(refused)
        elif self._error is not None:
            self._status.show(state="failed", upload=None, error=str(self._error))
        else:
            self._status.show(state="waiting", upload=None, error=None)

    def _retrying(self, error: WmtpError, attempt: int, wait_s: float) -> None:
        self._flow.failed(error)
        self._status.retrying(error, attempt, wait_s)

    def _progressed(self, size_bytes: int) -> None:
        self._status.progressed(size_bytes, self._flow.state())

    def _receive(self) -> list[Event]:
        return [event for queue in self._queues for event in queue.receive()]

    def _is_followed(self) -> bool:
        """Whether the newer owner is this directory's next trainer, which the next round will serve."""
        found = RunFile.read(self._directory)
        return found is not None and found.generation > self._run.generation

    def _signature(self, local: list[LocalStep]) -> object:
        """What a round depends on: while it is unchanged, the store is not asked anything."""
        return self._run, local

    async def _work(self, local: list[LocalStep]) -> list[LocalStep]:
        """Upload the newest step that waits, prune beside it, look again, until none waits but those just
        refused; then prune what is left.

        Returns:
            The steps as last seen on disk, of which none waits: whatever comes later is for another round.
        """
        self._index = await self._read_manifest()
        self._ledger.tried.clear()
        self._note_used(local)
        while True:
            if waiting := self._waiting(local):
                async with self._upkeep.beside(self._run, self._index, local):
                    await self._make_durable(waiting[0])
                local = self._scan()
                self._note_used(local)  # before it could be pruned
            backlog = self._sort_out(local)
            self._ledger.skip(one.record for one in backlog.skip)
            await self._upkeep.discard(self._index, backlog)
            if not self._waiting(local):
                self._index = await self._upkeep.prune(self._run, self._index, local)
            # Before the look: a step that is committed in between is seen by the one or the other.
            being_written = self._directory.being_written(self._run.generation)
            local = await self._look()
            if not self._waiting(local):
                break
        wanted = {one.name for one in self._sort_out(local).upload}
        await self._upkeep.finish(self._run, self._index, local, wanted | being_written)
        self._ledger.retain(wanted)
        return local

    async def _get_ahead(self, local: list[LocalStep]) -> None:
        """Upload finished files of a step that is still being written, as no committed step waits."""
        committed = {one.name for one in local}

        def announced() -> list[ShardSaved]:
            shards = [event for event in self._receive() if isinstance(event, ShardSaved)]
            return early.worth_sending(shards, self._directory, committed, self._run.generation)

        if self._error is None and not self._keys.in_place:
            await self._head_start.send(announced)

    async def _read_manifest(self) -> Manifest:
        """The manifest as this generation owns it; made from the records where it is missing."""

        def adopted(index: Manifest) -> Manifest:
            if index == Manifest(run=self._run.run):  # not even a generation is known there
                self._used.forget()
            return manifest.adopted(index, self._run)

        return await self._manifest.update(adopted)

    async def _look(self) -> list[LocalStep]:
        """Committed steps on disk, newest first; one foreign checkpoint at most becomes one of them now."""
        local = self._scan()
        if await self._steps.take(partial(self._wanted, local)):
            self._took = True
            local = self._scan()
        return local

    def _wanted(self, local: list[LocalStep], found: list[Committed]) -> Set[int]:
        """Which foreign checkpoints to read now: none that is older than what waits to be uploaded."""
        waiting = max((one.step for one in self._waiting(local)), default=-1)
        wanted, left_out = worth_reading(found, self._index, self._run.retention, now=self._clocks.now())
        self._leave_out(left_out, "skipped, newer ones are kept instead")
        return {step for step in wanted if step > waiting}

    def _leave_out(self, steps: Set[int], why: str) -> None:
        """Foreign checkpoints that will not be uploaded, unless they were."""
        names = {layout.step_at(step, self._run.generation) for step in steps}
        for name in sorted(names - self._index.names()):
            self._ledger.leave_out(name, why)

    def _scan(self) -> list[LocalStep]:
        """Committed steps on disk, newest first. A record that can't be read fails its step only."""
        local, errors = self._steps.scan()
        self._ledger.looked([*errors, *disagreements(local, self._index)])
        self._leave_out(self._steps.vanished(), "deleted by its trainer before it was uploaded")
        self._status.located(max((one.step for one in local), default=None), self._index.latest)
        return local

    def _waiting(self, local: list[LocalStep]) -> list[LocalStep]:
        return [one for one in self._sort_out(local).upload if self._ledger.waits(one)]

    def _sort_out(self, local: list[LocalStep]) -> Backlog:
        return sort_out(
            local,
            self._index,
            self._run,
            self._run.retention,
            now=self._clocks.now(),
            on_disk=self._run.retention if self._keys.in_place else self._run.on_disk,
            failed=self._ledger.failed,
            refused=self._ledger.refused,
            in_flight={upload.step for upload in self._journal.all() if upload.step},
            pruned=self._used.pruned,
        )

    def _note_used(self, local: list[LocalStep]) -> None:
        if not self._keys.in_place:
            self._used.note(local, self._index)

    async def _make_durable(self, local: LocalStep) -> None:
        """Commit one step and list it in the manifest. One that can't be never blocks the next one."""
        self._ledger.tried.add(local.name)
        began_s = self._clocks.monotonic()
        try:
            if await self._is_pruned(local):
                return
            self._status.uploading(local.record)
            record = await commit(
                local,
                self._store,
                self._keys,
                self._flow,
                self._journal,
                self._progressed,
                self._head_start.has_stored,
            )
        except CorruptError as error:
            if self._is_there(local):
                self._ledger.fail(local.name, error)
            else:
                log.warning("%s: not committed: %s", local.name, error)
            return
        except BucketMissing:
            raise
        except (StoreError, TooLarge) as error:
            self._ledger.refuse(local, error)
            return
        self._ledger.taken(local)
        if record is None:
            self._ledger.handed_in.add(local.name)
            return
        entry = Entry.of(record, self._keys)
        try:
            self._index = await self._manifest.update(lambda one: manifest.committed(one, entry, self._run))
        except TooLarge as error:  # pruning goes on, and may make room
            self._ledger.refuse(local, error)
            return
        self._status.durable(local.record, self._clocks.monotonic() - began_s)

    async def _is_pruned(self, local: LocalStep) -> bool:
        """Whether a step was in the store and is not any more.

        An index from a backup does not prove that: a step of which all is there is listed again.
        """
        if local.name not in self._used.names or await is_committed(local, self._store, self._keys):
            return False
        self._used.pruned.add(local.name)
        self._ledger.leave_out(local.name, "not uploaded again: the store has pruned it")
        return True

    def _is_there(self, local: LocalStep) -> bool:
        """Whether the step is still on disk, unchanged: a trainer may have replaced it while it was read."""
        try:
            local.check()
        except CorruptError:
            return False
        return local in self._steps.scan()[0]

    def _acknowledge(self, events: list[Event], local: list[LocalStep]) -> None:
        """A saved step is done with when it is durable, skipped, superseded, failed or gone.

        So is a file of a step that does not wait: it was sent, or the commit will look after it.
        """
        told = [*self._ledger.refused.values(), self._upkeep.error]
        is_done = self._error is None or self._error in told
        waiting = self._sort_out(local).upload if is_done else local
        names = {one.name for one in waiting}
        for queue in self._queues:
            for event in events:
                ended = isinstance(event, RunFinished)
                done = event.generation < self._run.generation if ended else _name(event) not in names
                if done:
                    queue.acknowledge(event)

    def _adopt_run_file(self) -> bool:
        """Take over what a new start of the trainer wrote; False where that takes another service."""
        found = RunFile.read(self._directory)
        if found is None or found == self._run:
            return True
        if found.setting() != self._run.setting() or not self._steps.end_with_trainer:
            return False
        log.info("serving generation %d", found.generation)
        self._run = found
        self._status.show(generation=found.generation)
        return True

    def _is_over(self, events: list[Event]) -> bool:
        """Finished as planned, or the trainer has been gone for a while, and nothing came meanwhile."""
        if any(isinstance(event, RunFinished) for event in events):
            return True
        if not self._steps.end_with_trainer or is_locked(self._directory.trainer_lock):
            self._trainer_gone_s = None
            return False
        now_s = self._clocks.monotonic()
        if self._trainer_gone_s is None:
            self._trainer_gone_s = now_s
        gone_long = now_s - self._trainer_gone_s >= self._run.upload.idle_exit_s
        return gone_long and self._signature(self._scan()) == self._settled

    def _lingers(self) -> bool:
        """Whether a run that is over leaves something to prune later: all is durable, and nobody waits."""
        return self._error is None and self._ledger.error is None and self._upkeep.comes_back

    def _end(self, events: list[Event], incomplete: Sequence[str] = ()) -> None:
        """Close the books. Whatever could not be made durable is the exit's error."""
        error = self._error or self._ledger.error
        if error is None and incomplete:
            error = NotDurable(
                f"not complete: {', '.join(incomplete)}",
                doing="uploading from",
                subject=str(self._directory.path),
                hint="all that is complete is durable; upload again when the rest is",
            )
        if error is not None:
            self._status.failed(error)
            raise error
        for queue in self._queues:
            for event in events:
                queue.acknowledge(event)
        self._status.show(state="drained", upload=None)


def _name(event: Event) -> str:
    return layout.step_at(event.step, event.generation)
