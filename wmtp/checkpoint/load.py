"""Load a committed, verified checkpoint into a model, its optimizer and everything else.

Nothing is changed before all of it is known to fit: a mismatch leaves the training state as it was.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from uploader import layout
from uploader.errors import CorruptError, StartRefused
from uploader.record import NodeRecord
from wmtp.checkpoint.state import Stateful, Tree, load_optimizer_state, unflatten


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint in memory: tensors by name, and the JSON tree of everything else."""

    tensors: dict[str, Tensor]
    tree: Tree


def read_checkpoint(directory: Path, record: NodeRecord, *, rank: int = 0) -> Loaded:
    """Read the files of one rank.

    Raises:
        CorruptError: a file is not what its name says, although its bytes are those that were written.
    """
    tensors: dict[str, Tensor] = {}
    tree: Tree | None = None
    for file in record.files:
        path = directory / file.path
        if path.suffix == ".safetensors":
            tensors |= _read_tensors(path)
        elif file.path == layout.state_file(rank):
            tree = _read_tree(path)
    if tree is None:
        problem = f"it holds no {layout.state_file(rank)}"
        raise CorruptError(problem, doing="loading", subject=str(directory))
    return Loaded(tensors, tree)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise CorruptError(str(error), doing="loading", subject=str(path)) from error


def _read_tree(path: Path) -> Tree:
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptError(str(error), doing="loading", subject=str(path)) from error
    if not isinstance(tree, dict):
        raise CorruptError("it is no JSON object", doing="loading", subject=str(path))
    return tree


def apply(
    loaded: Loaded, model: nn.Module, optimizers: Mapping[str, Optimizer], extra: Mapping[str, Stateful]
) -> None:
    """Put a checkpoint into the live objects.

    Raises:
        StartRefused: model, optimizers or extra state are not those that were saved; names the first
            differences. Nothing was changed.
    """
    state = model.state_dict()
    saved = {name: unflatten(ref, loaded.tensors) for name, ref in loaded.tree["model"].items()}
    _check_model(state, saved)
    _check_names("optimizer", optimizers, loaded.tree["optim"])
    _check_names("extra state", extra, loaded.tree["extra"])
    with torch.no_grad():
        for name, target in state.items():
            target.copy_(saved[name])
    for name, optimizer in optimizers.items():
        load_optimizer_state(optimizer, model, unflatten(loaded.tree["optim"][name], loaded.tensors))
    for name, stateful in extra.items():
        stateful.load_state_dict(unflatten(loaded.tree["extra"][name], loaded.tensors))


def _check_model(state: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    differences = [f"{name} is missing" for name in state if name not in saved]
    differences += [f"{name} is unknown here" for name in saved if name not in state]
    differences += [
        f"{name} is {_describe(saved[name])}, here {_describe(one)}"
        for name, one in state.items()
        if name in saved and (one.shape != saved[name].shape or one.dtype != saved[name].dtype)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise StartRefused(
            "; ".join(differences[:3]) + more,
            doing="loading the checkpoint's",
            subject="model",
            hint="resume with the model it was made with, or start another run with --run-name",
        )


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _check_names(what: str, here: Mapping[str, object], saved: Mapping[str, Any]) -> None:
    if set(here) != set(saved):
        raise StartRefused(
            f"the checkpoint has {sorted(saved)}, this run {sorted(here)}",
            doing="loading",
            subject=what,
            hint="resume with what it was made with, or start another run with --run-name",
        )
