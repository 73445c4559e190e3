"""The uploader as its own process: one serves a run, a dead one is replaced, a vain wait ends in words."""

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from toys import NOW, make_step

from uploader import files, queue
from uploader.errors import DiskError, NotDurable
from uploader.events import RunFinished
from uploader.layout import RunDirectory
from uploader.run import RunFile
from uploader.status import Durable, Status
from wmtp.checkpoint import uploader_process
from wmtp.checkpoint.session import take_over
from wmtp.checkpoint.uploader_process import UploaderProcess

TIMEOUT_S = 60.0


class Rig:
    """A run directory whose store is elsewhere on this disk, and its uploader."""

    def __init__(self, tmp_path: Path) -> None:
        self.directory = RunDirectory(tmp_path / "disk" / "run")
        self.directory.path.mkdir(parents=True)
        self.destination = tmp_path / "store" / "run"
        self.said: list[str] = []
        self.uploader = UploaderProcess(self.directory, 1)

    def trained(self, *steps: int, finished: bool = True) -> None:
        """What a trainer leaves that took the run over, saved these steps, and ended."""
        run = RunFile(run="run", destination=str(self.destination))
        started = take_over(
            self.directory, run, None, lambda *_: None, self.said.append, fresh=False, store_timeout_s=5.0
        )
        assert started.run.generation == 1
        for step in steps:
            make_step(self.directory, step)
        if finished:
            queue.put(self.directory.events(0), RunFinished(generation=1, step=max(steps, default=0)))

    def wait(self, last_step: int | None, timeout_s: float = TIMEOUT_S) -> Status | None:
        return self.uploader.wait_until_drained(last_step, timeout_s=timeout_s, say=self.said.append)

    def show(self, **fields: object) -> None:
        """Write the status an uploader would."""
        self.directory.uploader_directory.mkdir(exist_ok=True)
        given = {"run": "run", "destination": "s3://b/run", "pid": 1, "generation": 1, "updated_at": NOW}
        self.directory.status_file.write_text(Status(**{**given, **fields}).model_dump_json())  # type: ignore[arg-type]

    @property
    def pid(self) -> int:
        assert self.uploader._process is not None
        return self.uploader._process.pid


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    process = rig.uploader._process
    if process is not None:
        process.terminate()
        process.wait(TIMEOUT_S)


@pytest.fixture
def sidecar(rig: Rig) -> Iterator[None]:
    """Another uploader serves the directory, and does nothing."""
    rig.directory.uploader_directory.mkdir()
    lock = files.lock(rig.directory.uploader_lock)
    assert lock is not None
    yield
    os.close(lock)


def test_a_finished_run_becomes_durable(rig: Rig) -> None:
    rig.trained(0)  # step 0 is a step, too
    rig.uploader.ensure()
    pid = rig.pid
    rig.uploader.ensure()
    assert rig.pid == pid
    assert os.getsid(pid) == pid  # Ctrl-C is not meant for it
    status = rig.wait(0)
    assert status is not None
    assert (status.state, status.newest_durable_step, status.error) == ("drained", 0, None)
    assert [line.split("  ")[:2] for line in rig.said] == [["step_0", "durable"]]
    assert list(rig.uploader.news()) == []  # told once
    assert (rig.destination / "step_0" / "g1" / "checkpoint.json").exists()
    assert rig.uploader._process is not None
    assert rig.uploader._process.wait(TIMEOUT_S) == 0


def test_an_uploader_that_is_killed_is_replaced(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.trained(10, 20)
    rig.uploader.ensure()
    killed = rig.pid
    os.kill(killed, signal.SIGKILL)
    assert rig.uploader._process is not None
    assert rig.uploader._process.wait(TIMEOUT_S) == -signal.SIGKILL
    status = rig.wait(20)
    assert status is not None
    assert status.newest_durable_step == 20
    assert rig.pid != killed


class Dead:
    """Programs in place of the uploader, which end at once; the trainer's clock stands still until told."""

    def __init__(self, rig: Rig, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        self.s, self.started, self.looks = 1000.0, 0, 0
        self.pid, self.returncode = 0, code
        is_locked = files.is_locked

        def start(*_: object, **__: object) -> "Dead":
            self.started += 1
            return self

        def look(path: Path) -> bool:
            self.looks += 1
            return is_locked(path)

        monkeypatch.setattr(uploader_process.subprocess, "Popen", start)
        monkeypatch.setattr(uploader_process.files, "is_locked", look)
        self.uploader = UploaderProcess(rig.directory, 1, clock=lambda: self.s)

    def poll(self) -> int:
        return self.returncode

    def steps(self, count: int, s: float) -> list[str]:
        """News of a trainer that makes so many steps in that time."""
        for _ in range(count):
            self.s += s / count
            self.uploader.look_after()
        return [*self.uploader.news()]


def test_one_that_is_killed_while_the_trainer_goes_on_is_started_again_within_a_second(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = Dead(rig, monkeypatch, -9)
    dead.uploader.ensure()
    dead.looks = 0
    told = dead.steps(100, 1.0)
    assert (dead.started, dead.looks) == (2, 1)  # a hundred steps look once
    assert told == ["uploader: it was killed by signal 9, and is started again"]
    assert len(dead.steps(1000, 100.0)) == uploader_process.RESTARTS - 1
    assert dead.started == 1 + uploader_process.RESTARTS  # then it is given up
    dead.uploader.look_after(anew=True)  # until the next save
    assert dead.started == 2 + uploader_process.RESTARTS
    assert len(dead.steps(1000, 100.0)) == 1 + uploader_process.RESTARTS


def test_one_that_failed_waits_for_the_next_save(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = Dead(rig, monkeypatch, 1)
    dead.uploader.ensure()
    rig.show(state="failed", error="access denied")
    assert dead.steps(10, 10.0) == ["uploader: access denied"]
    assert dead.started == 1
    dead.uploader.look_after(anew=True)
    assert [*dead.uploader.news()] == ["uploader: it ended with exit code 1, and is started again"]


@pytest.mark.usefixtures("sidecar")
def test_while_another_one_serves_none_is_started(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = Dead(rig, monkeypatch, -9)
    assert dead.steps(10, 10.0) == []
    assert (dead.started, dead.looks) == (0, 10)


def test_a_machine_that_can_start_nothing_ends_no_training(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "out of memory")

    monkeypatch.setattr(uploader_process.subprocess, "Popen", start)
    for _ in range(2):
        rig.uploader.look_after(anew=True)
    starting = (
        f"uploader: starting the uploader of {rig.directory.path}: Cannot allocate memory; check the disk"
    )
    assert [*rig.uploader.news()] == [starting, starting]


def test_one_that_serves_already_is_left_alone(rig: Rig, sidecar: None) -> None:
    rig.uploader.ensure()
    assert rig.uploader._process is None


def counted(monkeypatch: pytest.MonkeyPatch, executable: str) -> list[object]:
    """Starts another program in place of the uploader; what was started."""
    real, started = uploader_process.subprocess.Popen, []

    def start(arguments: list[str], **more: object) -> object:
        process = real([executable, *arguments[1:]], **more)  # type: ignore[call-overload]
        process.wait(TIMEOUT_S)
        started.append(arguments)
        return process

    monkeypatch.setattr(uploader_process.subprocess, "Popen", start)
    return started


def assert_says_what_to_do(error: NotDurable, directory: RunDirectory) -> None:
    assert error.exit_code == 3
    assert "\n" not in str(error)
    for part in ("safe on this disk", f"wmtp uploader --watch {directory.path}", str(directory.uploader_log)):
        assert part in error.hint


def test_one_that_dies_again_and_again_is_given_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    started = counted(monkeypatch, "/bin/false")
    with pytest.raises(NotDurable, match="the uploader dies again and again") as caught:
        rig.wait(10)
    assert len(started) == uploader_process.RESTARTS
    command = [sys.executable, "-m", "wmtp", "uploader", "--watch", str(rig.directory.path)]
    assert started[0] == [*command, "--nice", "10"]
    assert_says_what_to_do(caught.value, rig.directory)


@pytest.mark.usefixtures("sidecar")
@pytest.mark.parametrize(
    ("error", "says"), [(None, "not done within 0 s"), ("connection refused", "connection refused")]
)
def test_the_deadline_says_what_is_wrong(rig: Rig, error: str | None, says: str) -> None:
    rig.show(state="retrying", error=error, newest_durable_step=9)
    with pytest.raises(NotDurable, match=says) as caught:
        rig.wait(10, timeout_s=0.0)
    assert_says_what_to_do(caught.value, rig.directory)


@pytest.mark.usefixtures("sidecar")
@pytest.mark.parametrize(
    ("newest", "last", "covered"),
    [(10, 10, True), (11, 10, True), (9, 10, False), (0, 0, True), (None, 0, False), (None, None, True)],
)
def test_drained_counts_only_with_the_last_step(
    rig: Rig, newest: int | None, last: int | None, covered: bool
) -> None:
    rig.show(state="drained", newest_durable_step=newest)
    if covered:
        assert rig.wait(last, timeout_s=0.0) is not None
    else:
        with pytest.raises(NotDurable):
            rig.wait(last, timeout_s=0.0)


def test_a_store_that_refuses_ends_the_wait(rig: Rig) -> None:
    rig.trained(10)
    (rig.destination / "step_10").write_bytes(b"a file where a directory must be")
    rig.uploader.ensure()
    with pytest.raises(NotDurable) as caught:
        rig.wait(10)
    assert "step_10" in caught.value.problem
    assert_says_what_to_do(caught.value, rig.directory)
    assert any("step_10" in line for line in rig.said)
    assert rig.directory.uploader_log.stat().st_size > 0


def test_news_are_told_once(rig: Rig) -> None:
    def durable(step: int) -> Durable:
        return Durable(step=step, generation=1, size_bytes=2_500_000, upload_s=0.25, at=NOW)

    assert list(rig.uploader.news()) == []
    rig.show(recent=[durable(1)])
    assert list(rig.uploader.news()) == ["step_1  durable  2.5 MB in 0.25 s"]
    rig.show(recent=[durable(1), durable(2)], error="no route to host")
    assert list(rig.uploader.news()) == [
        "step_2  durable  2.5 MB in 0.25 s",
        "uploader: no route to host",
    ]
    assert list(rig.uploader.news()) == []
    rig.show(recent=[durable(2)])
    rig.show(recent=[durable(2)], error="no route to host")
    assert list(rig.uploader.news()) == []


def broken(rig: Rig) -> None:
    rig.directory.status_file.write_text("{")


def of_another_generation(rig: Rig) -> None:
    rig.show(generation=2)


@pytest.mark.parametrize("change", [broken, of_another_generation])
def test_a_status_that_is_not_ours_says_nothing(rig: Rig, change: Callable[[Rig], None]) -> None:
    rig.show()
    assert rig.uploader.status() is not None
    change(rig)
    assert rig.uploader.status() is None


def test_a_program_that_is_not_there_is_one_line(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(DiskError, match="starting the uploader of /nowhere/python"):
        rig.uploader.ensure()


def test_descriptors_are_handed_on(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[object] = []
    monkeypatch.setattr(
        uploader_process.subprocess, "Popen", lambda *_, **more: given.append(more["pass_fds"])
    )
    UploaderProcess(rig.directory, 1, inherited=[5]).ensure()
    assert given == [[5]]
