"""Load a committed, verified checkpoint into a model, its optimizer and everything else.

Nothing is changed before all of it is known to fit: a mismatch leaves the training state as it was.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from uploader import below, layout
from uploader.errors import CorruptError, StartRefused
from uploader.record import NodeRecord
from wmtp.checkpoint.placed import Placed
from wmtp.checkpoint.state import (
    RandomState,
    Stateful,
    Tree,
    check_optimizer,
    load_optimizer_state,
    unflatten,
)
from wmtp.checkpoint.stored import StoredTensors


@dataclass(frozen=True, slots=True)
class Loaded:
    """A checkpoint that has been opened.

    Attributes:
        tensors: by name, read when asked for; whole, whichever ranks wrote them.
        tree: the JSON tree of everything else, as one rank saw it.
        rank: which that was.
        world_size: how many ranks wrote the checkpoint.
    """

    tensors: Mapping[str, Tensor]
    tree: Tree
    rank: int = 0
    world_size: int = 1


def read_checkpoint(directory: Path, record: NodeRecord, *, rank: int = 0, world_size: int = 1) -> Loaded:
    """Open the files of a checkpoint.

    Args:
        rank, world_size: who is going to load it. Among as many ranks as wrote it, each gets what is its own
            back; else all of them what rank 0 had.

    Raises:
        CorruptError: a file is not what its name says, although its bytes are those that were written.
    """
    whose = rank if record.world_size == world_size else 0
    names = [file.path for file in record.files]
    tensors = StoredTensors(directory, [name for name in names if name.endswith(".safetensors")])
    if layout.state_file(whose) not in names:
        problem = f"it holds no {layout.state_file(whose)}"
        raise CorruptError(problem, doing="loading", subject=str(directory))
    return Loaded(tensors, _read_tree(directory, layout.state_file(whose)), whose, record.world_size)


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
    loaded: Loaded,
    model: nn.Module,
    optimizers: Mapping[str, Optimizer],
    extra: Mapping[str, Stateful],
    *,
    rank: int = 0,
    world_size: int = 1,
) -> None:
    """Put a checkpoint into the live objects; of what is sharded, this rank's part.

    Raises:
        StartRefused: model, optimizers or extra state are not those that were saved; names the first
            differences. Nothing was changed.
    """
    tensors = Placed(loaded, model, extra) if world_size > 1 else loaded.tensors
    saved = {name: unflatten(ref, tensors) for name, ref in loaded.tree["model"].items()}
    optimizer_states = _saved("optimizer", optimizers, loaded.tree["optim"], tensors)
    extra_states = _saved("extra state", extra, loaded.tree["extra"], tensors)
    _check_model(model.state_dict(), saved)
    for name, optimizer in optimizers.items():
        check_optimizer(optimizer, model, optimizer_states[name])
    model.load_state_dict(saved)
    for name, optimizer in optimizers.items():
        load_optimizer_state(optimizer, model, optimizer_states[name])
    for name, stateful in extra.items():
        stateful.load_state_dict(extra_states[name])
        if loaded.world_size != world_size and isinstance(stateful, RandomState):
            stateful.part_ways(rank)


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


def _saved(what: str, here: Mapping[str, object], saved: Tree, tensors: Mapping[str, Tensor]) -> Tree:
    """The saved states by name, which must be the names there are here."""
    if set(here) != set(saved):
        raise StartRefused(
            f"the checkpoint has {sorted(saved)}, this run {sorted(here)}",
            doing="loading",
            subject=what,
            hint="resume with what it was made with, or start another run with --run-name",
        )
    return {name: unflatten(one, tensors) for name, one in saved.items()}
