"""Saving never holds the training up, never tears, never loses an error, and leaves no thread behind."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from toys import OPTIMIZERS, Counter, bits, describe, frozen, make_net, train_step

from uploader.errors import DiskError, WmtpError
from uploader.events import CheckpointSaved, Event, RunFinished, ShardSaved
from uploader.layout import RunDirectory
from uploader.queue import EventQueue
from uploader.restore import check
from uploader.watch import LocalSteps, read_step
from wmtp.checkpoint.copying import Landing
from wmtp.checkpoint.disk import Answer, Clear, Disk, Operation, Write
from wmtp.checkpoint.load import apply, read_checkpoint
from wmtp.checkpoint.saver import Saved, Saver
from wmtp.checkpoint.snapshot import Snapshot

DEADLINE_S = 30.0
WIDE = 20_000  # parameters and buffers that are copied behind the training's back


def steps_announced(directory: RunDirectory) -> list[Event]:
    """The queue's events but for the hints that a file of a step is complete."""
    events = EventQueue(directory.events(0)).receive()
    return [event for event in events if not isinstance(event, ShardSaved)]


class GatedDisk(Disk):
    """Stands before its first operation until told; then fails where it is told to."""

    def __init__(self) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()
        self.refuse: Callable[[Operation], bool] = lambda _: False

    def perform(self, operation: Operation) -> Answer:
        if isinstance(operation, Clear):
            self.reached.set()
            assert self.gate.wait(DEADLINE_S)
        if self.refuse(operation):
            raise DiskError("No space left on device", doing="writing", subject="x", hint="free some space")
        return super().perform(operation)


class GatedSnapshot:
    """Holds up the copy of every snapshot until told.

    Args:
        files: how many files are whole before it stops.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, files: int = 0) -> None:
        self.reached, self.gate = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        real = Snapshot.copy

        def copy(snapshot: Snapshot, landing: Landing) -> None:
            if files:
                real(snapshot, GatedLanding(landing, files, self._wait))
            else:
                self._wait()
                real(snapshot, landing)

        monkeypatch.setattr(Snapshot, "copy", copy)

    def _wait(self) -> None:
        self.reached.set()
        assert self.gate.wait(DEADLINE_S)
        if self.error is not None:
            raise self.error


class GatedLanding(Landing):
    """Tells of the first files, and stops the copier there."""

    def __init__(self, landing: Landing, files: int, wait: Callable[[], None]) -> None:
        super().__init__()
        self._landing, self._stop_at, self._wait = landing, files, wait

    def reached(self, files: int) -> None:
        self._landing.reached(files)
        if files == self._stop_at:
            self._wait()


class WatchedDisk(Disk):
    """Tells which files are written."""

    def __init__(self) -> None:
        self.written: SimpleQueue[str] = SimpleQueue()

    def perform(self, operation: Operation) -> Answer:
        answer = super().perform(operation)
        if isinstance(operation, Write):
            self.written.put(operation.path.name)
        return answer


@contextmanager
def saver(directory: RunDirectory, model: nn.Module, *optimizers: Optimizer, **more: Any) -> Iterator[Saver]:
    named = {f"o{number}": one for number, one in enumerate(optimizers)}
    more = {"extra": {}, **more}
    with Saver(directory, describe(0), model=model, optimizers=named, **more) as one:
        yield one


def loaded(directory: RunDirectory, step: int) -> dict[str, Any]:
    """The bits of every tensor of a step on disk."""
    local = read_step(directory.step(step))
    check(local.path, local.record.files)
    return {name: bits(one) for name, one in read_checkpoint(local.path, local.record).tensors.items()}


def model_bits(model: nn.Module) -> dict[str, Any]:
    return {name: bits(one) for name, one in model.state_dict().items()}


def steps_in(directory: RunDirectory) -> list[int]:
    return [one.step for one in LocalSteps(directory).scan()[0]]


def test_a_save_becomes_a_step(directory: RunDirectory) -> None:
    model = make_net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    counter = Counter(3)
    ended: list[Saved] = []
    with saver(
        directory, model, optimizer, extra={"counter": counter}, about={"by": "test"}, on_saved=ended.append
    ) as one:
        train_step(model, optimizer, before=one.fence)
        expected = model_bits(model)
        assert one.save(1, metrics={"loss": 0.5})
        one.wait()
    local = read_step(directory.step(1))
    assert local.record.metrics == {"loss": 0.5}
    assert local.record.fingerprints == {"model": "toy"}
    (saved,) = one.saved
    assert ended == [saved]
    assert (saved.step, saved.size_bytes, saved.error) == (1, local.record.size_bytes, None)
    assert saved.copy_ms is not None
    assert saved.local_ms is not None
    assert 0 < saved.copy_ms < saved.local_ms
    assert {name: one for name, one in loaded(directory, 1).items() if name in expected} == expected
    tree = read_checkpoint(local.path, local.record).tree
    assert tree["extra"] == {"counter": {"value": 3}}
    assert tree["about"] == {"by": "test"}
    assert steps_announced(directory) == [CheckpointSaved(generation=1, step=1)]


def test_save_returns_before_anything_is_written(directory: RunDirectory) -> None:
    disk = GatedDisk()
    with saver(directory, make_net(), disk=disk) as one:
        assert one.save(1)
        assert disk.reached.wait(DEADLINE_S)
        assert one.busy
        assert steps_in(directory) == []
        assert one.saved[0].local_ms is None
        disk.gate.set()
        one.wait()
        assert not one.busy
    assert steps_in(directory) == [1]


def test_a_save_that_meets_a_busy_one_is_skipped_and_counted(directory: RunDirectory) -> None:
    disk = GatedDisk()
    with saver(directory, make_net(), disk=disk) as one:
        assert one.save(1)
        assert not one.save(2)
        assert not one.save(3)
        assert (one.skipped, one.last_step) == (2, 1)
        disk.gate.set()
        one.wait()
        assert one.save(4)
    assert steps_in(directory) == [4, 1]
    assert [saved.step for saved in one.saved] == [1, 4]


def test_a_save_that_must_be_waits_for_the_busy_one(directory: RunDirectory) -> None:
    disk = GatedDisk()
    with saver(directory, make_net(), disk=disk) as one:
        assert one.save(1)
        assert disk.reached.wait(DEADLINE_S)
        began = threading.Event()

        def force() -> None:
            began.set()
            assert one.save(2, wait_if_busy=True)

        thread = threading.Thread(target=force)
        thread.start()
        assert began.wait(DEADLINE_S)
        assert [saved.step for saved in one.saved] == [1]
        disk.gate.set()
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        one.wait()
    assert steps_in(directory) == [2, 1]
    assert one.skipped == 0


@pytest.mark.parametrize("visible", [True, False])
def test_no_step_is_taken_before_the_copy_is_done(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, visible: bool
) -> None:
    model = make_net(width=WIDE)
    optimizer = SGD(model.parameters(), lr=0.1)
    snapshot = GatedSnapshot(monkeypatch)
    stepped = threading.Event()
    with saver(directory, model, optimizer) as one:
        expected = model_bits(model)
        assert one.save(1)
        assert snapshot.reached.wait(DEADLINE_S)

        def step() -> None:
            train_step(model, optimizer, before=one.fence if visible else lambda: None)
            stepped.set()

        thread = threading.Thread(target=step)
        thread.start()
        assert not stepped.wait(0.2)  # with the gate shut it never comes; a fence that is open fails here
        assert bits(model.first.weight) == expected["first.weight"]
        snapshot.gate.set()
        assert stepped.wait(DEADLINE_S)
        thread.join()
        one.wait()
    assert bits(model.first.weight) != expected["first.weight"]
    assert loaded(directory, 1) == expected


def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file is copied by a call of its own."""
    monkeypatch.setattr("wmtp.checkpoint.copying.BATCH_BYTES", 1)


def test_a_file_is_written_as_soon_as_it_is_copied(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    snapshot, disk = GatedSnapshot(monkeypatch, files=1), WatchedDisk()
    model = make_net(width=WIDE)
    with saver(directory, model, disk=disk, shard_size_bytes=4 * WIDE) as one:
        expected = model_bits(model)
        assert one.save(1)
        assert disk.written.get(timeout=DEADLINE_S) == "model-rank00000-0001.safetensors"
        assert snapshot.reached.is_set() and not snapshot.gate.is_set()  # the others are not even copied
        assert disk.written.empty()
        snapshot.gate.set()
        one.wait()
    assert loaded(directory, 1) == expected


def test_a_copy_that_fails_after_the_first_file_commits_nothing(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_batches(monkeypatch)
    snapshot, disk = GatedSnapshot(monkeypatch, files=1), WatchedDisk()
    snapshot.error = RuntimeError("no such luck")
    with saver(directory, make_net(width=WIDE), disk=disk, shard_size_bytes=4 * WIDE) as one:
        assert one.save(1)
        disk.written.get(timeout=DEADLINE_S)
        snapshot.gate.set()
        with pytest.raises(WmtpError, match="step_1: the snapshot failed"):
            one.fence()
        one.wait()
        assert one.saved[0].error is not None
    assert steps_in(directory) == []
    assert not directory.temporary(1, 1).exists()


def test_steps_saved_while_training_goes_on_are_whole(directory: RunDirectory) -> None:
    """A thousand times the size at which tensors are taken at once, changed right after the fence."""
    model = make_net(width=WIDE)
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    expected: dict[int, Any] = {}
    with saver(directory, model, optimizer, shard_size_bytes=100_000) as one:
        for step in range(1, 9):
            train_step(model, optimizer, before=one.fence)
            if step % 2 == 0:
                expected[step] = model_bits(model)
                assert one.save(step, wait_if_busy=True)
        one.wait()
    for step, state in expected.items():
        on_disk = loaded(directory, step)
        assert {name: on_disk[name] for name in state} == state


def test_an_optimizer_that_has_no_state_yet(directory: RunDirectory) -> None:
    model = make_net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    with saver(directory, model, optimizer) as one:
        assert one.save(0)
        train_step(model, optimizer)
        assert one.save(1, wait_if_busy=True)
        one.wait()
    assert not any(name.startswith("optim") for name in loaded(directory, 0))
    assert sum(name.startswith("optim") for name in loaded(directory, 1)) == 3 * 6


def test_laying_out_memory_never_overtakes_a_save(directory: RunDirectory) -> None:
    """Of two optimizers only the first has its state when the memory is laid out; then a save comes."""
    model = make_net()
    first = SGD(model.first.parameters(), lr=0.1, momentum=0.9)
    rest = SGD([*model.norm.parameters(), *model.last.parameters()], lr=0.1, momentum=0.9)
    gate = threading.Event()
    with saver(directory, model, first, rest) as one:
        one._copier.submit(gate.wait)  # the thread is late, as on a busy machine
        train_step(model, first, rest)
        expected = model_bits(model)
        assert one.save(1)
        gate.set()
        one.wait()
        assert one.save(2)
        one.wait()
    for step in (1, 2):
        on_disk = loaded(directory, step)
        assert len(on_disk) == len(expected) + 6
        assert {name: on_disk[name] for name in expected} == expected


# --- errors ------------------------------------------------------------------------------------------------


def test_a_write_that_fails_is_told_and_the_next_may_succeed(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    disk = GatedDisk()
    disk.gate.set()
    disk.refuse = lambda operation: isinstance(operation, Write)
    ended: list[Saved] = []
    with saver(directory, model, optimizer, disk=disk, on_saved=ended.append) as one:
        assert one.save(1)
        one.wait()
        train_step(model, optimizer)  # training is not held up by it
        (saved,) = ended
        assert isinstance(saved.error, DiskError)
        assert saved.local_ms is None
        assert "step_1 was not saved: writing x: No space left on device" in caplog.text
        with pytest.raises(DiskError, match="No space left"):
            one.finish(1)
        assert steps_announced(directory) == []
        disk.refuse = lambda _: False
        assert one.save(2)
        one.finish(2)
    assert steps_in(directory) == [2]
    events = steps_announced(directory)
    assert events == [CheckpointSaved(generation=1, step=2), RunFinished(generation=1, step=2)]


def test_a_bug_while_writing_is_told_too(directory: RunDirectory) -> None:
    class Broken(Disk):
        def perform(self, operation: Operation) -> Answer:
            raise KeyError("a bug")

    with saver(directory, make_net(), disk=Broken()) as one:
        assert one.save(1)
        one.wait()
        with pytest.raises(WmtpError, match="saving step_1: KeyError: 'a bug'"):
            one.finish(1)


def test_a_copy_that_fails_is_an_error_at_the_fence(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = GatedSnapshot(monkeypatch)
    snapshot.error = RuntimeError("no such luck")
    snapshot.gate.set()
    with saver(directory, make_net(width=WIDE)) as one:
        assert one.save(1)
        with pytest.raises(WmtpError, match="step_1: the snapshot failed"):
            one.fence()
        one.wait()
        assert one.saved[0].error is not None
        with pytest.raises(WmtpError, match="no such luck"):
            one.finish(1)
    assert steps_in(directory) == []


def test_a_step_that_failed_can_be_saved_again(directory: RunDirectory) -> None:
    disk = GatedDisk()
    disk.gate.set()
    disk.refuse = lambda operation: isinstance(operation, Write)
    with saver(directory, make_net(), disk=disk) as one:
        one.save(5)
        one.wait()
        assert one.last_step != 5  # what is saved, not what was tried
        disk.refuse = lambda _: False
        one.save(5)
        one.finish(5)
    assert steps_in(directory) == [5]


def test_a_listener_that_fails_does_not_stop_the_saver(directory: RunDirectory) -> None:
    def fail(_: Saved) -> None:
        raise RuntimeError("a listener's bug")

    with saver(directory, make_net(), on_saved=fail) as one:
        assert one.save(1)
        one.wait()
        assert one.save(2, wait_if_busy=True)
        assert one._job is not None
        assert one._job.done.wait(5)
    assert steps_in(directory) == [2, 1]


def test_finish_without_a_save_announces_the_end(directory: RunDirectory) -> None:
    with saver(directory, make_net()) as one:
        one.finish(0)
    assert EventQueue(directory.events(0)).receive() == [RunFinished(generation=1, step=0)]


# --- ends --------------------------------------------------------------------------------------------------


def wmtp_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("wmtp")]


def test_close_lets_the_running_save_end_and_leaves_nothing(directory: RunDirectory) -> None:
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with saver(directory, model, optimizer) as one:
        one.save(1)
        assert wmtp_threads()
    assert steps_in(directory) == [1]
    assert wmtp_threads() == []
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_two_hundred_saves_leave_no_threads_and_no_open_files(directory: RunDirectory) -> None:
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    with saver(directory, model, optimizer) as one:
        for step in range(1, 6):
            one.save(step, wait_if_busy=True)
        one.wait()
        threads, files = threading.active_count(), open_files()
        for step in range(6, 201):
            train_step(model, optimizer)
            assert one.save(step, wait_if_busy=True)
        one.wait()
        assert (threading.active_count(), open_files()) == (threads, files)
    assert len(steps_in(directory)) == 200


def test_the_same_weights_twice_are_noticed(
    directory: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    with saver(directory, model, optimizer) as one:
        for step in (1, 2):
            train_step(model, optimizer)
            one.save(step, wait_if_busy=True)
        one.save(3, wait_if_busy=True)
        one.wait()
        assert [saved.stale for saved in one.saved] == [False, False, True]
    assert "step_3 has the very weights of the save before" in caplog.text


def test_what_was_saved_can_be_applied(directory: RunDirectory, tmp_path: Path) -> None:
    model = make_net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    counter = Counter(7)
    with saver(directory, model, optimizer, extra={"counter": counter}) as one:
        train_step(model, optimizer)
        one.save(1)
        one.wait()
    other, its_counter = make_net(1), Counter()
    its_optimizer = OPTIMIZERS["adamw"](other.parameters())
    local = read_step(directory.step(1))
    apply(read_checkpoint(local.path, local.record), other, {"o0": its_optimizer}, {"counter": its_counter})
    assert model_bits(other) == model_bits(model)
    assert frozen(its_optimizer.state_dict()) == frozen(optimizer.state_dict())
    assert its_counter.value == 7
    assert torch.equal(other.norm.num_batches_tracked, torch.tensor(1))
