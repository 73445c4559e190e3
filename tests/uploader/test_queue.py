"""The durable queue: nothing is lost but a torn tail, and no event falls between reading and deleting."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader import queue
from uploader.events import CheckpointSaved, Event, RunFinished
from uploader.queue import EventQueue


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events-rank00000.jsonl"


def saved(step: int) -> CheckpointSaved:
    return CheckpointSaved(generation=1, step=step)


def test_events_come_in_order_until_acknowledged(path: Path) -> None:
    events: list[Event] = [saved(1), saved(2), RunFinished(generation=1, step=2)]
    reader = EventQueue(path)
    assert reader.receive() == []
    for event in events:
        queue.put(path, event)
    assert reader.receive() == events
    reader.acknowledge(saved(1))
    assert reader.receive() == events[1:]
    assert EventQueue(path).receive() == events  # a restart hears them again
    for event in events[1:]:
        reader.acknowledge(event)
    assert not path.exists()
    assert reader.receive() == []


def test_a_new_file_is_read_from_its_start_even_where_it_gets_the_same_inode(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def same_inode(descriptor: int) -> os.stat_result:
        fields = list(fstat(descriptor))
        fields[1] = 42
        return os.stat_result(fields)

    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", same_inode)
    reader = EventQueue(path)
    for step in (1, 2):
        queue.put(path, saved(step))
        assert reader.receive() == [saved(step)]
        reader.acknowledge(saved(step))
    for step in (333333, 4):  # deleted by somebody else, and shorter
        queue.put(path, saved(step))
        assert reader.receive() == [saved(step)]
        path.unlink()


@given(st.data())
def test_a_torn_tail_costs_only_itself(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("torn") / "events"
    for step in (1, 2):
        queue.put(path, saved(step))
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    length = data.draw(st.integers(first, len(whole)))
    path.write_bytes(whole[:length])
    reader = EventQueue(path)
    expected = [saved(1)] if length < len(whole) else [saved(1), saved(2)]
    assert reader.receive() == expected
    queue.put(path, saved(3))
    survived = [saved(2)] if length >= len(whole) - 1 else []  # only its newline was torn off
    assert reader.receive() == [saved(1), *survived, saved(3)]


def test_an_event_of_a_newer_trainer_is_passed_over(path: Path) -> None:
    path.write_bytes(b'{"type":"shard_finished","generation":1,"step":3,"shard":4}\n\n\x00\xff\n')
    queue.put(path, saved(3))
    reader = EventQueue(path)
    assert reader.receive() == [saved(3)]
    reader.acknowledge(saved(3))
    assert not path.exists()


def test_what_came_after_the_last_look_keeps_the_file(path: Path) -> None:
    queue.put(path, saved(1))
    reader = EventQueue(path)
    reader.receive()
    queue.put(path, saved(2))
    reader.acknowledge(saved(1))
    assert reader.receive() == [saved(2)]


def test_a_file_that_goes_while_a_writer_waits_for_it_takes_no_event_along(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(path, saved(1))
    reader = EventQueue(path)
    reader.receive()
    opened, unlink = threading.Event(), os.unlink
    flock = queue.fcntl.flock

    def noticed(descriptor: int, kind: int) -> None:
        if threading.current_thread() is not threading.main_thread():
            opened.set()
        flock(descriptor, kind)

    writer = threading.Thread(target=queue.put, args=(path, saved(2)))

    def unlink_late(target: Path) -> None:
        writer.start()
        assert opened.wait(10)  # it has the old file open and waits for our lock
        unlink(target)

    monkeypatch.setattr(queue.fcntl, "flock", noticed)
    monkeypatch.setattr(os, "unlink", unlink_late)
    reader.acknowledge(saved(1))
    writer.join()
    assert reader.receive() == [saved(2)]


def test_two_threads_lose_nothing(path: Path) -> None:
    steps = range(300)
    reader, received = EventQueue(path), []
    writer = threading.Thread(target=lambda: [queue.put(path, saved(step)) for step in steps])
    writer.start()
    while len(received) < len(steps):
        for event in reader.receive():
            received.append(event)
            reader.acknowledge(event)
    writer.join()
    assert received == [saved(step) for step in steps]
    assert not path.exists()


def test_a_write_that_takes_less_than_all_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, at: pwrite(descriptor, data[:7], at))
    queue.put(path, saved(1))
    assert EventQueue(path).receive() == [saved(1)]


def test_a_full_disk_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space"):
        queue.put(path, saved(1))
