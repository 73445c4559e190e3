"""Committed steps on disk, and the wake-up."""

from contextlib import aclosing
from pathlib import Path

import anyio
import pytest
from steps import make_step, node_record

from uploader import inotify, watch
from uploader.errors import CorruptError, DiskError
from uploader.layout import RunDirectory
from uploader.layout import node_record as record_name
from uploader.watch import LocalSteps, changes, read_step

pytestmark = pytest.mark.anyio


def test_only_committed_steps_are_seen(directory: RunDirectory) -> None:
    make_step(directory, 2)
    make_step(directory, 10)
    directory.temporary(11, 1).mkdir()
    directory.step(12).mkdir()  # no record: not committed, or being pruned
    directory.step(13).touch()
    (directory.path / "step_014").mkdir()
    steps, errors = LocalSteps(directory).scan()
    assert [one.name for one in steps] == ["step_10@g1", "step_2@g1"]
    assert errors == []
    assert LocalSteps(RunDirectory(directory.path / "none")).scan() == ([], [])


def test_a_record_is_read_once_and_again_when_replaced(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_step(directory, 1)
    steps, reads = LocalSteps(directory), []

    def counted(path: Path, *, node: int = 0) -> watch.LocalStep:
        reads.append(path)
        return read_step(path, node=node)

    monkeypatch.setattr(watch, "read_step", counted)
    assert steps.scan() == steps.scan()
    assert len(reads) == 1
    directory.step(1).rename(directory.path / "away")
    make_step(directory, 1, 2)
    assert [one.name for one in steps.scan()[0]] == ["step_1@g2"]


def test_a_record_that_is_not_whole_fails_its_step_only(directory: RunDirectory) -> None:
    make_step(directory, 1)
    broken = make_step(directory, 2).path / record_name(0)
    broken.write_bytes(broken.read_bytes()[:-20])
    steps, errors = LocalSteps(directory).scan()
    assert [one.step for one in steps] == [1]
    assert [error.subject for error in errors] == [str(broken)]


def test_the_record_of_another_step_is_corrupt(directory: RunDirectory) -> None:
    path = make_step(directory, 1).path
    (path / record_name(0)).write_bytes(node_record(7).encode())
    with pytest.raises(CorruptError, match="it is the record of step_7"):
        read_step(path)


def test_each_node_sees_its_own(directory: RunDirectory) -> None:
    make_step(directory, 1, node=1, nodes=2)
    assert LocalSteps(directory).scan() == ([], [])
    assert len(LocalSteps(directory, node=1).scan()[0]) == 1


def test_a_directory_that_cannot_be_read_is_named(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DiskError, match=f"looking at {directory.path}"):
        LocalSteps(directory).scan()


async def test_the_first_look_is_at_once_and_a_rename_wakes(directory: RunDirectory) -> None:
    with anyio.fail_after(30):
        async with aclosing(changes(directory.path, poll_s=0.05)) as wakes:
            await anext(wakes)
            make_step(directory, 1)
            await anext(wakes)


async def test_a_directory_that_goes_is_polled_on(directory: RunDirectory) -> None:
    with anyio.fail_after(30):
        async with aclosing(changes(directory.path, poll_s=0.05)) as wakes:
            await anext(wakes)
            await anext(wakes)
            directory.path.rmdir()
            for _ in range(3):
                await anext(wakes)


async def test_without_inotify_it_is_polled(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(inotify.ctypes, "CDLL", lambda *_, **__: object())
    with anyio.fail_after(30):
        async with aclosing(changes(directory.path, poll_s=0.01)) as wakes:
            for _ in range(3):
                await anext(wakes)


async def test_a_directory_that_is_not_there_is_named(directory: RunDirectory) -> None:
    with pytest.raises(FileNotFoundError, match="none"):
        async with aclosing(changes(directory.path / "none", poll_s=1)) as wakes:
            await anext(wakes)


def test_events_are_names() -> None:
    def event(name: bytes, size_bytes: int) -> bytes:
        return inotify.EVENT.pack(1, 2, 0, size_bytes) + name.ljust(size_bytes, b"\0")

    assert [*inotify.names_in(event(b"step_1", 16) + event(b"", 0) + event(b".lock", 8))] == [
        b"step_1",
        b"",
        b".lock",
    ]
