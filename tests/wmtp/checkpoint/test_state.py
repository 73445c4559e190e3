"""State to tensors and JSON and back: nothing is lost, nothing is guessed, nothing runs code."""

import json
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, SequentialLR
from toys import OPTIMIZERS, bits, frozen, make_net, train_step

from uploader.errors import CorruptError, StartRefused, WmtpError
from wmtp.checkpoint.collect import Collector
from wmtp.checkpoint.shards import DTYPES
from wmtp.checkpoint.state import RandomState, encode_tree, flatten, load_optimizer_state, unflatten


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any type, any shape (0-dim and empty too), any bits."""
    dtype = draw(st.sampled_from(sorted(DTYPES, key=str)))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    size_bytes = int(np.prod(shape, dtype=int)) * dtype.itemsize
    raw = draw(st.binary(min_size=size_bytes, max_size=size_bytes))
    if dtype is torch.bool:
        raw = bytes(byte & 1 for byte in raw)
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).view(dtype).reshape(shape)


leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | tensors()
names = st.text(max_size=4) | st.sampled_from(["$tensor", "$items", "a.b", "a"]) | st.integers()
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(names, inner, max_size=3)
    ),
    max_leaves=12,
)


def through_json(value: object) -> tuple[Any, dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    encoded = encode_tree({"value": flatten(value, "value", found)})
    return json.loads(encoded)["value"], found


@given(trees)
def test_what_comes_back_is_what_was_saved(value: object) -> None:
    tree, found = through_json(value)
    assert frozen(unflatten(tree, found)) == frozen(value)


@pytest.mark.parametrize("key", ["a.b", "a"])
def test_names_that_could_be_taken_for_each_other_stay_apart(key: str) -> None:
    value = {
        "a": {"b": torch.tensor(1)},
        "a.b": torch.tensor(2),
        "c": [torch.tensor(3)],
        "c.0": torch.tensor(4),
    }
    tree, found = through_json(value)
    assert len(found) == 4
    assert frozen(unflatten(tree, found)) == frozen(value)


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.float64("nan"), float("nan")),
        (np.float64("-inf"), float("-inf")),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.str_("text"), "text"),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (torch.Size([2, 3]), (2, 3)),
        (-0.0, -0.0),
    ],
)
def test_near_relatives_of_plain_values_come_back_plain(value: object, plain: object) -> None:
    tree, found = through_json(value)
    assert frozen(unflatten(tree, found)) == frozen(plain)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (object(), "object"),
        ({1, 2}, "set"),
        (1j, "complex"),
        (np.zeros(2), "ndarray"),
        (lambda: None, "function"),
        ({("a", "b"): 1}, "dict"),
        (torch.zeros(2, dtype=torch.complex128), "complex128"),
        (torch.eye(2).to_sparse(), "sparse"),
        (torch.empty(2, device="meta"), "meta"),
    ],
)
def test_what_cannot_be_saved_is_named(value: object, what: str) -> None:
    with pytest.raises(WmtpError) as caught:
        flatten({"deep": [value]}, "extra.mine", {})
    assert what in str(caught.value)
    assert "extra.mine.deep.0" in str(caught.value)
    assert caught.value.hint


def test_a_missing_tensor_is_corruption() -> None:
    tree, found = through_json([torch.tensor(1)])
    assert set(found) == {"value.0"}
    with pytest.raises(CorruptError, match=r"value\.0"):
        unflatten(tree, {})


@pytest.mark.parametrize(
    "tree", [{"$pickle": "x"}, {"$tensor": 1}, {"$tuple": {}}, {"$bytes": "?"}, {"$float": "x"}]
)
def test_an_unknown_or_broken_tag_is_corruption(tree: object) -> None:
    with pytest.raises(CorruptError):
        unflatten({"state": tree}, {})


def resumed(saved: Any) -> Any:
    """What a new process reads of what this one saved."""
    tree, found = through_json(saved)
    return unflatten(tree, {name: one.clone() for name, one in found.items()})


def optimizer_state(optimizer: Optimizer, model: nn.Module) -> Any:
    """What a new process reads of an optimizer."""
    groups, tree = Collector(model, {"main": optimizer}, {}, {}).collect()
    found = {name: one.detach().clone() for name, one in groups["optim"].items()}
    return unflatten(json.loads(encode_tree(tree))["optim"]["main"], found)


def assert_goes_on_equally(kind: str, *, freeze: bool = False, groups: bool = False) -> None:
    def build(seed: int) -> tuple[nn.Module, Any]:
        model = make_net(seed)
        if freeze:
            model.first.weight.requires_grad_(False)
        if not groups:
            return model, OPTIMIZERS[kind](model.parameters())
        matrices = [one for one in model.parameters() if one.ndim > 1]
        vectors = [one for one in model.parameters() if one.ndim == 1]
        return model, OPTIMIZERS[kind]([{"params": matrices}, {"params": vectors, "lr": 0.5}])

    model, optimizer = build(0)
    for _ in range(3):
        train_step(model, optimizer)
    model_state, saved = resumed(dict(model.state_dict())), optimizer_state(optimizer, model)
    random_state = resumed(RandomState().state_dict())
    for _ in range(3):
        train_step(model, optimizer)

    other, its_optimizer = build(1)
    other.load_state_dict(model_state)
    load_optimizer_state(its_optimizer, other, saved)
    RandomState().load_state_dict(random_state)
    for _ in range(3):
        train_step(other, its_optimizer)
    assert frozen(dict(other.state_dict())) == frozen(dict(model.state_dict()))
    assert frozen(its_optimizer.state_dict()) == frozen(optimizer.state_dict())


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_optimizer_goes_on_bit_for_bit(kind: str, freeze: bool, groups: bool) -> None:
    assert_goes_on_equally(kind, freeze=freeze, groups=groups)


def test_parameters_go_by_their_names_not_by_their_numbers() -> None:
    model = make_net()
    optimizer = AdamW(model.parameters(), lr=0.01)
    train_step(model, optimizer)
    state = optimizer_state(optimizer, model)
    assert set(state["state"]) == {name for name, _ in model.named_parameters()}
    assert state["param_groups"][0]["params"] == [name for name, _ in model.named_parameters()]
    assert bits(state["state"]["last.bias"]["exp_avg"]) == bits(optimizer.state[model.last.bias]["exp_avg"])


def test_two_optimizers_share_a_model() -> None:
    model = make_net()
    first = SGD(model.first.parameters(), lr=0.1, momentum=0.9)
    rest = AdamW([*model.norm.parameters(), *model.last.parameters()], lr=0.01)
    train_step(model, first, rest)
    assert set(optimizer_state(first, model)["state"]) == {"first.weight", "first.bias"}
    assert set(optimizer_state(rest, model)["state"]) == {
        "norm.weight", "norm.bias", "last.weight", "last.bias",
    }  # fmt: skip


def test_an_optimizer_of_another_model_is_refused_both_ways() -> None:
    model, other = make_net(), make_net(1)
    saved = optimizer_state(SGD(model.parameters(), lr=0.1), model)
    with pytest.raises(WmtpError, match="parameters are not the model's"):
        optimizer_state(SGD(other.parameters(), lr=0.1), model)
    with pytest.raises(StartRefused, match="parameter groups are not those"):
        load_optimizer_state(SGD(other.parameters(), lr=0.1), model, saved)


def test_a_parameter_with_two_names_comes_back() -> None:
    def build() -> tuple[nn.Module, Optimizer]:
        model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
        model[1].weight = model[0].weight
        return model, SGD(model.parameters(), lr=0.1, momentum=0.9)

    model, optimizer = build()
    train_step(model, optimizer)
    other, its_optimizer = build()
    load_optimizer_state(its_optimizer, other, optimizer_state(optimizer, model))
    assert frozen(its_optimizer.state_dict()) == frozen(optimizer.state_dict())


@pytest.mark.parametrize("difference", ["groups", "parameters", "kind"])
def test_an_optimizer_built_otherwise_is_refused(difference: str) -> None:
    model = make_net()
    parameters = list(model.parameters())
    optimizer = AdamW(parameters, lr=0.01)
    train_step(model, optimizer)
    saved = optimizer_state(optimizer, model)
    here = {
        "groups": lambda: AdamW([{"params": parameters[:2]}, {"params": parameters[2:]}], lr=0.5),
        "parameters": lambda: AdamW(parameters[1:], lr=0.5),
        "kind": lambda: SGD(parameters, lr=0.5),
    }[difference]()
    before = frozen(here.state_dict())
    with pytest.raises(StartRefused, match="optimizer"):
        load_optimizer_state(here, model, saved)
    assert frozen(here.state_dict()) == before


def test_random_numbers_go_on_where_they_were() -> None:
    def draw() -> tuple[object, ...]:
        numbers = np.random.standard_normal(3).tolist(), torch.randn(5).tolist(), torch.randperm(5).tolist()
        return [random.gauss(0, 1), random.random()], *numbers

    draw()
    np.random.standard_normal()  # NumPy keeps a second value of each pair
    random.gauss(0, 1)  # and so does Python
    saved = resumed(RandomState().state_dict())
    expected = draw()
    assert draw() != expected
    RandomState().load_state_dict(saved)
    assert draw() == expected


def test_schedulers_can_be_saved() -> None:
    def build() -> Any:
        optimizer = SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        first, second = LinearLR(optimizer), CosineAnnealingLR(optimizer, 10)
        both = SequentialLR(optimizer, [first, second], [3])
        return optimizer, [both, MultiStepLR(SGD([nn.Parameter(torch.zeros(1))], lr=1.0), [2, 4])]

    def turn(optimizer: Any, schedulers: list[Any]) -> list[object]:
        rates = []
        for _ in range(3):
            optimizer.step()
            for one in schedulers:
                one.optimizer.step()
                one.step()
                rates.append(one.get_last_lr())
        return rates

    optimizer, schedulers = build()
    turn(optimizer, schedulers)
    saved = [resumed(one.state_dict()) for one in schedulers]
    rates = resumed(optimizer.param_groups[0]["lr"]), resumed(schedulers[1].optimizer.param_groups[0]["lr"])
    expected = turn(optimizer, schedulers)
    other, its_schedulers = build()
    for one, state in zip(its_schedulers, saved, strict=True):
        one.load_state_dict(state)
    other.param_groups[0]["lr"], its_schedulers[1].optimizer.param_groups[0]["lr"] = rates
    assert turn(other, its_schedulers) == expected


def test_a_shared_tensor_is_not_copied() -> None:
    tensor = torch.randn(3)
    found: dict[str, Tensor] = {}
    flatten({"x": tensor}, "extra", found)
    assert found["extra.x"].data_ptr() == tensor.data_ptr()
    assert bits(found["extra.x"]) == bits(tensor)
