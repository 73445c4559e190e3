"""The fence in every shape of loop: what is saved is the state at the call, though the copy comes late.

The copy is held back until the fence is reached, as late as it can ever be. A change that got past the fence
would be in the checkpoint.
"""

import copy
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from toys import OPTIMIZERS, Net, frozen, make_net, train_step

from uploader.layout import RunDirectory
from uploader.watch import read_step
from wmtp.checkpoint.copying import Landing
from wmtp.checkpoint.load import read_checkpoint
from wmtp.checkpoint.saver import Saver
from wmtp.checkpoint.snapshot import Snapshot
from wmtp.checkpoint.state import unflatten
from wmtp.checkpoint.writer import Description


@pytest.fixture(autouse=True)
def late_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every copy begins only when a fence, or the end, asks for it."""
    asked = threading.Event()
    order, copy_all, capture = Snapshot.order, Snapshot.copy, Snapshot.capture

    def capture_and_wait(self: Snapshot, *arguments: Any) -> Any:
        asked.clear()
        return capture(self, *arguments)

    def order_and_let_go(self: Snapshot) -> bool:
        asked.set()
        return order(self)

    def copy_when_asked(self: Snapshot, landing: Landing) -> None:
        assert asked.wait(30)
        copy_all(self, landing)

    monkeypatch.setattr(Snapshot, "capture", capture_and_wait)
    monkeypatch.setattr(Snapshot, "order", order_and_let_go)
    monkeypatch.setattr(Snapshot, "copy", copy_when_asked)
    yield
    asked.set()


class Loop:
    """A model with its optimizers and a saver; remembers what every save should hold."""

    def __init__(self, directory: RunDirectory, model: Net, optimizers: dict[str, Any], **extra: Any) -> None:
        what = Description("run", 0, 1, datetime(2026, 1, 1, tzinfo=UTC), {}, {})
        self.directory, self.model, self.optimizers, self.extra = directory, model, optimizers, extra
        self.saver = Saver(directory, what, model=model, optimizers=optimizers, extra=extra)
        self.expected: dict[int, Any] = {}

    def save(self, step: int) -> None:
        self.saver.fence()  # a step that was skipped has let no copy go
        self.expected[step] = frozen(self.now())
        assert self.saver.save(step, wait_if_busy=True)

    def now(self) -> dict[str, Any]:
        numbers = {id(one): name for name, one in self.model.named_parameters()}
        state = {
            "model": dict(self.model.state_dict()),
            "optim": {
                name: {numbers[id(one)]: dict(own) for one, own in optimizer.state.items()}
                for name, optimizer in self.optimizers.items()
            },
            "extra": {name: one.state_dict() for name, one in self.extra.items()},
        }
        return copy.deepcopy(state)

    def assert_saved(self) -> None:
        """Every save holds what it should."""
        self.saver.fence()
        self.saver.close()
        assert self.saver.saved and not [saved.error for saved in self.saver.saved if saved.error]
        for step, expected in self.expected.items():
            path = self.directory.step(step)
            loaded = read_checkpoint(path, read_step(path).record)
            tree = unflatten(
                {name: loaded.tree[name] for name in ("model", "optim", "extra")}, loaded.tensors
            )
            tree["optim"] = {name: one["state"] for name, one in tree["optim"].items()}
            assert frozen(tree) == expected


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_of_each_kind(directory: RunDirectory, name: str, visible: bool) -> None:
    model = make_net()
    optimizer = OPTIMIZERS[name](model.parameters())
    loop = Loop(directory, model, {"main": optimizer})
    for step in range(1, 4):
        train_step(model, optimizer, before=loop.saver.fence if visible else lambda: None)
        loop.save(step)
    train_step(model, optimizer)
    loop.assert_saved()


def test_gradient_accumulation(directory: RunDirectory) -> None:
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    loop = Loop(directory, model, {"main": optimizer})
    for step in range(1, 4):
        for _ in range(3):
            model(torch.randn(16, 4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        loop.save(step)
    train_step(model, optimizer)
    loop.assert_saved()


def test_several_optimizers_of_which_either_may_step_first(directory: RunDirectory) -> None:
    model = make_net()
    first = SGD(model.first.parameters(), lr=0.1, momentum=0.9)
    rest = Adam([*model.norm.parameters(), *model.last.parameters()], lr=0.1)
    loop = Loop(directory, model, {"first": first, "rest": rest})
    for step in range(1, 5):
        train_step(model, *([first, rest] if step % 2 else [rest, first]))
        loop.save(step)
    train_step(model, rest, first)
    loop.assert_saved()


def test_a_scaler_that_skips_a_step(directory: RunDirectory) -> None:
    """A skipped step changes nothing but the scale; the save after it is as good as any."""
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)
    loop = Loop(directory, model, {"main": optimizer}, scaler=scaler)
    scales = []
    for step in range(1, 6):
        loss = model(torch.randn(16, 4)).square().mean()
        scaler.scale(loss * (float("inf") if step == 3 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loop.save(step)
        scales.append(scaler.get_scale())
    assert scales[2] < scales[1], "the third step was to be skipped"
    train_step(model, optimizer)
    loop.assert_saved()


def test_averaged_weights_and_a_schedule(directory: RunDirectory) -> None:
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    schedule = StepLR(optimizer, 2)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    loop = Loop(directory, model, {"main": optimizer}, average=average, schedule=schedule)
    for step in range(1, 4):
        train_step(model, optimizer)
        schedule.step()
        average.update_parameters(model)
        loop.save(step)
    train_step(model, optimizer)
    average.update_parameters(model)
    loop.assert_saved()


def test_without_the_fence_this_would_not_hold(directory: RunDirectory) -> None:
    """That the tests above can fail: a change that no hook sees is in the checkpoint."""
    model = make_net()
    optimizer = SGD(model.parameters(), lr=0.1)
    loop = Loop(directory, model, {"main": optimizer})
    train_step(model, optimizer)
    loop.save(1)
    with torch.no_grad():
        nn.init.zeros_(model.last.weight)
    with pytest.raises(AssertionError):
        loop.assert_saved()
