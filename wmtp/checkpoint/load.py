"""Load a committed, verified checkpoint into a model, its optimizer and everything else.

Nothing is changed before all of it is known to fit: a mismatch leaves the training state as it was.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer

from uploader import below, layout
from uploader.errors import CorruptError, StartRefused
from uploader.record import NodeRecord
from wmtp.checkpoint.state import Stateful, Tree, check_optimizer, load_optimizer_state, unflatten


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
        if file.path.endswith(".safetensors"):
            tensors |= _read_tensors(directory, file.path)
        elif file.path == layout.state_file(rank):
            tree = _read_tree(directory, file.path)
    if tree is None:
        problem = f"it holds no {layout.state_file(rank)}"
        raise CorruptError(problem, doing="loading", subject=str(directory))
    return Loaded(tensors, tree)


def _read_tensors(directory: Path, name: str) -> dict[str, Tensor]:
    """Sizes in the header are compared with the file's, by the library, before a tensor takes memory."""
    try:
        # By its descriptor: whatever is put under that name now is not what is read.
        with (
            below.opened_below(directory, name) as descriptor,
            safe_open(f"/dev/fd/{descriptor}", framework="pt") as file,
        ):
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (no mapping)
    except SafetensorError as error:
        raise CorruptError(str(error), doing="loading", subject=str(directory / name)) from error


def _read_tree(directory: Path, name: str) -> Tree:
    path = directory / name
    try:
        with below.opened_below(directory, name) as descriptor, open(descriptor, "rb", closefd=False) as file:
            tree: Tree = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise CorruptError(str(error), doing="loading", subject=str(path)) from error
    for part in ("model", "optim", "extra"):
        if not isinstance(tree, dict) or not isinstance(tree.get(part), dict):
            raise CorruptError(f"it does not say what {part!r} is", doing="loading", subject=str(path))
    return tree


def apply(
    loaded: Loaded, model: nn.Module, optimizers: Mapping[str, Optimizer], extra: Mapping[str, Stateful]
) -> None:
    """Put a checkpoint into the live objects.

    Raises:
        StartRefused: model, optimizers or extra state are not those that were saved; names the first
            differences. Nothing was changed.
    """
    saved = {name: unflatten(ref, loaded.tensors) for name, ref in loaded.tree["model"].items()}
    optimizer_states = _saved("optimizer", optimizers, loaded, "optim")
    extra_states = _saved("extra state", extra, loaded, "extra")
    _check_model(model.state_dict(), saved)
    for name, optimizer in optimizers.items():
        check_optimizer(optimizer, model, optimizer_states[name])
    model.load_state_dict(saved)
    for name, optimizer in optimizers.items():
        load_optimizer_state(optimizer, model, optimizer_states[name])
    for name, stateful in extra.items():
        stateful.load_state_dict(extra_states[name])


def _check_model(state: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    differences = [f"{name} is missing" for name in state if name not in saved]
    differences += [f"{name} is unknown here" for name in saved if name not in state]
    described = [(name, _describe(saved[name]), _describe(state[name])) for name in state if name in saved]
    differences += [f"{name} is {was}, here {now}" for name, was, now in described if was != now]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise StartRefused(
            "; ".join(differences[:3]) + more,
            doing="loading the checkpoint's",
            subject="model",
            hint="resume with the model it was made with, or start another run with --run-name",
        )


def _describe(value: object) -> str:
    """What must be equal: type and shape. What is no tensor is a module's own business."""
    if not isinstance(value, Tensor):
        return "no tensor"
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _saved(what: str, here: Mapping[str, object], loaded: Loaded, key: str) -> Tree:
    """The saved states by name, which must be the names there are here."""
    saved: Tree = loaded.tree[key]
    if set(here) != set(saved):
        raise StartRefused(
            f"the checkpoint has {sorted(saved)}, this run {sorted(here)}",
            doing="loading",
            subject=what,
            hint="resume with what it was made with, or start another run with --run-name",
        )
    return {name: unflatten(one, loaded.tensors) for name, one in saved.items()}
