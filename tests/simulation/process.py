"""Processes that die: at any request, at any call of the operating system; nothing they do counts after.

A dead process still unwinds, as coroutines do; its ``finally`` blocks close descriptors, which frees its
locks as the kernel would, and have no other effect.
"""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from random import Random
from typing import Literal

import anyio

from uploader.errors import WmtpError

When = Literal["before", "within", "after"]


class Died(BaseException):
    """The process is gone: nobody catches this."""


@dataclass
class Fuse:
    """Where a process dies: at the ``at``-th point (from 1) whose name begins with ``kind``.

    Attributes:
        when: before the effect of that point, in its middle (half a write, a request still in the network),
            or after it.
        power: whether the whole machine loses its power.
    """

    kind: str
    at: int
    when: When
    power: bool


KINDS = ("", "os.rename", "os.replace", "os.fsync", "os.open", "os.pwrite", "os.unlink", "os.mkdir",
         "put manifest", "put step", "put generations", "complete_upload", "upload_part", "create_upload",
         "delete", "get", "list")  # fmt: skip


def random_fuse(rng: Random) -> Fuse:
    """Any point, early ones more often: much happens at the beginning of a life."""
    kind = rng.choice(KINDS) if rng.random() < 0.5 else ""
    at = int(2 ** rng.uniform(0, 8.5 if not kind else 4))
    return Fuse(kind, at, rng.choice(("before", "within", "after")), rng.random() < 0.35)


@dataclass(eq=False)
class Process:
    """One process of a machine.

    Attributes:
        note: told of everything that happens, for the trace.
        on_death: called once, at the moment of death.
        error: what a process that ended by itself ended with.
    """

    name: str
    machine: str
    pid: int
    note: Callable[[str, str], None]
    fuse: Fuse | None = None
    on_death: Callable[["Process"], None] = lambda _: None
    dead: bool = False
    stalled_until_s: float = 0.0
    error: WmtpError | None = None
    ended: anyio.Event = field(default_factory=anyio.Event)
    _scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)

    async def run(self, body: Callable[[], Awaitable[object]]) -> None:
        """Be this process until it ends or dies."""
        current.set(self)
        try:
            with self._scope:
                await body()
        except WmtpError as error:
            if not self.dead:
                self.error = error
                self.note(self.name, f"ends: {type(error).__name__}: {error.problem}")
        except (Died, BaseExceptionGroup):
            if not self.dead:
                raise
        else:
            if not self.dead:
                self.note(self.name, "ends")
        finally:
            self.ended.set()

    def die(self, where: str) -> None:
        """From now on it has no effect."""
        if not self.dead:
            self.dead = True
            self.note(self.name, f"dies {where}")
            self._scope.cancel()
            self.on_death(self)

    def reach(self, point: str) -> When | None:
        """Come to a point; where it says ``within`` or ``after``, die there by ``perish``.

        Raises:
            Died: the process is dead, or dies here, before the effect.
        """
        if self.dead:
            raise Died
        fuse = self.fuse
        if fuse is None or not point.startswith(fuse.kind):
            return None
        fuse.at -= 1
        if fuse.at:
            return None
        if fuse.when == "before":
            self.perish(f"before {point}")
        return fuse.when

    def perish(self, where: str) -> None:
        """Die here.

        Raises:
            Died: always.
        """
        self.die(where)
        raise Died


current: ContextVar[Process | None] = ContextVar("current", default=None)
"""The process that is running."""
