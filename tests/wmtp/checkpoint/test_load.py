"""What does not fit is refused by name with nothing changed; what fits goes on bit for bit."""

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from toys import OPTIMIZERS, Counter, describe, frozen, make_net, train_step

from uploader.errors import CorruptError, StartRefused
from uploader.layout import RunDirectory
from uploader.watch import LocalStep, read_step
from wmtp.checkpoint.load import apply, read_checkpoint
from wmtp.checkpoint.saver import Saver
from wmtp.checkpoint.state import RandomState, Stateful


class Training:
    """All that has a state, and all that is compared."""

    def __init__(self, seed: int, kind: str = "adamw", model: nn.Module | None = None) -> None:
        for module in (random, np.random):
            module.seed(seed)
        self.model = model or make_net(seed)
        self.optimizer = OPTIMIZERS[kind](self.model.parameters())
        self.optimizers: dict[str, Optimizer] = {"main": self.optimizer}
        self.extra: dict[str, Stateful] = {"random": RandomState(), "position": Counter(seed)}  # type: ignore[dict-item]

    def train(self, steps: int) -> None:
        for _ in range(steps):
            train_step(self.model, self.optimizer)

    def save(self, directory: RunDirectory, step: int) -> LocalStep:
        saver = Saver(
            directory, describe(step), model=self.model, optimizers=self.optimizers, extra=self.extra
        )
        with saver:
            saver.save(step)
            saver.wait()
            assert saver.saved[0].error is None
        return read_step(directory.step(step))

    def load(self, local: LocalStep) -> None:
        apply(read_checkpoint(local.path, local.record), self.model, self.optimizers, self.extra)

    def everything(self) -> Any:
        return frozen(
            {
                "model": dict(self.model.state_dict()),
                "optim": {name: one.state_dict() for name, one in self.optimizers.items()},
                "extra": {name: one.state_dict() for name, one in self.extra.items()},
            }
        )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_n_steps_and_n_more_equal_twice_n(directory: RunDirectory, kind: str) -> None:
    whole = Training(0, kind)
    whole.train(10)
    expected = whole.everything(), random.random(), np.random.random(), torch.rand(3).tolist()

    first = Training(0, kind)
    first.train(5)
    local = first.save(directory, 5)
    second = Training(1, kind)
    second.load(local)
    assert second.extra["position"].state_dict() == {"value": 0}
    second.train(5)
    assert (second.everything(), random.random(), np.random.random(), torch.rand(3).tolist()) == expected


class Shared(nn.Module):
    """Two names for one weight, a state that is no tensor, and a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.last.weight = self.first.weight
        self.register_buffer("cache", torch.randn(3), persistent=False)
        self.name = "made"

    def forward(self, batch: Tensor) -> Tensor:
        result: Tensor = self.last(self.first(batch))
        return result

    def get_extra_state(self) -> dict[str, Any]:
        return {"name": self.name}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.name = state["name"]


def test_models_with_shared_weights_and_a_state_of_their_own(directory: RunDirectory) -> None:
    here, there = Training(0, "sgd", Shared()), Training(0, "sgd", Shared())
    here.model.name = "saved"  # type: ignore[assignment]
    here.train(2)
    there.load(here.save(directory, 2))
    assert there.model.name == "saved"
    assert there.model.first.weight is there.model.last.weight
    assert there.everything() == here.everything()
    train_step(here.model, here.optimizer)
    there.extra["random"].load_state_dict(RandomState().state_dict())
    assert not torch.equal(here.model.first.weight, there.model.first.weight)


def narrower() -> Training:
    return Training(1, model=make_net(1, width=7))


def other_type() -> Training:
    training = Training(1)
    training.model.last.half()
    return training


def one_less() -> Training:
    model = make_net(1)
    model.last = nn.Linear(8, 1, bias=False)
    return Training(1, model=model)


def one_more() -> Training:
    model = make_net(1)
    model.register_buffer("scale", torch.ones(1))
    return Training(1, model=model)


def more_optimizers() -> Training:
    training = Training(1)
    training.optimizers["other"] = SGD(training.model.parameters(), lr=0.1)
    return training


def fewer_extras() -> Training:
    training = Training(1)
    del training.extra["position"]
    return training


def other_groups() -> Training:
    training = Training(1)
    parameters = list(training.model.parameters())
    training.optimizers["main"] = OPTIMIZERS["adamw"](
        [{"params": parameters[:2]}, {"params": parameters[2:]}]
    )
    return training


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (narrower, r"model: first\.weight is float32 \[8, 4\], here float32 \[7, 4\]; .* and \d more"),
        (other_type, r"model: last\.weight is float32 \[1, 8\], here float16 \[1, 8\]"),
        (one_less, r"model: last\.bias is unknown here"),
        (one_more, r"model: scale is missing"),
        (more_optimizers, r"optimizer: the checkpoint has \['main'\], this run \['main', 'other'\]"),
        (fewer_extras, r"extra state: the checkpoint has \['position', 'random'\], this run \['random'\]"),
        (other_groups, r"optimizer: its parameter groups are not those of the checkpoint"),
        (lambda: Training(1, "sgd"), r"optimizer: it has .*momentum.*, that of the checkpoint .*betas"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(
    directory: RunDirectory, build: Callable[[], Training], says: str
) -> None:
    saved = Training(0)
    saved.train(2)
    local = saved.save(directory, 2)
    here = build()
    before = here.everything()
    with pytest.raises(StartRefused, match=says) as caught:
        here.load(local)
    assert caught.value.hint
    assert here.everything() == before


def test_many_differences_are_counted() -> None:
    from wmtp.checkpoint.load import Loaded

    model = make_net()
    with pytest.raises(
        StartRefused, match=r"first\.weight is missing; first\.bias is missing; .* and 6 more"
    ):
        apply(Loaded({}, {"model": {}, "optim": {}, "extra": {}}), model, {}, {})


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("model-rank00000-0001.safetensors", b"", "safetensors"),
        ("model-rank00000-0001.safetensors", b"\xff" * 100, "safetensors"),
        ("state-rank00000.json", b"{", "state-rank00000.json"),
        ("state-rank00000.json", b"[]", "model"),
        ("state-rank00000.json", b"{}", "model"),
        ("state-rank00000.json", b'{"model": [], "optim": {}, "extra": {}}', "model"),
    ],
)
def test_files_that_are_not_what_they_are_called_are_corrupt(
    directory: RunDirectory, name: str, data: bytes, says: str
) -> None:
    training = Training(0)
    local = training.save(directory, 1)
    (local.path / name).write_bytes(data)
    before = training.everything()
    with pytest.raises(CorruptError, match=says):
        training.load(local)
    assert training.everything() == before


def test_a_checkpoint_without_its_tree_is_corrupt(directory: RunDirectory) -> None:
    local = Training(0).save(directory, 1)
    record = local.record.model_copy(
        update={"files": [file for file in local.record.files if not file.path.endswith(".json")]}
    )
    with pytest.raises(CorruptError, match=r"it holds no state-rank00000\.json"):
        read_checkpoint(local.path, record)


def test_a_tree_whose_tensors_are_gone_is_corrupt_and_changes_nothing(directory: RunDirectory) -> None:
    training = Training(0)
    training.train(1)
    local = training.save(directory, 1)
    path = local.path / "state-rank00000.json"
    tree = json.loads(path.read_bytes())
    tree["extra"]["position"] = {"value": {"$tensor": "gone"}}
    path.write_text(json.dumps(tree))
    before = training.everything()
    with pytest.raises(CorruptError, match="gone: the tensor is missing"):
        training.load(local)
    assert training.everything() == before
