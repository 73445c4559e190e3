"""One seed's world: machines and their processes, the store and the network, and who looks at them.

Trainers and uploaders are the real code. A trainer is its start, then saves with pauses in between; an
uploader is ``serve_run``.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import anyio
from anyio.abc import TaskGroup

from uploader import host, queue
from uploader.errors import CorruptError, NothingToResume, StartRefused, WmtpError
from uploader.events import RunFinished
from uploader.layout import RunDirectory
from uploader.lease import Lease
from uploader.record import NodeRecord
from uploader.retention import KeepBest, Retention
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.service import Clocks
from uploader.settings import UploadSettings
from uploader.store.retrying import RetryingStore
from wmtp.checkpoint import writer
from wmtp.checkpoint.candidates import Found
from wmtp.checkpoint.disk import Answer, FileSource, Operations, SideBySide
from wmtp.checkpoint.disk import Disk as RealDisk
from wmtp.checkpoint.resume import Started, Takeover
from wmtp.checkpoint.session import trainer_lock
from wmtp.checkpoint.writer import Description
from wmtp.settings.resume import Resume

from .disk import Disk
from .judge import Broken, Judge
from .network import Link, Network, SharedStore
from .process import Fuse, Process, current
from .small import SmallFlows
from .truth import NAMES, Keeping, Key, content, metrics

EPOCH_S = 1.8e9
INTERVAL = 10
"""Steps between two saves."""
STALE_S, SUPERSEDED_S, LEASE_S = 600.0, 60.0, 30.0


@dataclass(eq=False)
class Machine:
    """A machine with a disk of its own, and a clock that is wrong by ``skew_s``."""

    name: str
    root: Path
    skew_s: float
    processes: list[Process] = field(default_factory=list)
    powered: anyio.Event = field(default_factory=anyio.Event)

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.root / "run")

    def living(self, kind: str) -> list[Process]:
        """The processes of a kind that are there: the dying ones still hold their locks."""
        return [one for one in self.processes if one.name.startswith(kind) and not one.ended.is_set()]


class Watched(Takeover):
    """A start that is asked about what it saw, not about what another start has made of the run since.

    Attributes:
        resumable: what there was to resume from when it looked last; None, too, if the run got another owner
            at that moment.
        owner: the generation that had the run then.
    """

    judge: Judge
    machine: Machine
    resumable: Key | None = None
    owner: int = 0

    async def look(self) -> Found:
        path = self.machine.directory.path
        self.owner = self.judge.index.generation
        before = self.judge.resumable(self.machine.name, path)
        found = await super().look()
        self.resumable = before if self.judge.index.generation == self.owner else None
        return found


@dataclass(frozen=True)
class Start:
    """How a trainer is started, and how many saves it makes before it ends."""

    what: str | None
    fresh: bool = False
    saves: int = 1
    take_over: bool = False


class World:
    """Everything of one seed.

    Attributes:
        trace: what happened: when, to whom, what.
        faulty: whether processes still die.
    """

    def __init__(
        self,
        rng: Random,
        root: Path,
        tasks: TaskGroup,
        retention: Retention,
        on_disk: Retention | None,
        grace_s: float,
    ) -> None:
        self.rng, self._root, self._tasks = rng, root, tasks
        self.trace: list[tuple[float, str, str]] = []
        self.broken: str | None = None
        self.machines: list[Machine] = []
        self.faulty = True
        self._pids = iter(range(100, 100_000))
        self.store = SharedStore(lambda: EPOCH_S + self.clock_s())
        self.network = Network(self.store, rng, tasks)
        self.disk = Disk()
        self.disk.moved, self.disk.unlinking = self._moved, self._unlinking
        best = retention.keep_best is not None
        keeping = Keeping(retention.keep_last or 1, retention.keep_every, best)
        self.judge = Judge(self.store, keeping, SUPERSEDED_S, lambda: EPOCH_S + self.clock_s(), self.fail)
        self.loop_time: Callable[[], float] = anyio.current_time
        self._loaded: dict[str, Key] = {}
        self.last_saved = 0
        self.run = RunFile(
            run="run",
            destination="file:///elsewhere/run",
            retention=retention,
            local_retention=on_disk,
            upload=UploadSettings(
                part_size_bytes=5 * 1024**2,
                parts_in_flight=2,
                delete_grace_s=grace_s,
                keep_superseded_s=SUPERSEDED_S,
                stale_upload_s=STALE_S,
                heartbeat_s=LEASE_S / 3,
                max_wait_s=8.0,
                request_timeout_s=20.0,
            ),
        )

    def clock_s(self) -> float:
        return self.loop_time()

    def note(self, who: str, what: str) -> None:
        self.trace.append((self.clock_s(), who, what))

    def fail(self, problem: str) -> None:
        """An invariant is broken: the story ends here."""
        if self.broken is None:
            self.broken = problem
            self.note("judge", problem)
            self._tasks.cancel_scope.cancel()
        raise Broken(problem)

    # --- machines and processes ------------------------------------------------------------------------

    def machine(self) -> Machine:
        """A new machine with an empty disk."""
        name = "abcdefgh"[len(self.machines)]
        (self._root / name).mkdir()
        machine = Machine(name, self._root / name, self.rng.choice((0.0, -3600.0, 900.0)))
        machine.powered.set()
        self.machines.append(machine)
        return machine

    def start(self, machine: Machine, kind: str, body: Callable[[Process], Awaitable[object]],
              fuse: Fuse | None = None) -> Process:  # fmt: skip
        """A new process on a machine."""
        pid = next(self._pids)
        name = f"{kind} {pid} on {machine.name}"
        process = Process(name, machine.name, pid, self.note, fuse if self.faulty else None)
        process.on_death = partial(self._died, machine)
        machine.processes.append(process)
        self.note(name, f"begins {process.fuse or ''}")
        self._tasks.start_soon(process.run, partial(self._boot, machine, process, body))
        return process

    async def _boot(
        self, machine: Machine, process: Process, body: Callable[[Process], Awaitable[object]]
    ) -> None:
        await machine.powered.wait()
        await body(process)

    def _died(self, machine: Machine, process: Process) -> None:
        if process.fuse is not None and process.fuse.power:
            self.power_off(machine)

    def power_off(self, machine: Machine) -> None:
        """The machine loses its power now; whatever is started there waits until it is back."""
        if not machine.powered.is_set():
            return
        self.note(machine.name, "loses its power")
        machine.powered = anyio.Event()
        self._tasks.start_soon(self._power_on, machine, self.kill(machine, "with its machine"))

    def kill(self, machine: Machine, how: str) -> list[Process]:
        """Everything on a machine dies; returns what has to unwind."""
        dying = [one for one in machine.processes if not one.ended.is_set()]
        for one in dying:
            one.die(how)
        return dying

    async def _power_on(self, machine: Machine, dying: list[Process]) -> None:
        current.set(None)  # no process does this
        for one in dying:
            await one.ended.wait()
        self.disk.lose_power(machine.root, self.rng)
        self.note(machine.name, "is back")
        self.judge.look_at_disk(machine.name, machine.directory.path)
        machine.powered.set()

    def _machine_of(self, path: Path) -> Machine:
        name = path.relative_to(self._root).parts[0]
        return next(one for one in self.machines if one.name == name)

    def _moved(self, source: Path, target: Path) -> None:
        machine = self._machine_of(target)
        run = machine.directory.path
        if target == machine.directory.run_file:
            process = current.get()
            assert process is not None
            self.judge.adopts(run, self._loaded.get(process.name))
        elif target.parent == machine.directory.trash:
            self.judge.discarded(machine.name, run, target)

    def _unlinking(self, path: Path) -> None:
        if path.name.startswith("events-"):
            machine = self._machine_of(path)
            self.judge.acknowledges(machine.name, machine.directory.path, path)

    # --- the uploader ----------------------------------------------------------------------------------

    def uploader(self, machine: Machine, fuse: Fuse | None = None) -> Process:
        """An uploader of the machine's run."""
        return self.start(machine, "uploader", partial(self._serve, machine), fuse)

    def ensure_uploader(self, machine: Machine, fuse: Fuse | None = None) -> None:
        """As a trainer does it: unless one is there."""
        if not machine.living("uploader"):
            self.uploader(machine, fuse)

    async def _serve(self, machine: Machine, process: Process) -> None:
        await host.serve_run(
            machine.directory.path, clocks=self._clocks(machine), flows=SmallFlows(self.clock_s)
        )
        if not process.dead:
            self.judge.drained(machine.name, machine.directory.path)

    def _clocks(self, machine: Machine) -> Clocks:
        now = lambda: datetime.fromtimestamp(self.wall_s(machine), UTC)  # noqa: E731
        return Clocks(now, self.clock_s, self._policy())

    def _policy(self, deadline_s: float | None = None) -> RetryPolicy:
        return RetryPolicy(
            deadline_s=deadline_s,
            cap_s=8.0,
            request_timeout_s=20.0,
            sleep=anyio.sleep,
            clock=self.clock_s,
            random=self.rng,
        )

    def wall_s(self, machine: Machine) -> float:
        """What the machine takes for the time."""
        return EPOCH_S + machine.skew_s + self.clock_s()

    # --- the trainer -----------------------------------------------------------------------------------

    def trainer(self, machine: Machine, how: Start, fuse: Fuse | None = None) -> Process:
        """A trainer of the machine's run."""
        return self.start(machine, "trainer", partial(self._train, machine, how), fuse)

    async def _train(self, machine: Machine, how: Start, process: Process) -> None:
        directory = machine.directory
        with trainer_lock(directory):
            started = await self._take_over(machine, how, process)
            step = started.step
            for _ in range(how.saves):
                await anyio.sleep(10 ** self.rng.uniform(-1, 1))
                self.ensure_uploader(machine)
                step += INTERVAL
                await self._save(machine, step, started, process)
            finished = RunFinished(generation=started.run.generation, step=step)
            queue.put(directory.events(0), finished)

    async def _take_over(self, machine: Machine, how: Start, process: Process) -> Started:
        """The real start, and whether it found what there was to find."""
        path = machine.directory.path

        def load(step: Path, record: NodeRecord) -> None:
            key = (record.step, record.generation)
            for name in NAMES:
                self.judge.require(
                    (step / name).read_bytes() == content(key, name), f"{key} loads wrong bytes"
                )
            self._loaded[process.name] = key

        store = RetryingStore(Link(self.network, process), self._policy(deadline_s=120.0))
        patience = Lease(LEASE_S, how.take_over)
        takeover = Watched(machine.directory, self.run, store, load, lambda _: None, lease=patience)
        takeover.judge, takeover.machine = self.judge, machine
        what = Resume.parse(how.what, path) if how.what else None
        try:
            started = await takeover.start(what, fresh=how.fresh)
        except (NothingToResume, StartRefused, CorruptError) as error:
            if not process.dead and self.judge.index.generation == takeover.owner:  # nobody was quicker
                self._judge_refusal(error, how, takeover.resumable)
            raise
        self.note(process.name, f"goes on after step {started.step} as generation {started.run.generation}")
        before = takeover.resumable
        if how.what in ("auto", "latest") and before is not None:
            back = started.step < before[0]
            self.judge.require(not back, f"{process.name} went back to {started.step}, there was {before}")
        return started

    def _judge_refusal(self, error: WmtpError, how: Start, before: Key | None) -> None:
        asked = how.what is not None and how.what.startswith("step_")
        if how.what in ("auto", "latest") and before is not None:
            self.fail(f"{before} was there to resume from: {error}")
        if not asked and isinstance(error, CorruptError):
            self.fail(f"nothing is corrupt here: {error}")

    async def _save(self, machine: Machine, step: int, started: Started, process: Process) -> None:
        key = (step, started.run.generation)
        created_at = datetime.fromtimestamp(self.wall_s(machine), UTC)
        what = Description("run", *key, created_at, dict(metrics(step)), {})
        sources = [FileSource(name, memoryview(content(key, name))) for name in NAMES]
        self.judge.saving(key)
        await self._perform(writer.write_checkpoint(machine.directory, sources, what))
        self.judge.saved(machine.name, key)
        self.last_saved = step
        self.note(process.name, f"saved step {step}")

    async def _perform(self, operations: Operations[Any]) -> Any:
        """The local write, one operation after the other; others may run in between."""
        answer: Answer | list[Any] = None
        try:
            while True:
                operation = operations.send(answer)
                if isinstance(operation, SideBySide):
                    answer = [await self._perform(one) for one in operation.sequences]
                else:
                    await anyio.sleep(self.rng.choice((0.0, 0.0, 0.01, 0.3)))
                    answer = RealDisk().perform(operation)
        except StopIteration as end:
            return end.value


ON_DISK = (None, Retention(keep_last=5))
"""What a disk keeps: as much as the store, or more."""
RETENTIONS = (
    Retention(keep_last=1),
    Retention(keep_last=2),
    Retention(keep_last=2, keep_every=30),
    Retention(keep_last=1, keep_best=KeepBest(metric="loss")),
)
