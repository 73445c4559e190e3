"""Ten lines around any loop: it resumes bit for bit, its steps become durable, an error never hangs it."""

import gc
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from toys import Counter, bits, damage, frozen, make_net

from uploader.errors import (
    DiskError,
    NothingToResume,
    OwnershipError,
    SettingsError,
    StartRefused,
    WmtpError,
)
from uploader.events import CheckpointSaved, RunFinished, ShardSaved
from uploader.files import is_locked
from uploader.layout import RunDirectory
from uploader.queue import EventQueue
from uploader.settings import UploadSettings
from uploader.watch import LocalSteps, read_step
from wmtp.checkpoint import checkpointer, session
from wmtp.checkpoint.checkpointer import Checkpointer, Options
from wmtp.checkpoint.disk import Answer, Disk, Operation, Write
from wmtp.checkpoint.state import Tree
from wmtp.checkpoint.uploader_process import UploaderProcess, Uploading

Example = Callable[..., tuple[nn.Module, Optimizer]]
TIMEOUT_S = 60.0
ALONE = Options(uploading=Uploading.NONE, say=lambda _: None)
QUICK = Options(upload=UploadSettings(idle_exit_s=0.0), say=lambda _: None)


@pytest.fixture(autouse=True)
def reaped(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Checkpointer]]:
    """Every uploader that a test starts is waited for: it ends by itself."""
    made: list[Checkpointer] = []
    real = Checkpointer.__init__

    def init(self: Checkpointer, *args: Any, **more: Any) -> None:
        made.append(self)
        real(self, *args, **more)

    monkeypatch.setattr(Checkpointer, "__init__", init)
    yield made
    for one in made:
        process = getattr(getattr(one, "_uploader", None), "_process", None)
        if process is not None:
            process.wait(TIMEOUT_S)
    made.clear()
    gc.collect()


def mean_square(model: nn.Module, step: int) -> Tensor:
    result: Tensor = model(torch.randn(16, 4) + step).square().mean()
    return result


@pytest.fixture
def example(reaped: list[Checkpointer]) -> Callable[..., tuple[nn.Module, Optimizer]]:
    """The example of the docstring, but for its paths; no step is so quick that a save is skipped."""

    def loss(model: nn.Module, step: int) -> Tensor:
        reaped[-1].wait()
        return mean_square(model, step)

    return partial(run_example, loss)


def run_example(
    loss: Callable[..., Tensor], directory: Path, to: str | None, steps: int, seed: int
) -> tuple[nn.Module, Optimizer]:
    code = textwrap.dedent((checkpointer.__doc__ or "").split("\n\n")[1])
    code = code.replace('"ckpt/run1"', repr(str(directory))).replace('"s3://bucket"', repr(to))
    code = code.replace("every=500", "every=3, options=options")
    assert code.count("\n") < 10
    model = make_net(seed)
    optimizer = SGD(model.parameters(), lr=0.01, momentum=0.9)
    exec(  # noqa: S102
        code,
        {
            "Checkpointer": Checkpointer, "model": model, "optimizer": optimizer, "loss": loss,
            "steps": steps, "options": QUICK,
        },
    )  # fmt: skip
    return model, optimizer


def everything(model: nn.Module, optimizer: Optimizer) -> Any:
    return frozen({"model": dict(model.state_dict()), "optim": optimizer.state_dict()})


@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_example_resumes_bit_for_bit(tmp_path: Path, example: Example, elsewhere: bool) -> None:
    to = f"file://{tmp_path / 'store'}" if elsewhere else None
    whole = everything(*example(tmp_path / "whole" / "run", None, 9, seed=0))
    random_after = torch.rand(3).tolist()

    run = tmp_path / "disk" / "run"
    example(run, to, 6, seed=0)
    assert LocalSteps(RunDirectory(run)).scan()[0][0].step == 6
    assert everything(*example(run, to, 9, seed=1)) == whole
    assert torch.rand(3).tolist() == random_after
    if elsewhere:
        stored = tmp_path / "store" / "run"
        assert (stored / "step_9" / "g2" / "checkpoint.json").exists()
        assert (stored / "manifest.json").exists()


def test_a_lost_disk_is_resumed_from_elsewhere(tmp_path: Path, example: Example) -> None:
    to = f"file://{tmp_path / 'store'}"
    whole = everything(*example(tmp_path / "whole" / "run", None, 9, seed=0))
    example(tmp_path / "one" / "run", to, 6, seed=0)
    assert everything(*example(tmp_path / "two" / "run", to, 9, seed=1)) == whole


class Loop:
    """A loop of one's own around a checkpointer without an uploader."""

    def __init__(self, path: Path, seed: int = 0, **more: Any) -> None:
        self.model = make_net(seed)
        self.optimizer = AdamW(self.model.parameters(), lr=0.01)
        self.directory = RunDirectory(path)
        more = {"options": ALONE, **more}
        self.checkpointer = Checkpointer(path, model=self.model, optimizer=self.optimizer, **more)

    def step(self) -> None:
        mean_square(self.model, 0).backward()
        self.checkpointer.fence()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def events(self) -> list[Any]:
        events = EventQueue(self.directory.events(0)).receive()
        return [event for event in events if not isinstance(event, ShardSaved)]

    def steps(self) -> list[int]:
        return [one.step for one in LocalSteps(self.directory).scan()[0]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_saves_come_when_they_are_due(path: Path) -> None:
    loop = Loop(path, every=10)
    with loop.checkpointer as ckpt:
        assert ckpt.restore("auto") == 0
        assert not ckpt.save(9)
        assert ckpt.save(10)
        ckpt.wait()
        loop.step()
        assert not ckpt.save(10)  # it is saved already
        assert not ckpt.save(13)
        assert ckpt.save(13, metrics={"loss": 0.5}, force=True)
    assert loop.steps() == [13, 10]
    assert [saved.step for saved in ckpt.saved] == [10, 13]
    assert read_step(loop.directory.step(13)).record.metrics == {"loss": 0.5}
    assert loop.events()[-1] == RunFinished(generation=1, step=13)


def test_without_an_interval_every_call_saves(path: Path) -> None:
    loop = Loop(path)
    with loop.checkpointer as ckpt:
        for step in (1, 2):
            loop.step()
            assert ckpt.save(step, force=True)
    assert loop.steps() == [2, 1]
    assert ckpt.started is not None  # the first save started from scratch


def test_the_step_resumed_from_is_not_saved_again(path: Path) -> None:
    first = Loop(path)
    with first.checkpointer as ckpt:
        ckpt.save(5)
    second = Loop(path, seed=1)
    with second.checkpointer as ckpt:
        assert ckpt.restore() == 5
        assert not ckpt.save(5, force=True)
        assert everything(second.model, second.optimizer) == everything(first.model, first.optimizer)
    assert read_step(first.directory.step(5)).record.generation == 1


def test_whatever_has_a_state_comes_along(path: Path) -> None:
    counter = Counter(3)
    with Loop(path, extra={"position": counter}).checkpointer as ckpt:
        ckpt.save(1)
    counter = Counter(0)
    with Loop(path, seed=1, extra={"position": counter}).checkpointer as ckpt:
        ckpt.restore()
    assert counter.value == 3
    with pytest.raises(StartRefused, match="extra state"), Loop(path, seed=1).checkpointer as ckpt:
        ckpt.restore()


def test_an_error_in_the_loop_ends_it_without_an_end_of_the_run(path: Path) -> None:
    loop = Loop(path)
    with pytest.raises(ZeroDivisionError), loop.checkpointer as ckpt:
        loop.step()
        ckpt.save(1)
        raise ZeroDivisionError
    assert loop.steps() == [1]  # the save it was at was brought to its end
    assert loop.events() == [CheckpointSaved(generation=1, step=1)]
    assert not is_locked(loop.directory.trainer_lock)


def test_after_an_error_the_uploader_drains_and_ends(tmp_path: Path, reaped: list[Checkpointer]) -> None:
    to = f"file://{tmp_path / 'store'}"
    with pytest.raises(ZeroDivisionError), Loop(tmp_path / "run", to=to, options=QUICK).checkpointer as ckpt:
        ckpt.save(1)
        raise ZeroDivisionError
    process = ckpt._uploader._process  # type: ignore[union-attr]
    assert process is not None
    assert process.wait(TIMEOUT_S) == 0
    assert (tmp_path / "store" / "run" / "step_1" / "g1" / "checkpoint.json").exists()


def test_detached_returns_at_once_and_the_uploader_goes_on(tmp_path: Path) -> None:
    options = Options(uploading=Uploading.DETACHED, upload=UploadSettings(idle_exit_s=0.0))
    to = f"file://{tmp_path / 'store'}"
    with Loop(tmp_path / "run", to=to, options=options).checkpointer as ckpt:
        ckpt.save(1)
    process = ckpt._uploader._process  # type: ignore[union-attr]
    assert process is not None
    assert process.wait(TIMEOUT_S) == 0
    assert (tmp_path / "store" / "run" / "step_1" / "g1" / "checkpoint.json").exists()


@pytest.mark.parametrize(
    ("uploading", "looks"), [(Uploading.DETACHED, [False, True, False, True]), (Uploading.NONE, [])]
)
def test_each_step_looks_after_the_uploader_and_a_save_gives_it_another_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uploading: Uploading, looks: list[bool]
) -> None:
    seen: list[bool] = []
    monkeypatch.setattr(UploaderProcess, "ensure", lambda self: None)
    monkeypatch.setattr(UploaderProcess, "look_after", lambda self, *, anew=False: seen.append(anew))
    loop = Loop(tmp_path / "run", every=2, options=Options(uploading=uploading, say=lambda _: None))
    with loop.checkpointer as ckpt:
        for step in range(1, 5):
            ckpt.save(step)
    assert seen == looks


def test_where_nothing_was_saved_the_uploader_alone_says_that_all_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step it went on from may be one that the store has pruned, and gets no more."""
    awaited: list[int | None] = []
    monkeypatch.setattr(UploaderProcess, "ensure", lambda self: None)
    monkeypatch.setattr(UploaderProcess, "look_after", lambda self, **_: None)
    monkeypatch.setattr(
        UploaderProcess, "wait_until_drained", lambda self, last_step, **_: awaited.append(last_step)
    )
    for saved in (5, None):
        with Loop(tmp_path / "run", options=QUICK).checkpointer as ckpt:
            ckpt.restore("auto")
            if saved is not None:
                ckpt.save(saved)
    assert awaited == [5, None]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A disk that takes nothing; call it to make room."""
    real = Disk.perform

    def perform(self: Disk, operation: Operation) -> Answer:
        if isinstance(operation, Write):
            raise DiskError("No space left on device", doing="writing", subject="x", hint="free some space")
        return real(self, operation)

    monkeypatch.setattr(Disk, "perform", perform)
    return lambda: monkeypatch.setattr(Disk, "perform", real)


def test_a_final_save_that_failed_is_the_end_of_the_program(
    path: Path, full_disk: Callable[[], None]
) -> None:
    loop = Loop(path)
    with pytest.raises(DiskError, match="No space left"), loop.checkpointer as ckpt:
        loop.step()
        ckpt.save(1)
    assert loop.events() == []
    assert loop.steps() == []


def test_a_save_that_failed_is_tried_again_at_the_end(path: Path, full_disk: Callable[[], None]) -> None:
    loop = Loop(path)
    with loop.checkpointer as ckpt:
        ckpt.save(1)
        ckpt.wait()
        full_disk()
        assert ckpt.save(1, force=True)
    assert loop.steps() == [1]


def test_fence_wait_finish_and_close_are_harmless_before_a_start(path: Path) -> None:
    ckpt = Loop(path).checkpointer
    ckpt.fence()
    ckpt.wait()
    assert ckpt.finish() is None
    assert (ckpt.saved, ckpt.skipped, list(ckpt.news())) == ([], 0, [])
    ckpt.close()
    ckpt.close()
    assert not is_locked(RunDirectory(path).trainer_lock)


def test_a_failed_start_lets_go_of_the_directory(path: Path) -> None:
    with pytest.raises(NothingToResume), Loop(path).checkpointer as ckpt:
        ckpt.restore("latest")
    assert not is_locked(RunDirectory(path).trainer_lock)
    with Loop(path).checkpointer as ckpt:
        assert ckpt.restore("auto") == 0


def test_one_trainer_at_a_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LOCK_ATTEMPTS", 1)
    monkeypatch.setattr(session, "LOCK_WAIT_S", 0.0)
    with Loop(path).checkpointer, pytest.raises(OwnershipError, match="another trainer is running on it"):
        Loop(path)


def test_starting_over_must_be_asked_for(path: Path) -> None:
    with Loop(path).checkpointer as ckpt:
        ckpt.save(5)
    with pytest.raises(StartRefused, match="step_5"), Loop(path).checkpointer as ckpt:
        ckpt.restore(None)
    with pytest.raises(StartRefused, match="step_5"), Loop(path).checkpointer as ckpt:
        ckpt.save(1)  # a loop that forgot to restore
    with Loop(path).checkpointer as ckpt:
        assert ckpt.restore(None, fresh=True) == 0


def test_going_back(path: Path) -> None:
    loop = Loop(path)
    with loop.checkpointer as ckpt:
        for step in (5, 10):
            loop.step()
            ckpt.save(step, force=True)
    with Loop(path, seed=1).checkpointer as ckpt:
        assert ckpt.restore("step_5") == 5
    with Loop(path, seed=1).checkpointer as ckpt:
        assert ckpt.restore("latest") == 5


def test_a_fork_by_path(tmp_path: Path) -> None:
    first = Loop(tmp_path / "one")
    with first.checkpointer as ckpt:
        first.step()
        ckpt.save(5)
    second = Loop(tmp_path / "two", seed=1)
    with second.checkpointer as ckpt:
        assert ckpt.restore(str(tmp_path / "one")) == 5
    assert everything(second.model, second.optimizer) == everything(first.model, first.optimizer)


def test_a_check_can_refuse(path: Path) -> None:
    made = Options(
        uploading=Uploading.NONE, about={"data": "a"}, fingerprints={"data": "1"}, say=lambda _: None
    )
    with Loop(path, options=made).checkpointer as ckpt:
        ckpt.save(5)
    assert read_step(path / "step_5").record.fingerprints == {"data": "1"}

    def check(_: Path, about: Tree) -> None:
        if about != {"data": "b"}:
            raise StartRefused(f"the data was {about['data']}")

    loop = Loop(path, seed=1, options=Options(uploading=Uploading.NONE, check=check, say=lambda _: None))
    before = bits(loop.model.first.weight)
    with pytest.raises(StartRefused, match="the data was a"), loop.checkpointer as ckpt:
        ckpt.restore()
    assert bits(loop.model.first.weight) == before


def test_a_damaged_newest_step_is_passed_over(path: Path) -> None:
    loop = Loop(path)
    with loop.checkpointer as ckpt:
        for step in (5, 10):
            loop.step()
            ckpt.save(step, force=True)
    damage(next((path / "step_10").glob("model-*")))
    with Loop(path, seed=1).checkpointer as ckpt:
        assert ckpt.restore() == 5
        assert ckpt.started is not None
        assert len(ckpt.started.skipped) == 1


@pytest.mark.parametrize("name", ["a b", ".hidden", "x" * 129])
def test_a_name_that_no_run_can_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="can't be a run's name"):
        Loop(tmp_path / name)
    assert not (tmp_path / name).exists()


def test_an_optimizer_of_another_model(path: Path) -> None:
    ckpt = Checkpointer(
        path, model=make_net(), optimizer=SGD(make_net(1).parameters(), lr=0.1), options=ALONE
    )
    with pytest.raises(WmtpError, match="parameters are not the model's"), ckpt:
        ckpt.save(1)
