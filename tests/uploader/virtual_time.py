"""An event loop whose clock jumps to the next timer as soon as nothing else is to do: no test waits."""

import asyncio
import selectors
from collections.abc import Callable
from typing import Any

import anyio.lowlevel


class _Jumping(selectors.DefaultSelector):
    """Does not wait for what a timer will end anyway.

    Attributes:
        waits: how often there was nothing to do but to wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 1000.0
        self.waits = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else None)
        if not ready and timeout:
            self.now_s += timeout
            self.waits += 1
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Deadlines, sleeps and ``anyio.current_time`` go by a clock that costs nothing."""

    def __init__(self) -> None:
        self.jumping = _Jumping()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now_s


VIRTUAL: tuple[str, dict[str, Any]] = ("asyncio", {"loop_factory": VirtualLoop})
"""For a module's ``anyio_backend`` fixture."""


async def at_once(work: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """In place of ``to_thread.run_sync``: this clock must not jump because a thread is at work."""
    await anyio.lowlevel.checkpoint()
    return work(*args)
