"""A waiting uploader does nothing: its wake-ups are counted, on a clock that jumps."""

import asyncio
import os
import threading
from typing import Any

import anyio
import pytest
from anyio import to_thread
from steps import FIRST, make_service, make_step, run_file, taken
from virtual_time import VIRTUAL, VirtualLoop, at_once

from uploader import files
from uploader.layout import MANIFEST_KEY, RunDirectory, heartbeat_key
from uploader.service import POLL_S
from uploader.store.memory import MemoryStore

pytestmark = pytest.mark.anyio
HOUR_S = 3600.0


@pytest.fixture
def anyio_backend(monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    monkeypatch.setattr(to_thread, "run_sync", at_once)
    return VIRTUAL


async def test_it_wakes_for_its_poll_and_its_heartbeat_and_for_nothing_else(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, loop = MemoryStore(), asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    await taken(store, FIRST)
    make_step(directory, 1)
    held = files.lock(directory.trainer_lock)
    assert held is not None
    service = make_service(directory, store, run_file())
    async with anyio.create_task_group() as group:
        group.start_soon(service.serve)
        await anyio.sleep(60)
        assert store.operations
        store.operations.clear()
        waits, threads = loop.jumping.waits, threading.active_count()
        with (directory.path / "metrics.jsonl").open("a") as log:
            for number in range(60):
                await anyio.sleep(HOUR_S / 60)
                log.write("a line of a log that is held open\n")
                log.flush()
                files.replace(directory.path / ".hidden", b"%d" % number)
        beats = HOUR_S / run_file().upload.heartbeat_s
        assert {one.key for one in store.operations} == {heartbeat_key(1), MANIFEST_KEY}
        assert len(store.operations) == pytest.approx(2 * beats, abs=4)
        assert threading.active_count() == threads
        polls, of_this_test = HOUR_S / POLL_S, 60
        assert polls - 2 <= loop.jumping.waits - waits <= polls + beats + of_this_test + 4
        group.cancel_scope.cancel()
    os.close(held)


async def test_it_wakes_at_once_for_a_step(directory: RunDirectory) -> None:
    store = MemoryStore()
    await taken(store, FIRST)
    held = files.lock(directory.trainer_lock)
    assert held is not None
    async with anyio.create_task_group() as group:
        group.start_soon(make_service(directory, store, run_file()).serve)
        await anyio.sleep(POLL_S / 4)
        make_step(directory, 1)
        await anyio.sleep(POLL_S / 100)  # long before the next poll
        assert any(one.key.endswith("checkpoint.json") for one in store.operations)
        group.cancel_scope.cancel()
    os.close(held)
