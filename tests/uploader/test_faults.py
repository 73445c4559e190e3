"""Long runs against a store that fails all the time, on a clock that jumps: all is durable, nothing left."""

import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Set
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import to_thread
from botocore import exceptions as aws
from steps import FIRST, Time, assert_whole, keys, make_service, make_step, run_file, taken, uploads
from virtual_time import VIRTUAL, at_once

from uploader import files, layout, queue
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.events import CheckpointSaved, RunFinished
from uploader.layout import COMMIT_RECORD_NAME, MANIFEST_KEY, RunDirectory, RunKeys
from uploader.retention import Retention
from uploader.retry import RetryPolicy
from uploader.settings import UploadSettings
from uploader.status import Status, read_status
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.store.s3_errors import speaking

IN_BLOCKS = UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=2)
pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, Any]]:
    monkeypatch.setattr(to_thread, "run_sync", at_once)
    return VIRTUAL


class Clock(Time):
    """All clocks of a service are that of the loop, and its waits are the loop's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        retry = RetryPolicy(sleep=anyio.sleep, clock=anyio.current_time, random=random.Random(1))
        now = lambda: datetime.fromtimestamp(1.8e9 + anyio.current_time(), UTC)  # noqa: E731
        self.clocks = replace(self.clocks, now=now, monotonic=anyio.current_time, retry=retry)


class Unreliable:
    """A store of whose requests so many fail, before or after their effect, in every way there is."""

    uri = "memory://"

    def __init__(self, store: MemoryStore, chances: random.Random, share: float) -> None:
        self._store, self._chances, self._share = store, chances, share
        self.failures: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._store, name)
        return partial(self._list if name in ("list", "list_uploads") else self._call, method)

    async def _call(self, method: Callable[..., Awaitable[Any]], *args: Any, **more: Any) -> Any:
        kind = self._draw()
        if kind is None:
            return await method(*args, **more)
        if self._chances.random() < 0.5:
            await method(*args, **more)
        return await self._fail(kind)

    async def _list(self, method: Callable[..., AsyncIterator[Any]], prefix: str = "") -> AsyncIterator[Any]:
        kind = self._draw()
        async for one in method(prefix):
            if kind is not None and self._chances.random() < 0.5:
                await self._fail(kind)
            yield one
        if kind is not None:
            await self._fail(kind)

    def _draw(self) -> str | None:
        if self._chances.random() >= self._share:
            return None
        kind = self._chances.choice(["reset", "500", "SlowDown", "truncated", "hang"])
        self.failures[kind] += 1
        return kind

    async def _fail(self, kind: str) -> None:
        if kind == "hang":
            await anyio.sleep_forever()
        error = ConnectionResetError() if kind in ("reset", "truncated") else client_error(kind)
        if kind == "truncated":
            error = aws.IncompleteReadError(actual_bytes=1, expected_bytes=2)
        with speaking("asking", "memory://"):
            raise error


def client_error(code: str) -> aws.ClientError:
    status = {"500": 500, "SlowDown": 503}[code]
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return aws.ClientError(answer, "PutObject")


def contents(step: int, *, large: bool) -> dict[str, bytes]:
    """The files of a step, other ones for each step."""
    text = f"step {step} ".encode()
    files = {"model.safetensors": text * 50, "state-rank00000.json": b"{}"}
    return files | ({"optim.safetensors": text.ljust(20, b"o") * (BLOCK_SIZE_BYTES // 8)} if large else {})


async def train(directory: RunDirectory, steps: Iterable[int], pause_s: float, large: Set[int]) -> None:
    """What a trainer does, seen from here; it never meets the store."""
    for step in steps:
        make_step(directory, step, files=contents(step, large=step in large))
        queue.put(directory.events(0), CheckpointSaved(generation=1, step=step))
        await anyio.sleep(pause_s)
    queue.put(directory.events(0), RunFinished(generation=1, step=step))


def shown(directory: RunDirectory) -> Status:
    status = read_status(directory.status_file)
    assert status is not None
    return status


async def assert_exactly(store: MemoryStore, steps: Set[int], large: Set[int]) -> None:
    """The store holds these steps, byte for byte, and nothing that no step names."""
    index = await assert_whole(store)
    assert index is not None
    assert {entry.step for entry in index.live.values()} == steps
    assert not index.deleting
    named = {MANIFEST_KEY, layout.generation_key(1), layout.heartbeat_key(1)}
    for step in steps:
        prefix = RunKeys().step_prefix(step, 1)
        for name, data in contents(step, large=step in large).items():
            assert (await store.get(prefix + name))[0] == data
            named.add(prefix + name)
        named |= {prefix + "node-0000.json", prefix + COMMIT_RECORD_NAME}
    assert {*await keys(store)} == named
    assert await uploads(store) == []


async def test_with_a_third_of_all_requests_failing_everything_is_durable(directory: RunDirectory) -> None:
    store = MemoryStore(now=lambda: 1.8e9 + anyio.current_time())
    await taken(store, FIRST)
    steps, large = range(1, 201), set(range(40, 201, 40))
    unreliable = Unreliable(store, random.Random(1), share=0.3)
    run = run_file(retention=Retention(keep_last=3, keep_every=2), upload=IN_BLOCKS)
    service = make_service(directory, unreliable, run, Clock())  # type: ignore[arg-type]
    async with anyio.create_task_group() as group:
        group.start_soon(train, directory, steps, 40.0, large)
        held = files.lock(directory.trainer_lock)
        await service.serve()
    assert held is not None
    os.close(held)
    await assert_exactly(store, {*range(2, 201, 2), 199}, large)
    status = shown(directory)
    assert (status.state, status.error, status.failed_steps) == ("drained", None, {})
    assert {*unreliable.failures} == {"reset", "500", "SlowDown", "truncated", "hang"}
    assert sum(unreliable.failures.values()) > 500
    assert status.retries_total > 500


async def test_a_store_that_is_away_for_ten_minutes_is_waited_for(directory: RunDirectory) -> None:
    store, sent = MemoryStore(now=lambda: 1.8e9 + anyio.current_time()), Counter[tuple[str, int]]()
    await taken(store, FIRST)
    away: list[float] = []

    def faults(one: Operation) -> Fault | None:
        """After two parts of three nobody answers."""
        if one.name == "upload_part" and not (away and anyio.current_time() < away[0] + 600):
            sent[one.key, one.number] += 1
            if sum(sent.values()) == 3 and not away:
                away.append(anyio.current_time())
        if away and anyio.current_time() < away[0] + 600:
            with speaking("uploading", "memory://"):
                raise aws.EndpointConnectionError(endpoint_url="http://store:9000/bucket/key")
        return None

    store.faults = faults
    upload = UploadSettings(part_size_bytes=BLOCK_SIZE_BYTES, parts_in_flight=1)
    run = run_file(retention=Retention(keep_last=9), upload=upload)
    service, during = make_service(directory, store, run, Clock()), list[Status]()
    async with anyio.create_task_group() as group:
        group.start_soon(train, directory, range(1, 4), 280.0, {1})  # each save is in time
        held = files.lock(directory.trainer_lock)
        group.start_soon(look, directory, 400.0, during)
        await service.serve()
    assert held is not None
    os.close(held)
    await assert_exactly(store, {1, 2, 3}, {1})
    assert [*sent.values()] == [1, 1, 2]  # the two that were there are not sent again
    assert during[0].state == "retrying"
    assert "no connection at http://store:9000;" in (during[0].error or "")
    assert anyio.current_time() < away[0] + 600 + 280 + 2 * upload.max_wait_s


async def look(directory: RunDirectory, after_s: float, seen: list[Status]) -> None:
    await anyio.sleep(after_s)
    seen.append(shown(directory))
