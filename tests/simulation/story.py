"""What happens in one seed: chapters of starts, saves, deaths and takeovers, then calm, and the last look.

Each chapter is a start of a trainer. While it runs, and after it, the seed may kill a process, cut a
machine's power, stall an uploader, start a second one, or go on elsewhere while the old machine still works.
"""

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import anyio
from anyio._backends._asyncio import CancelScope

from tests.uploader.virtual_time import VirtualLoop
from uploader.errors import NothingToResume
from uploader.layout import RunKeys
from uploader.manifest_file import ManifestFile

from .judge import Broken
from .network import Weather
from .outside import outside_replaced
from .process import Fuse, random_fuse
from .world import ON_DISK, RETENTIONS, STALE_S, Machine, Start, World

ROOT = Path("/dev/shm")  # noqa: S108 - in memory, where no inode number comes twice
PATIENCE_S = 4000.0
"""When the faults have ended, nothing takes longer."""


@dataclass(frozen=True)
class Played:
    """One seed, played.

    Attributes:
        broken: the invariant that did not hold; None where all did.
        trace: when, to whom, what.
        unexpected: what ended the code under test, but is no error of it.
    """

    seed: int
    broken: str | None
    trace: list[tuple[float, str, str]]
    unexpected: BaseException | None = None

    def lines(self) -> Iterator[str]:
        """The trace for people."""
        for at_s, who, what in self.trace:
            yield f"{at_s - 1000.0:10.2f}  {who:18}  {what}"


def play(seed: int, bug: Callable[[], AbstractContextManager[object]] = nullcontext) -> Played:
    """Play one seed from beginning to end.

    Args:
        bug: puts a known bug into the code under test while its context lasts.
    """
    root = ROOT / f"wmtp-simulation-{os.getpid()}"
    _empty_directory(root)
    rng = Random(seed)
    worlds: list[World] = []

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            retention = rng.choice(RETENTIONS)
            world = World(rng, root, tasks, retention, rng.choice(ON_DISK), rng.choice((0.0, 0.0, 2.0)))
            worlds.append(world)
            world.loop_time = asyncio.get_running_loop().time
            with outside_replaced(world), bug():
                await _tell(world)

    unexpected = None
    try:
        with _tasks_in_order():
            anyio.run(main, backend_options={"loop_factory": VirtualLoop})
    except BaseExceptionGroup as group:
        unexpected = next(_unexpected(group), None)
    finally:
        shutil.rmtree(root)
    [world] = worlds
    crashed = f"{type(unexpected).__name__}: {unexpected}" if unexpected else None
    return Played(seed, world.broken or crashed, world.trace, unexpected)


def _empty_directory(path: Path) -> None:
    """Make a directory, in place of what an earlier seed left there."""
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(parents=True, mode=0o700)


def _unexpected(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for one in error.exceptions:
            yield from _unexpected(one)
    elif not isinstance(error, Broken):
        yield error


async def _tell(world: World) -> None:
    rng = world.rng
    machine = world.machine()
    for _ in range(rng.randint(1, 4)):
        world.network.weather = Weather.random(rng)
        world.note("story", f"{world.network.weather}")
        trainer = world.trainer(machine, _how(world, machine), _maybe_fuse(world, 0.4))
        world.ensure_uploader(machine, _maybe_fuse(world, 0.5))
        await _while_it_runs(world, machine)
        if rng.random() < 0.9:  # else the next one comes while this one works
            await trainer.ended.wait()
        machine = await _afterwards(world, machine)
    await _calm(world)
    await _epilogue(world, machine)


def _how(world: World, machine: Machine) -> Start:
    rng = world.rng
    saves, choice, by_force = rng.randint(1, 4), rng.random(), rng.random() < 0.3
    here = world.judge.local.get(machine.name, set())
    index, pruned = world.judge.index, sorted(here & world.judge.pruned)
    known = sorted({*index.live, *index.superseded})
    if choice < (0.5 if pruned else 0.15) and (pruned or known):
        step, generation = rng.choice(pruned or known)
        name = rng.choice((f"step_{step}", f"step_{step}@g{generation}"))
        return Start(name, saves=saves, take_over=by_force)
    if choice < 0.2:
        return Start(None, fresh=True, saves=saves, take_over=by_force)
    return Start("latest" if choice < 0.3 else "auto", saves=saves, take_over=by_force)


def _maybe_fuse(world: World, chance: float) -> Fuse | None:
    return random_fuse(world.rng) if world.rng.random() < chance else None


async def _while_it_runs(world: World, machine: Machine) -> None:
    """Up to three things that may happen to whoever is there."""
    rng = world.rng
    for _ in range(rng.randint(0, 3)):
        await anyio.sleep(10 ** rng.uniform(-1, 1.2))
        living = machine.living("")
        match rng.randint(0, 7):
            case 0 if living:
                rng.choice(living).die("by a signal")
            case 1:
                world.power_off(machine)
            case 2:
                for one in machine.living("uploader"):
                    one.stalled_until_s = world.clock_s() + 10 ** rng.uniform(0, 2.5)
                    world.note(one.name, "stalls")
            case 3:
                world.uploader(machine, _maybe_fuse(world, 0.3))
            case 4:
                world.trainer(machine, _how(world, machine), _maybe_fuse(world, 0.3))
            case _:
                world.ensure_uploader(machine, _maybe_fuse(world, 0.5))


async def _afterwards(world: World, machine: Machine) -> Machine:
    """Where the next trainer starts."""
    rng = world.rng
    match rng.randint(0, 9):
        case 0:
            world.power_off(machine)
        case 1 | 2:  # the uploader has time
            world.ensure_uploader(machine, _maybe_fuse(world, 0.3))
            await anyio.sleep(10 ** rng.uniform(0, 2))
        case 3 if len(world.machines) < 3:  # the machine is lost
            for one in world.kill(machine, "with its machine, for ever"):
                await one.ended.wait()
            world.judge.wiped(machine.name)
            return world.machine()
        case 4 if len(world.machines) < 3:  # it is not, but somebody thinks so
            return world.machine()
        case 5:
            return rng.choice(world.machines)
        case _:
            await anyio.sleep(10 ** rng.uniform(-1, 1))
    return machine


async def _calm(world: World) -> None:
    """No fault any more: whoever is still there comes to an end by itself."""
    world.note("story", "calm")
    world.faulty = False
    world.network.weather = Weather(0.0, 0.0)
    for machine in world.machines:
        for one in machine.processes:
            one.fuse = None
    await _ended(world, "trainer")
    for machine in world.machines:
        if not machine.directory.run_file.exists():
            for one in machine.living("uploader"):
                one.die("by a signal: there never was a trainer")
    await _ended(world, "uploader")
    await world.network.quiet()


async def _ended(world: World, kind: str) -> None:
    with anyio.move_on_after(PATIENCE_S):
        for machine in world.machines:
            for one in machine.living(kind):
                await one.ended.wait()
        return
    world.fail(f"some {kind} does not end")


async def _epilogue(world: World, machine: Machine) -> None:
    """One more start, with nothing in its way: then everything is in order."""
    await anyio.sleep(STALE_S + 1)
    trainer = world.trainer(machine, Start("auto"))
    await _ended(world, "trainer")
    if isinstance(trainer.error, NothingToResume):  # what leads to now is on a disk that is lost
        trainer = world.trainer(machine, Start(None, fresh=True))
        await _ended(world, "trainer")
    if trainer.error is not None:
        world.fail(f"the last start failed: {trainer.error}")
    world.ensure_uploader(machine)
    uploader = machine.living("uploader")[0]
    await _ended(world, "uploader")
    if uploader.error is not None:
        world.fail(f"the last uploader failed: {uploader.error}")
    world.judge.settled(machine.name, machine.directory.path, world.last_saved)
    rebuilt = await ManifestFile(world.store, "run", RunKeys()).from_records()
    live = {(one.step, one.generation) for one in rebuilt.live.values()}
    if live != set(world.judge.index.live):
        world.fail(f"the records say {sorted(live)}, the manifest {sorted(world.judge.index.live)}")
    world.note("story", "the end")


class _InOrder(dict[Any, None]):
    """A set that is iterated in the order of its making, not of addresses in memory."""

    def add(self, one: Any) -> None:
        self[one] = None

    def discard(self, one: Any) -> None:
        self.pop(one, None)

    def remove(self, one: Any) -> None:
        del self[one]


def _tasks_in_order() -> AbstractContextManager[object]:
    """Tasks are cancelled in an order that a seed repeats: anyio keeps them in sets."""
    init = CancelScope.__init__

    def ordered(self: Any, *args: Any, **more: Any) -> None:
        init(self, *args, **more)
        self._tasks, self._child_scopes = _InOrder(), _InOrder()

    return mock.patch.object(CancelScope, "__init__", ordered)
