"""One trainer holds a run directory; what a dead one left half done goes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from toys import make_step

from uploader.errors import DiskError, NothingToResume, OwnershipError
from uploader.files import is_locked
from uploader.layout import RunDirectory
from uploader.record import NodeRecord
from uploader.run import RunFile
from uploader.watch import LocalSteps
from wmtp.checkpoint import session
from wmtp.checkpoint.session import take_over, trainer_lock
from wmtp.settings.resume import Resume

HOLD = """
import sys
from uploader import files
lock = files.lock(__import__("pathlib").Path(sys.argv[1]))
print(lock is not None, flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "True\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOCK_ATTEMPTS", 2)
    monkeypatch.setattr(session, "LOCK_WAIT_S", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_living_trainer_keeps_its_directory(directory: RunDirectory) -> None:
    directory.temporary(5, 1).mkdir()
    with held_by_another_process(directory.trainer_lock):
        says = r"another trainer is running on it.*--run-name"
        with pytest.raises(OwnershipError, match=says) as caught, trainer_lock(directory):
            pass
        assert str(directory.path) in caught.value.subject
        assert directory.temporary(5, 1).exists()  # it is being written
    with trainer_lock(directory):  # the kernel freed the lock when the process died
        assert is_locked(directory.trainer_lock)
        assert not directory.temporary(5, 1).exists()
    assert not is_locked(directory.trainer_lock)


def test_a_lock_that_is_taken_for_an_instant_is_tried_again(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held_by_another_process(directory.trainer_lock) as process:

        def let_go(_: float) -> None:
            process.kill()
            process.wait()

        monkeypatch.setattr(session.time, "sleep", let_go)
        with trainer_lock(directory):
            assert is_locked(directory.trainer_lock)


def test_a_directory_is_made_where_there_is_none(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "some" / "where" / "run")
    with trainer_lock(directory):
        assert directory.path.is_dir()
        assert directory.path.stat().st_mode & 0o077 == 0


def test_what_a_dead_trainer_left_is_cleared_and_nothing_else(directory: RunDirectory) -> None:
    make_step(directory, 5)
    for name in ("step_6.g1.tmp", ".fork", ".fork.tmp"):
        (directory.path / name).mkdir()
        (directory.path / name / "data.bin").write_bytes(b"half")
    (directory.path / ".run.json.123.tmp").write_bytes(b"{")
    kept = {"notes.tmp", "run.json", "metrics.jsonl"}
    for name in kept:
        (directory.path / name).write_bytes(b"")
    with trainer_lock(directory):
        left = {path.name for path in directory.path.iterdir()}
    assert left == kept | {"step_5", "events-rank00000.jsonl", ".trainer.lock"}


def test_the_lock_goes_when_clearing_fails(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    directory.temporary(5, 1).mkdir()

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    open_before = len(os.listdir("/proc/self/fd"))
    with monkeypatch.context() as patched:
        patched.setattr(session.files, "remove_tree", refuse)
        says = "Permission denied; give this user permission"
        with pytest.raises(DiskError, match=says), trainer_lock(directory):
            pass
    assert len(os.listdir("/proc/self/fd")) == open_before
    assert not is_locked(directory.trainer_lock)


def test_a_directory_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_bytes(b"")
    path = tmp_path / "run"
    with pytest.raises(DiskError, match=str(path)), trainer_lock(RunDirectory(path)):
        pass


def start(directory: RunDirectory, resume: Resume | None, loaded: list[str]) -> session.Started:
    def load(path: Path, record: NodeRecord) -> None:
        loaded.append((path / record.files[0].path).read_text())

    run = RunFile(run="run", destination=str(directory.path))
    return take_over(directory, run, resume, load, lambda _: None, fresh=False, store_timeout_s=1.0)


def test_take_over_resumes_and_writes_run_json(directory: RunDirectory) -> None:
    loaded: list[str] = []
    first = start(directory, None, loaded)
    assert RunFile.read(directory) == first.run
    make_step(directory, 5, first.run.generation)
    second = start(directory, Resume("latest", "latest"), loaded)
    assert (second.step, second.run.generation, loaded) == (5, 2, ["step 5 of generation 1"])
    assert RunFile.read(directory) == second.run
    assert [one.step for one in LocalSteps(directory).scan()[0]] == [5]


def test_take_over_raises_one_error_not_a_group(directory: RunDirectory) -> None:
    with pytest.raises(NothingToResume, match="there is no checkpoint"):
        start(directory, Resume("latest", "latest"), [])
