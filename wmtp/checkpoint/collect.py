"""Find everything there is to save, anew at each save, in microseconds.

``model.state_dict()`` walks every module in Python. Where a model's state is just its parameters and
persistent buffers, the places that hold them are remembered instead and looked into again: a tensor that was
replaced is found, and a module that was added, removed or replaced makes the walk happen again.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from uploader.errors import WmtpError
from wmtp.checkpoint.state import Stateful, Tree, flatten

Groups = dict[str, dict[str, Tensor]]
"""Tensors by name: ``model`` (what is trained), ``frozen`` (the rest of the model), ``optim``, ``extra``."""


class ModelTensors:
    """A model's state by name, as ``state_dict`` gives it."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._walk()

    def _walk(self) -> None:
        """Remember where every tensor is held, and all that would tell that this is no longer so."""
        modules = list(self._model.named_modules(remove_duplicate=False))
        self._children = [(module._modules, tuple(module._modules.values())) for _, module in modules]
        self._held = [(held, len(held)) for _, module in modules for held in _holders(module)]
        places = {
            f"{prefix}.{key}" if prefix else key: (held, key)
            for prefix, module in modules
            for held in _holders(module)
            for key in held
        }
        state = self._model.state_dict(keep_vars=True)
        plain = all(name in places and places[name][0][places[name][1]] is one for name, one in state.items())
        self._places = [(name, *places[name]) for name in state] if plain else None
        self.buffers = frozenset(name for name, _ in self._model.named_buffers(remove_duplicate=False))

    def _changed(self) -> bool:
        return any(tuple(modules.values()) != known for modules, known in self._children) or any(
            len(held) != count for held, count in self._held
        )

    def current(self) -> dict[str, Any]:
        """The state now. Values are tensors, but for what a module's own ``get_extra_state`` gives."""
        if self._changed():
            self._walk()
        if self._places is None:
            return self._model.state_dict(keep_vars=True)
        return {name: held[key] for name, held, key in self._places}


def _holders(module: nn.Module) -> Iterator[dict[str, Tensor | None]]:
    yield module._parameters  # type: ignore[misc]
    yield module._buffers


class Collector:
    """Collects what there is to save: tensors that are not yet copied, and the JSON tree of the rest.

    Raises:
        WmtpError: an optimizer has parameters that are not the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Mapping[str, Optimizer],
        extra: Mapping[str, Stateful],
        about: Tree,
    ) -> None:
        self._tensors, self._optimizers, self._extra, self._about = (
            ModelTensors(model),
            optimizers,
            extra,
            about,
        )

    @property
    def buffers(self) -> frozenset[str]:
        """The names of the model's buffers: a forward pass may change them."""
        return self._tensors.buffers

    def collect(self) -> tuple[Groups, Tree]:
        """Everything as it is now; the tensors are those of the model and the optimizers themselves."""
        groups: Groups = {"model": {}, "frozen": {}, "optim": {}, "extra": {}}
        state = self._tensors.current()
        tree: Tree = {"model": {}}
        for name, one in state.items():
            trained = isinstance(one, Tensor) and one.requires_grad
            tree["model"][name] = _leaf(one, name, groups["model" if trained else "frozen"])
        names = {id(one): name for name, one in state.items()}
        tree["optim"] = {
            name: _optimizer_tree(optimizer, f"optim.{name}", names, groups["optim"])
            for name, optimizer in self._optimizers.items()
        }
        tree["extra"] = {
            name: flatten(stateful.state_dict(), f"extra.{name}", groups["extra"])
            for name, stateful in self._extra.items()
        }
        tree["about"] = self._about
        return groups, tree


def _leaf(value: object, name: str, tensors: dict[str, Tensor]) -> Any:
    """``flatten``, quick where the value is a tensor, as nearly all are."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"$tensor": name}
    return flatten(value, name, tensors)


def _optimizer_tree(
    optimizer: Optimizer, prefix: str, names: Mapping[int, str], tensors: dict[str, Tensor]
) -> Tree:
    """The optimizer's state with parameters by their names in the model, not by their numbers."""
    try:
        state = {
            name: {key: _leaf(value, f"{prefix}.state.{name}.{key}", tensors) for key, value in one.items()}
            for name, one in ((names[id(parameter)], one) for parameter, one in optimizer.state.items())
        }
        groups = [
            {**group, "params": [names[id(parameter)] for parameter in group["params"]]}
            for group in optimizer.param_groups
        ]
    except KeyError:
        raise WmtpError(
            "some of its parameters are not the model's",
            subject="optimizer",
            hint="give the checkpointer the module that holds all parameters being trained",
        ) from None
    return {"state": state, "param_groups": flatten(groups, f"{prefix}.param_groups", tensors)}
