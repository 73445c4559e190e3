"""Run tasks side by side in one visible task group, and raise a plain error when one fails."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from uploader.errors import WmtpError


@asynccontextmanager
async def task_group() -> AsyncIterator[TaskGroup]:
    """A task group that raises a ``WmtpError`` itself, not in a group.

    The first task to fail cancels the rest: there is one failure to tell of.
    """
    try:
        async with anyio.create_task_group() as group:
            yield group
    except BaseExceptionGroup as failures:
        error = next(_leaves(failures))
        if isinstance(error, WmtpError):
            raise error from None
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def side_by_side(
    calls: Iterable[Callable[[], Coroutine[Any, Any, object]]], *, at_most: int = 64
) -> None:
    """Await every call, ``at_most`` at once; the first failure cancels the others and is raised."""
    running = anyio.Semaphore(at_most)

    async def run(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
        try:
            await call()
        finally:
            running.release()

    async with task_group() as group:
        for call in calls:
            await running.acquire()
            group.start_soon(run, call)
