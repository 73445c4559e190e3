"""What stands in for the outside: clock, threads, notifications, process ids, and the way to the store."""

import inspect
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any
from unittest import mock

import anyio
from tenacity import _utils as tenacity_utils

from tests.uploader.virtual_time import at_once
from uploader import host, lease, service
from uploader.buffers import PartBuffers
from uploader.generation import Owner
from wmtp.checkpoint import resume

from .network import Link
from .process import current
from .small import PART_BYTES
from .world import EPOCH_S, World


@contextmanager
def outside_replaced(world: World) -> Iterator[None]:
    """Clock, threads, notifications, process ids and the way to the store are the world's."""

    make_buffers = PartBuffers.__init__

    class Now(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(EPOCH_S + world.clock_s(), tz)

    @asynccontextmanager
    async def open_store(*_: Any, **__: Any) -> AsyncIterator[Link]:
        process = current.get()
        assert process is not None
        yield Link(world.network, process)

    async def changes(_: Path, *, poll_s: float) -> AsyncGenerator[None, None]:
        """A notification may be lost: then it takes the interval."""
        while True:
            yield
            await anyio.sleep(world.rng.choice((0.05, 0.5, poll_s)))

    def this_process(**since: Any) -> Owner:
        process = current.get()
        assert process is not None
        return Owner(host=process.machine, pid=process.pid, user="someone", **since)

    def small(self: PartBuffers, *_: int) -> None:
        make_buffers(self, PART_BYTES, 2)

    def pid() -> int:
        process = current.get()
        return process.pid if process else 1

    with ExitStack() as stack:
        for target, name, put in (
            (anyio.to_thread, "run_sync", at_once),
            (host, "open_store", open_store),
            (host, "changes", changes),
            (service, "changes", changes),
            (resume, "datetime", Now),
            (PartBuffers, "__init__", small),
            (lease, "LOOKS", 5),
            (tenacity_utils, "is_coroutine_callable", _is_coroutine_function),
            (secrets, "token_hex", lambda size: world.rng.randbytes(size).hex()),
            (Owner, "this_process", this_process),
            (os, "getpid", pid),
            (time, "sleep", lambda _: None),
            (time, "monotonic", world.clock_s),
            (time, "time", lambda: EPOCH_S + world.clock_s()),
        ):
            stack.enter_context(mock.patch.object(target, name, put))
        stack.enter_context(world.disk.installed())
        yield


def _is_coroutine_function(call: Any) -> bool:
    """What tenacity asks of every request, in a hundredth of the time."""
    return bool(getattr(getattr(call, "__code__", None), "co_flags", 0) & inspect.CO_COROUTINE)
