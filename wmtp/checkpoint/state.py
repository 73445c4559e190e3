"""The training state as tensors by name and a JSON tree of everything else.

The tree is plain JSON but for tagged values, so that loading gives back exactly what was saved and never
runs code: ``{"$tensor": name}``, ``{"$tuple": […]}``, ``{"$bytes": base64}``, ``{"$float": "nan"}``, and
``{"$items": [[key, value], …]}`` for a dictionary whose keys are not just strings.
"""

import base64
import binascii
import json
import math
import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from uploader.errors import CorruptError, StartRefused, WmtpError
from wmtp.checkpoint.shards import DTYPES

Tree = dict[str, Any]


class Stateful(Protocol):
    """Anything with a state of its own: a scheduler, a scaler, a data position, EMA weights."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], /) -> object: ...


def flatten(value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON tree of ``value``; its tensors go to ``tensors`` under dotted names.

    Raises:
        WmtpError: it holds something that JSON can't and that is no tensor.
    """
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {"$float": repr(float(value))}
        case Tensor() if _is_plain(value):
            while name in tensors:  # {"a": {"b": …}, "a.b": …}
                name += "'"
            # The same object at each save, where it can be: then nothing has to be laid out anew.
            tensors[name] = value.detach() if value.requires_grad else value
            return {"$tensor": name}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case tuple():
            return {"$tuple": [flatten(one, f"{name}.{at}", tensors) for at, one in enumerate(value)]}
        case list():
            return [flatten(one, f"{name}.{at}", tensors) for at, one in enumerate(value)]
        case Mapping() if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: flatten(one, f"{name}.{key}", tensors) for key, one in value.items()}
        case Mapping() if all(isinstance(key, str | int) for key in value):
            items = [[key, flatten(one, f"{name}.{key}", tensors)] for key, one in value.items()]
            return {"$items": items}
        case np.generic() if type(value.item()) is not type(value):
            return flatten(value.item(), name, tensors)
    raise WmtpError(
        f"{_kind_of(value)} can't be saved",
        subject=f"state {name!r}",
        hint="use dense tensors, numbers, strings, bytes, lists, tuples, and dictionaries with such keys",
    )


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in DTYPES


def _kind_of(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"a tensor of {value.dtype} ({value.layout}, on {value.device})".replace("torch.", "")


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``flatten`` was given, its tensors taken from ``tensors``.

    Raises:
        CorruptError: a tensor is missing or a tag is unknown.
    """
    try:
        return _unflatten(tree, tensors)
    except (ValueError, TypeError, RecursionError, binascii.Error) as error:
        raise CorruptError(str(error), doing="loading", subject="state") from error


def _unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    match tree:
        case {"$tensor": str(name)}:
            if name not in tensors:
                raise CorruptError("the tensor is missing", doing="loading", subject=name)
            return tensors[name]
        case {"$tuple": list(items)}:
            return tuple(_unflatten(one, tensors) for one in items)
        case {"$items": list(items)}:
            return {key: _unflatten(one, tensors) for key, one in items}
        case {"$bytes": str(text)}:
            return base64.b64decode(text, validate=True)
        case {"$float": str(text)}:
            return float(text)
        case dict():
            if unknown := [key for key in tree if key.startswith("$")]:
                raise ValueError(f"the tag {unknown[0]!r} is unknown or malformed")
            return {key: _unflatten(one, tensors) for key, one in tree.items()}
        case list():
            return [_unflatten(one, tensors) for one in tree]
    return tree


def check_optimizer(optimizer: Optimizer, model: nn.Module, saved: Tree) -> None:
    """Refuse a state that another optimizer left. Nothing is changed.

    Raises:
        StartRefused: the groups hold other parameters than those saved, or other settings: AdamW has betas,
            SGD a momentum. Settings that just one side has are a newer version's.
    """
    groups, saved_groups = optimizer.param_groups, saved["param_groups"]
    problem = ""
    if _numbers(optimizer, model, saved) is None:
        problem = "its parameter groups are not those of the checkpoint"
    for group, was in zip(groups, saved_groups, strict=False):
        here, there = sorted(group.keys() - was.keys()), sorted(was.keys() - group.keys())
        if here and there and not problem:
            problem = f"it has {', '.join(here)}, that of the checkpoint {', '.join(there)}"
    if problem:
        hint = "build the optimizer as it was built when the checkpoint was made"
        raise StartRefused(problem, doing="loading", subject="optimizer", hint=hint)


def _numbers(optimizer: Optimizer, model: nn.Module, saved: Tree) -> dict[str, int] | None:
    """The optimizer's number of each saved parameter; None where its groups hold others.

    A parameter that the model has under several names may have been saved under any.
    """
    named = {name: id(one) for name, one in model.named_parameters(remove_duplicate=False)}
    names = [group["params"] for group in saved["param_groups"]]
    ids = [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]
    if [[named.get(name) for name in group] for group in names] != ids:
        return None
    return {name: number for number, name in enumerate(name for group in names for name in group)}


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, saved: Tree) -> None:
    """Put back what was collected of an optimizer, parameters matched by name.

    Raises:
        StartRefused: see ``check_optimizer``.
    """
    check_optimizer(optimizer, model, saved)
    number = _numbers(optimizer, model, saved) or {}
    groups = [
        {**group, "params": [number[name] for name in group["params"]]} for group in saved["param_groups"]
    ]
    state = {number[name]: dict(one) for name, one in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


class RandomState:
    """The random generators of Python, NumPy and torch (CPU, and the current CUDA device) of this process."""

    def state_dict(self) -> dict[str, Any]:
        kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
        version, numbers, python_gauss = random.getstate()
        state: dict[str, Any] = {
            "python": {
                "version": version,
                "numbers": np.asarray(numbers, dtype="<u4").tobytes(),
                "gauss": python_gauss,
            },
            "numpy": {
                "kind": kind,
                "keys": np.asarray(keys, dtype="<u4").tobytes(),
                "position": position,
                "has_gauss": has_gauss,
                "gauss": gauss,
            },
            "torch": bytes(torch.get_rng_state().numpy()),
        }
        if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = bytes(torch.cuda.get_rng_state().numpy())
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        python = state["python"]
        numbers = np.frombuffer(python["numbers"], dtype="<u4")
        random.setstate((python["version"], tuple(numbers.tolist()), python["gauss"]))
        numpy = state["numpy"]
        keys = np.frombuffer(numpy["keys"], dtype="<u4")
        np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["gauss"]))
        torch.set_rng_state(torch.frombuffer(bytearray(state["torch"]), dtype=torch.uint8))
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state(torch.frombuffer(bytearray(state["cuda"]), dtype=torch.uint8))

    def part_ways(self, rank: int) -> None:
        """From a state that all ranks have got from one: each goes on with numbers of its own."""
        if rank:
            seed = int(torch.randint(2**62, ())) + rank
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)


def encode_tree(tree: Tree) -> bytes:
    """The tree as the bytes of ``state-rankRRRRR.json``."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).encode() + b"\n"
