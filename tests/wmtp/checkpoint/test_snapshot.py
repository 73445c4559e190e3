"""A snapshot is of one moment, whatever the training does next, and takes the memory of one state."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch.optim import Optimizer
from toys import OPTIMIZERS, bits, make_net, train_step

from wmtp.checkpoint.collect import Collector
from wmtp.checkpoint.copying import Landing
from wmtp.checkpoint.shards import TensorSpec
from wmtp.checkpoint.snapshot import IMMEDIATE_BYTES, PAGE_BYTES, Snapshot

MIB = 1024**2
LARGE = 2 * IMMEDIATE_BYTES  # as a length: such a tensor is copied behind the training's back
Bits = dict[str, tuple[torch.dtype, torch.Size, bytes]]


class Rig:
    """A model, its optimizers, and a snapshot of them."""

    def __init__(self, model: nn.Module, *optimizers: Optimizer) -> None:
        self.model, self.optimizers = model, optimizers
        named = {f"o{number}": one for number, one in enumerate(optimizers)}
        self.collector = Collector(model, named, {}, {})
        self.snapshot = Snapshot(0, MIB)

    def capture(self) -> Bits:
        """Begin a snapshot; what it must hold in the end."""
        groups, _ = self.collector.collect()
        self.snapshot.capture(groups, self.collector.buffers)
        return {name: bits(one) for group in groups.values() for name, one in group.items()}

    def copied(self) -> Bits:
        """End the snapshot; what its files hold."""
        self.snapshot.copy(Landing())
        arena = self.snapshot.arena
        return {
            name: bits(one)
            for image in arena.images
            for name, one in load(bytes(arena.bytes_of(image))).items()
        }


def wide(seed: int = 0) -> tuple[nn.Module, Optimizer]:
    model = make_net(seed, width=LARGE)
    return model, OPTIMIZERS["adamw"](model.parameters())


def test_what_the_forward_changes_is_taken_at_once() -> None:
    model, optimizer = wide()
    rig = Rig(model, optimizer)
    train_step(model, optimizer)
    expected = rig.capture()
    before = bits(model.norm.running_mean)
    model(torch.randn(16, 4)).mean().backward()
    assert bits(model.norm.running_mean) != before
    assert model.norm.running_mean.nbytes >= IMMEDIATE_BYTES  # size is not what decides
    assert rig.copied() == expected


def test_a_buffer_with_two_names_is_taken_at_once() -> None:
    norm = nn.BatchNorm1d(LARGE)
    rig = Rig(nn.ModuleDict({"one": norm, "two": nn.Sequential(norm)}))
    expected = rig.capture()
    norm(torch.randn(4, LARGE))
    copied = rig.copied()
    assert copied == expected
    assert copied["one.running_mean"] == copied["two.0.running_mean"]


def test_parameters_wait_for_the_copy() -> None:
    """The premise of the fence: without it a change after ``capture`` shows in the snapshot."""
    model, optimizer = wide()
    rig = Rig(model, optimizer)
    expected = rig.capture()
    with torch.no_grad():
        model.first.weight.add_(1)
        model.last.bias.add_(1)
    torn = rig.copied()
    assert torn["first.weight"] != expected["first.weight"]
    assert torn["last.bias"] != expected["last.bias"]  # however small


def test_snapshots_in_a_loop_are_each_of_their_moment() -> None:
    model, optimizer = wide()
    rig = Rig(model, optimizer)
    seen = set()
    for _ in range(5):
        expected = rig.capture()
        model(torch.randn(16, 4)).mean().backward()
        assert rig.copied() == expected
        optimizer.step()
        seen.add(expected["first.weight"])
    assert len(seen) == 5


def new_parameter(model: nn.Module) -> None:
    model.first.weight = nn.Parameter(model.first.weight.detach() + 1)


def resized_parameter(model: nn.Module) -> None:
    model.last = nn.Linear(model.last.in_features, 3)


def resized_data(model: nn.Module) -> None:
    model.last.bias.data = torch.randn(5)


def other_type(model: nn.Module) -> None:
    model.first.bfloat16()  # the very same parameters, and no buffers


def rebound_buffer(model: nn.Module) -> None:
    model.norm.running_mean = model.norm.running_mean + 1


def added_buffer(model: nn.Module) -> None:
    model.register_buffer("more", torch.arange(4))


def added_module(model: nn.Module) -> None:
    model.add_module("more", nn.Linear(2, 2))


def removed_module(model: nn.Module) -> None:
    del model.norm


def buffer_gone(model: nn.Module) -> None:
    model.norm.running_mean = None


def swapped_modules(model: nn.Module) -> None:
    first, last = nn.Linear(4, 3), nn.Linear(3, 1)
    model.first, model.last = last, first


@pytest.mark.parametrize(
    "change",
    [
        new_parameter, resized_parameter, resized_data, other_type, rebound_buffer, added_buffer,
        added_module, removed_module, buffer_gone, swapped_modules,
    ],
)  # fmt: skip
def test_tensors_that_were_replaced_are_found(change: Callable[[nn.Module], None]) -> None:
    model = make_net()
    rig = Rig(model)
    assert rig.capture() == rig.copied()
    change(model)
    expected = rig.capture()
    assert set(expected) == set(model.state_dict())
    assert rig.copied() == expected
    with torch.no_grad():
        for one in model.state_dict().values():
            one.add_(1)
    changed = rig.capture()
    assert changed != expected
    assert rig.copied() == changed


def test_an_optimizer_whose_first_step_makes_its_state() -> None:
    model = make_net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    rig = Rig(model, optimizer)
    assert not any(name.startswith("optim.") for name in rig.capture())
    rig.copied()
    train_step(model, optimizer)
    expected = rig.capture()
    assert sum(name.startswith("optim.") for name in expected) == 3 * 6
    assert rig.copied() == expected


def test_the_arena_is_used_again() -> None:
    model, optimizer = wide()
    train_step(model, optimizer)
    rig = Rig(model, optimizer)
    rig.capture()
    rig.copied()
    arena, address = rig.snapshot.arena, rig.snapshot.arena.views["first.weight"].data_ptr()
    rebound_buffer(model)  # another object, the same layout
    assert rig.capture() == rig.copied()
    assert rig.snapshot.arena is arena
    assert rig.snapshot.arena.views["first.weight"].data_ptr() == address


def test_one_arena_as_large_as_the_state() -> None:
    model, optimizer = wide()
    train_step(model, optimizer)
    rig = Rig(model, optimizer)
    state_bytes = sum(len(data) for _, _, data in rig.capture().values())
    images = rig.snapshot.arena.images
    assert state_bytes <= sum(image.size_bytes for image in images) < 1.02 * state_bytes
    assert all(image.start % PAGE_BYTES == 0 for image in images)
    padded = [rig.snapshot.arena.bytes_of(image, padded=True) for image in images]
    assert all(len(one) % PAGE_BYTES == 0 for one in padded)
    addresses = sorted(view.data_ptr() for view in rig.snapshot.arena.views.values())
    assert addresses[-1] - addresses[0] < sum(map(len, padded))  # one piece of memory


def test_a_new_layout_frees_the_old_memory() -> None:
    model = make_net()
    rig = Rig(model)
    rig.capture()
    rig.copied()
    old = weakref.ref(rig.snapshot.arena)
    added_module(model)
    rig.capture()
    gc.collect()
    assert old() is None


def test_preparing_twice_does_nothing() -> None:
    snapshot = Snapshot(0, MIB)
    specs = {"model": [TensorSpec("a", torch.float32, (3,))], "frozen": [], "optim": [], "extra": []}
    snapshot.prepare(specs)
    arena = snapshot.arena
    snapshot.prepare({kind: list(one) for kind, one in specs.items()})
    assert snapshot.arena is arena


def test_padding_is_zero(shape: tuple[int, ...] = (5,)) -> None:
    rig = Rig(nn.ParameterDict({"a": nn.Parameter(torch.ones(shape))}))
    rig.capture()
    rig.copied()
    (image,) = rig.snapshot.arena.images
    padded = bytes(rig.snapshot.arena.bytes_of(image, padded=True))
    assert padded[: image.size_bytes] == bytes(rig.snapshot.arena.bytes_of(image))
    assert not any(padded[image.size_bytes :])


def test_turned_tensors_are_saved_as_they_read() -> None:
    turned = torch.randn(LARGE, 3).t()
    assert not turned.is_contiguous()
    rig = Rig(nn.ParameterDict({"a": nn.Parameter(turned)}))
    assert rig.capture() == rig.copied()


def test_only_files_of_trained_tensors_count_as_trained() -> None:
    model = make_net()
    model.first.requires_grad_(False)
    rig = Rig(model)
    rig.capture()
    rig.copied()
    trained: set[str] = set()
    for image in rig.snapshot.arena.images:
        tensors: dict[str, Tensor] = load(bytes(rig.snapshot.arena.bytes_of(image)))
        if image.file_name in rig.snapshot.arena.trained:
            trained |= set(tensors)
    assert trained == {"norm.weight", "norm.bias", "last.weight", "last.bias"}
