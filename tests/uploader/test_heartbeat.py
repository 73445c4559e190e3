"""The owner's sign of life, and how an owner learns that it is none any more."""

from collections.abc import Callable

import anyio
import pytest
from steps import FIRST, claim, generation_file, run_file

from uploader import heartbeat, layout, manifest
from uploader.errors import OwnershipError, StoreDenied
from uploader.generation import Claim
from uploader.heartbeat import Heart, beating
from uploader.layout import RunKeys
from uploader.manifest_file import ManifestFile
from uploader.store.memory import Fault, MemoryStore

pytestmark = pytest.mark.anyio

SECOND = claim((1, None), (2, 5))


class Beats:
    """A heart whose waits end when a test says so."""

    def __init__(self, owner: Callable[[], Claim] = lambda: FIRST) -> None:
        self.store = MemoryStore()
        self.file = ManifestFile(self.store, "run", RunKeys())
        self.step: int | None = None
        self.slept: list[float] = []
        self._turn = anyio.Event()
        self.heart = Heart(
            self.store, self.file, owner, 10.0, newest_step=lambda: self.step, sleep=self._sleep
        )

    async def _sleep(self, delay_s: float) -> None:
        self.slept.append(delay_s)
        await self._turn.wait()
        self._turn = anyio.Event()

    async def tick(self) -> None:
        """The time of a beat passes."""
        await anyio.wait_all_tasks_blocked()
        self._turn.set()
        await anyio.wait_all_tasks_blocked()

    async def last(self, number: int = 1) -> heartbeat.Heartbeat:
        found = await heartbeat.read(self.store, number)
        assert found is not None
        return found

    async def lost(self) -> None:
        """Another machine took the run."""
        await self.file.update(lambda index: manifest.adopted(index, SECOND))


async def test_each_beat_counts_and_tells_the_newest_step() -> None:
    beats = Beats()
    async with beating(beats.heart):
        first = await beats.last()
        assert (first.count, first.newest_step, first.owner) == (0, None, FIRST.owner)
        beats.step = 30
        await beats.tick()
        second = await beats.last()
        assert (second.count, second.newest_step, second.released) == (1, 30, False)
    assert beats.slept[0] == 10.0
    asked = len(beats.store.operations)
    await beats.tick()
    assert len(beats.store.operations) == asked, "and none afterwards"


async def test_the_next_process_goes_on_counting() -> None:
    beats = Beats()
    for _ in range(3):
        await beats.heart.beat()
    await Heart(beats.store, beats.file, lambda: FIRST, 10.0).beat()
    assert (await beats.last()).count == 3


async def test_a_count_that_can_grow_no_further_begins_anew() -> None:
    beats = Beats()
    await beats.heart.beat()
    most = (await beats.last()).model_copy(update={"count": 2**53 - 1})
    beats.store._keep("generations/0001.heartbeat.json", most.encode())
    await Heart(beats.store, beats.file, lambda: FIRST, 10.0).beat()
    assert (await beats.last()).count == 0


async def test_a_start_on_the_same_directory_is_followed() -> None:
    owners = [FIRST]
    beats = Beats(lambda: owners[-1])
    async with beating(beats.heart):
        owners.append(SECOND)
        await beats.lost()
        await beats.tick()
        assert (await beats.last(2)).count == 0
        await beats.tick()
        assert (await beats.last(2)).count == 1
    assert (await beats.last(1)).count == 0


async def test_who_lost_the_run_is_told_by_whom_and_writes_nothing() -> None:
    beats = Beats()
    with pytest.raises(OwnershipError, match=r"generation 2 of me@host2 \(process 2\) owns it"):
        async with beating(beats.heart):
            await beats.lost()
            before = {info.key: info.etag async for info in beats.store.list()}
            await beats.tick()
            await anyio.sleep_forever()
    assert {info.key: info.etag async for info in beats.store.list()} == before
    await beats.heart.release(1)
    assert {info.key: info.etag async for info in beats.store.list()} == before


async def test_who_lost_the_run_before_does_not_begin() -> None:
    beats = Beats()
    await beats.lost()
    with pytest.raises(OwnershipError):
        async with beating(beats.heart):
            raise AssertionError("it began")


async def test_the_loss_is_told_before_what_it_broke() -> None:
    beats = Beats()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ZeroDivisionError

    with pytest.raises(OwnershipError):
        async with beating(beats.heart):
            await beats.lost()
            async with anyio.create_task_group() as group:
                group.start_soon(work)
                await beats.tick()


async def test_an_error_in_the_context_comes_out_as_it_is() -> None:
    with pytest.raises(ZeroDivisionError):
        async with beating(Beats().heart):
            raise ZeroDivisionError
    async with beating(None):
        pass


async def test_a_refused_beat_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    beats = Beats()
    async with beating(beats.heart):
        beats.store.faults = lambda _: Fault(StoreDenied("no", subject="it"))
        await beats.tick()
        assert "no heartbeat: it: no" in caplog.text
        beats.store.faults = None
        await beats.tick()
        assert (await beats.last()).count == 1


async def test_released_it_stays_and_a_next_start_is_not() -> None:
    owners = [FIRST]
    beats = Beats(lambda: owners[-1])
    async with beating(beats.heart):
        await beats.heart.release(1)
        assert (await beats.last()).released
        count = (await beats.last()).count
        await beats.tick()
        assert ((await beats.last()).released, (await beats.last()).count) == (True, count)
        owners.append(SECOND)
        await beats.tick()
        assert not (await beats.last(2)).released
        await beats.heart.release(1)
        assert not (await beats.last(2)).released


async def test_a_release_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    beats = Beats()
    beats.store.faults = lambda _: Fault(StoreDenied("no"))
    await beats.heart.release(1)
    assert "the run was not released" in caplog.text


async def test_a_trainer_without_generations_has_no_heartbeat() -> None:
    beats = Beats(Claim)
    await beats.heart.beat()
    assert beats.store.operations == []


def test_its_key_is_beside_the_generations_and_none_of_them() -> None:
    assert layout.heartbeat_key(3) == "generations/0003.heartbeat.json"
    assert layout.parse_generation_key(layout.heartbeat_key(3)) is None
    assert run_file(FIRST).upload.heartbeat_s == 10.0
    assert generation_file(FIRST).directory is None
