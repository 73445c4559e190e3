"""Durable file operations, and who may move a step's directory when."""

import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from uploader import files
from uploader.errors import DiskError


def test_directories_are_private_and_durable_in_their_parents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    files.make_directory(tmp_path / "a" / "b")
    assert synced == [tmp_path.parent, tmp_path, tmp_path / "a"]
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700


def test_a_directory_that_somebody_died_over_becomes_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by the simulation: killed between mkdir and fsync, then the power went."""
    synced: list[Path] = []
    (tmp_path / "a").mkdir()
    monkeypatch.setattr(files, "fsync_directory", synced.append)
    files.make_directory(tmp_path / "a")
    assert synced == [tmp_path]


def test_replace_leaves_the_old_bytes_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    files.replace(path, b"old")
    order: list[str] = []
    fsync, rename, directory = os.fsync, os.rename, files.fsync_directory
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("fsync"), fsync(fd)))
    monkeypatch.setattr(os, "rename", lambda *names: (order.append("rename"), rename(*names)))
    monkeypatch.setattr(files, "fsync_directory", lambda one: (order.append("directory"), directory(one)))
    files.replace(path, b"new")
    assert order[:3] == ["fsync", "rename", "directory"]
    assert path.read_bytes() == b"new"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        files.replace(path, b"newer")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["run.json"]


def test_an_error_of_the_disk_says_where_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DiskError) as caught, files.disk_errors("writing", tmp_path):
        raise OSError(28, "No space left on device", str(tmp_path / "x"))
    assert str(caught.value).startswith(f"writing {tmp_path / 'x'}: No space left on device; free some space")


def test_trash_is_out_of_sight_then_gone(tmp_path: Path) -> None:
    trash = tmp_path / ".trash"
    for number in range(2):
        (tmp_path / "step_1").mkdir()
        (tmp_path / "step_1" / "f").write_bytes(b"x")
        assert files.move_to_trash(tmp_path / "step_1", trash) == trash / f"step_1.{number}"
    files.empty_trash(trash)
    assert list(trash.iterdir()) == []  # it stays: somebody may be moving something into it
    files.empty_trash(tmp_path / "none")


def test_a_step_that_is_read_stays(tmp_path: Path) -> None:
    step, trash = tmp_path / "step_1", tmp_path / ".trash"
    step.mkdir()
    with files.held_for_reading(step), files.held_for_reading(step):
        assert not files.discard_unless_read(step, trash)
    assert files.discard_unless_read(step, trash)
    assert not files.discard_unless_read(step, trash)
    with pytest.raises(FileNotFoundError), files.held_for_reading(step):
        pass


def test_a_loader_that_waited_for_a_pruned_step_is_told(tmp_path: Path) -> None:
    step = tmp_path / "step_1"
    step.mkdir()
    descriptor = os.open(step, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    outcome: list[BaseException] = []

    def load() -> None:
        try:
            with files.held_for_reading(step):
                pass
        except FileNotFoundError as error:
            outcome.append(error)

    loader = threading.Thread(target=load)
    loader.start()
    files.move_to_trash(step, tmp_path / ".trash")
    os.close(descriptor)
    loader.join()
    assert len(outcome) == 1


def test_only_the_directory_that_is_meant_goes(tmp_path: Path) -> None:
    step, trash = tmp_path / "step_1", tmp_path / ".trash"
    step.mkdir()
    parent = os.open(tmp_path, os.O_RDONLY)

    def meant() -> bool:
        with pytest.raises(BlockingIOError):  # whoever moves something away must wait until we decided
            fcntl.flock(parent, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False

    assert not files.discard_unless_read(step, trash, meant=meant)
    assert step.exists()
    fcntl.flock(parent, fcntl.LOCK_EX)
    mover = threading.Thread(target=files.move_to_trash, args=(step, trash))
    mover.start()
    assert step.exists()
    os.close(parent)
    mover.join()
    assert not step.exists()


def test_a_lock_has_one_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not files.is_locked(path)
    held = files.lock(path)
    assert held is not None
    assert files.is_locked(path)
    assert files.lock(path) is None
    assert files.lock(path, shared=True) is None
    os.close(held)
    assert not files.is_locked(path)
    shared = files.lock(path, shared=True)
    assert shared is not None
    assert not files.is_locked(path)
    os.close(shared)


def test_looking_at_a_lock_never_costs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    looking = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as is_locked of another process does for an instant
    monkeypatch.setattr(files.time, "sleep", lambda _: fcntl.flock(looking, fcntl.LOCK_UN))
    held = files.lock(path)
    assert held is not None
    os.close(held)
    os.close(looking)


def test_a_tree_that_two_delete_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    rmtree, calls = files.shutil.rmtree, []

    def meet(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(path)
        rmtree(path)

    monkeypatch.setattr(files.shutil, "rmtree", meet)
    files.remove_tree(tree)
    assert not tree.exists()
