"""The training state as tensors by name and a JSON tree of everything else.

The tree is plain JSON but for tagged values, so that loading gives back exactly what was saved and never
runs code: ``{"$tensor": name}``, ``{"$tuple": […]}``, ``{"$bytes": base64}``, ``{"$float": "nan"}``.
"""

import base64
import json
import math
import random
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from uploader.errors import CorruptError, WmtpError

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
            return value if math.isfinite(value) else {"$float": repr(value)}
        case Tensor():
            tensors[name] = value.detach()
            return {"$tensor": name}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode()}
        case tuple():
            return {"$tuple": [flatten(one, f"{name}.{at}", tensors) for at, one in enumerate(value)]}
        case list():
            return [flatten(one, f"{name}.{at}", tensors) for at, one in enumerate(value)]
        case Mapping() if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: flatten(one, f"{name}.{key}", tensors) for key, one in value.items()}
        case np.generic():
            return flatten(value.item(), name, tensors)
    raise WmtpError(
        f"{type(value).__name__} can't be saved",
        subject=f"state {name!r}",
        hint="use tensors, numbers, strings, bytes, lists, tuples and dictionaries with string keys",
    )


def unflatten(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What ``flatten`` was given, its tensors taken from ``tensors``.

    Raises:
        CorruptError: a tensor is missing or a tag is unknown.
    """
    match tree:
        case {"$tensor": str(name)}:
            if name not in tensors:
                raise CorruptError("the tensor is missing", doing="loading", subject=name)
            return tensors[name]
        case {"$tuple": list(items)}:
            return tuple(unflatten(one, tensors) for one in items)
        case {"$bytes": str(text)}:
            return base64.b64decode(text)
        case {"$float": str(text)}:
            return float(text)
        case dict():
            return {key: unflatten(one, tensors) for key, one in tree.items()}
        case list():
            return [unflatten(one, tensors) for one in tree]
    return tree


def load_optimizer_state(optimizer: Optimizer, model: nn.Module, saved: Tree) -> None:
    """Put back what was collected of an optimizer, parameters matched by name.

    Raises:
        WmtpError: the groups hold other parameters than those saved; nothing was changed.
    """
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
    if groups != [group["params"] for group in saved["param_groups"]]:
        raise WmtpError(
            "its parameter groups are not those of the checkpoint",
            doing="loading",
            subject="optimizer",
            hint="build the optimizer as it was built when the checkpoint was made",
        )
    number = {name: at for at, name in enumerate(name for group in groups for name in group)}
    counted, groups_by_number = 0, []
    for group in saved["param_groups"]:
        numbers = list(range(counted, counted + len(group["params"])))
        counted += len(numbers)
        groups_by_number.append({**group, "params": numbers})
    state = {number[name]: dict(one) for name, one in saved["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups_by_number})


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


def encode_tree(tree: Tree) -> bytes:
    """The tree as the bytes of ``state-rankRRRRR.json``."""
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).encode() + b"\n"
