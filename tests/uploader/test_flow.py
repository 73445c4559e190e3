"""The bounds carried out: slots, bytes a second, and standing back for a trainer, on a clock that is told."""

import threading
from dataclasses import dataclass, field
from pathlib import Path

import anyio.lowlevel
import pytest

from uploader.errors import StoreBusy, StoreUnavailable
from uploader.flow import Flow, Flows
from uploader.limits import MEBIBYTE
from uploader.location import Location
from uploader.pacing import FLOOR, Trainer
from uploader.retry import SLOWEST_BYTES_PER_S
from uploader.settings import StorageSettings, UploadSettings
from uploader.steptimes import StepTimes
from uploader.store import FileSlice, open_store

pytestmark = pytest.mark.anyio


@dataclass
class World:
    """A flow on a clock that goes on as bytes are sent, and a trainer beside it."""

    path: Path
    settings: UploadSettings = field(default_factory=UploadSettings)
    now_s: float = 100.0
    wire_bytes_per_s: float = 100e6
    flow: Flow = field(init=False)

    def __post_init__(self) -> None:
        self.flow = Flow(self.settings, lambda: self.now_s)
        self.times = StepTimes(self.path / "steps.ring", lambda: self.now_s)
        self.trainer = Trainer([self.path / "steps.ring"])

    def send(self, pieces: int) -> float:
        """Send pieces one after the other over the wire; the seconds it took."""
        began_s = self.now_s
        for _ in range(pieces):
            self.now_s += self.flow.pace(MEBIBYTE) + MEBIBYTE / self.wire_bytes_per_s
        return self.now_s - began_s

    def train(self, steps: int, step_s: float) -> None:
        for _ in range(steps):
            self.now_s += step_s
            self.times.ended()


async def test_slots_are_as_many_as_the_limit_says() -> None:
    flow, most, now = Flow(UploadSettings(parts_in_flight=4)), 0, 0

    async def part() -> None:
        nonlocal most, now
        async with flow.slot():
            now += 1
            most = max(most, now)
            await anyio.lowlevel.checkpoint()
            now -= 1

    async def parts(count: int) -> int:
        nonlocal most
        most = 0
        async with anyio.create_task_group() as group:
            for _ in range(count):
                group.start_soon(part)
        return most

    assert await parts(20) == 4
    flow.failed(StoreUnavailable("the connection broke"))
    assert flow.parts_limit == 4
    flow.failed(StoreBusy("SlowDown"))
    assert flow.parts_limit == 2
    assert await parts(2) == 2
    assert await parts(40) == 4  # each window of parts that the store takes allows one more


async def test_what_is_limited_is_limited_for_all_threads(tmp_path: Path) -> None:
    world = World(tmp_path, UploadSettings(max_bandwidth_bytes_per_s=10 * MEBIBYTE))
    waits = list[float]()

    def ask() -> None:
        waits.extend(world.flow.pace(MEBIBYTE) for _ in range(25))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert max(waits) == pytest.approx(9.9, abs=0.11)  # of a hundred pieces the last has 99 before it
    assert len({round(wait_s, 6) for wait_s in waits}) > 95  # each its own turn


async def test_a_slow_line_has_few_connections_and_long_deadlines(tmp_path: Path) -> None:
    world = World(tmp_path, UploadSettings(max_bandwidth_bytes_per_s=3 * MEBIBYTE))
    assert world.flow.parts_limit == 3
    world = World(tmp_path, UploadSettings(max_bandwidth_bytes_per_s=64 * 1024))
    assert world.flow.parts_limit == 1
    assert world.flow.slowest_bytes_per_s() == 64 * 1024 / 8 / 2
    assert World(tmp_path).flow.slowest_bytes_per_s() == SLOWEST_BYTES_PER_S


async def test_an_upload_that_slows_the_steps_is_slowed_and_what_it_does_is_shown(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.flow.state().pacing is None
    with world.flow.pacing("run", world.trainer):
        world.train(40, 1.0)
        async with world.flow.slot():
            world.send(200)
            full = world.flow.state()
            assert full.pacing == 1.0
            assert full.bandwidth_limit_bytes_per_s is None
            assert full.bandwidth_bytes_per_s == pytest.approx(100e6, rel=0.02)
            for _ in range(10):
                world.train(10, 1.2)
                world.send(2)
            slow = world.flow.state()
            assert slow.pacing == FLOOR
            assert slow.bandwidth_limit_bytes_per_s == pytest.approx(5e6, rel=0.25)
            assert slow.parts_limit == 3  # of 8: a MiB a second each
            assert world.send(50) == pytest.approx(50 * MEBIBYTE / 4e6, rel=0.1)
            for _ in range(20):
                world.train(10, 1.0)
                world.send(2)
            assert world.flow.state().pacing == 1.0
            assert world.send(100) == pytest.approx(100 * MEBIBYTE / 100e6, rel=0.05)
    assert world.flow.state().pacing is None


async def test_one_percent_is_the_line_and_the_way_back_is_open(tmp_path: Path) -> None:
    """Over the ring that a trainer writes, the decision, and the bytes that are let through."""
    world = World(tmp_path)

    def sent_bytes(step_s: float, steps: int) -> int:
        """Send as fast as is allowed while a trainer makes steps of this length."""
        sent, free_s = 0, world.now_s
        for _ in range(steps):
            ends_s = world.now_s + step_s
            while free_s < ends_s:
                world.now_s = free_s
                free_s += world.flow.pace(MEBIBYTE) + MEBIBYTE / world.wire_bytes_per_s
                sent += MEBIBYTE
            world.now_s = ends_s
            world.times.ended()
        return sent

    with world.flow.pacing("run", world.trainer):
        world.train(60, 1.0)
        async with world.flow.slot():
            full = sent_bytes(1.0, 20) / 20
            tolerated = [sent_bytes(1.009, 10) / 10 / full for _ in range(5)]
            slowed = [sent_bytes(1.011, 10) / 10 / full for _ in range(6)]
            back = [sent_bytes(1.0, 10) / 10 / full for _ in range(20)]
    assert tolerated == pytest.approx([1.0] * 5, rel=0.02)
    assert slowed == sorted(slowed, reverse=True)
    assert slowed[-1] < 0.2
    assert back == sorted(back)
    assert back[-1] == pytest.approx(1.0, rel=0.02)


async def test_part_sizes_follow_what_is_measured(tmp_path: Path) -> None:
    flow = World(tmp_path, UploadSettings(part_size_bytes=16 * MEBIBYTE)).flow
    assert flow.part_size(1024**4) == flow.part_size_bytes == 16 * MEBIBYTE
    flow.sent(1000, 0.05)
    flow.sent(16 * MEBIBYTE, 0.05 + 16 * MEBIBYTE / 50e6)
    assert flow.part_size(1024**4) == 48 * MEBIBYTE
    assert flow.part_size(200 * MEBIBYTE) == 24 * MEBIBYTE  # eight at once
    assert flow.part_size(10 * MEBIBYTE) == 16 * MEBIBYTE


async def test_what_goes_to_a_directory_is_bounded_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, waits = World(tmp_path, UploadSettings(max_bandwidth_bytes_per_s=MEBIBYTE)), list[float]()
    monkeypatch.setattr("uploader.store.local.time.sleep", waits.append)
    source = tmp_path / "source"
    source.write_bytes(bytes(4 * MEBIBYTE))
    with source.open("rb") as file:
        body = FileSlice(file.fileno(), 0, 4 * MEBIBYTE, str(source))
        async with open_store(Location("", str(tmp_path / "remote")), StorageSettings(), world.flow) as store:
            await store.put("key", body)
    assert sum(waits) == pytest.approx(0 + 1 + 2 + 3, abs=0.5)  # by a clock that stands still


def test_runs_share_the_flow_of_their_endpoint() -> None:
    flows = Flows(max_bandwidth_bytes_per_s=MEBIBYTE)
    bucket, other = Location.parse("s3://bucket/a", field=""), Location.parse("s3://other/b", field="")
    here, there = StorageSettings(endpoint_url="http://here"), StorageSettings(endpoint_url="http://there")
    one = flows.to(bucket, here, UploadSettings())
    assert one.parts_limit == 1
    assert flows.to(other, here, UploadSettings(part_size_bytes=8 * MEBIBYTE)) is one
    assert one.part_size_bytes == 8 * MEBIBYTE
    assert flows.to(bucket, there, UploadSettings()) is not one
    assert flows.to(bucket, StorageSettings(), UploadSettings()) not in (one,)
    assert flows.to(Location.parse("/disk", field=""), here, UploadSettings()) is not one
