"""Find everything there is to save, anew at each save, in microseconds.

``model.state_dict()`` walks every module in Python. Where a model's state is just its parameters and
persistent buffers, the places that hold them are remembered instead and looked into again: a tensor that was
replaced is found, and a module that was added, removed or replaced makes the walk happen again. So with
optimizers: a place remembered is looked into, a state that came or went is found.
"""

import operator
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from uploader.errors import WmtpError
from wmtp.checkpoint.parts import NOWHERE, Groups, Offsets, Parts
from wmtp.checkpoint.state import Stateful, Tree, flatten


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


class OptimizerTensors:
    """An optimizer's state by name, its parameters named as in the model.

    Args:
        prefix: in front of every name: ``optim.main``.
    """

    def __init__(self, optimizer: Optimizer, prefix: str) -> None:
        self._optimizer, self._prefix = optimizer, prefix
        self._parameters: list[Tensor] = []
        self._states: list[dict[str, Any]] = []
        self._counts: list[int] = []
        self._places: list[tuple[str, dict[str, Any], str]] = []
        self._tree: Tree = {}

    def _walk(self, names: Mapping[int, str], tensors: dict[str, Tensor]) -> None:
        """Remember where every tensor is held, as in a model; other values are not remembered."""
        state = self._optimizer.state
        self._tree = {
            names[id(parameter)]: {
                key: _leaf(value, f"{self._prefix}.state.{names[id(parameter)]}.{key}", tensors)
                for key, value in one.items()
            }
            for parameter, one in state.items()
        }
        plain = all(isinstance(value, Tensor) for one in state.values() for value in one.values())
        self._parameters = list(state) if plain else []
        self._states = list(state.values())
        self._counts = [len(one) for one in self._states]
        self._places = [
            (f"{self._prefix}.state.{names[id(parameter)]}.{key}", one, key)
            for parameter, one in state.items()
            for key in one
        ]

    def _changed(self) -> bool:
        state = self._optimizer.state
        return (
            len(state) != len(self._parameters)
            or not all(map(operator.is_, state, self._parameters))
            or not all(map(operator.is_, state.values(), self._states))
            or list(map(len, self._states)) != self._counts
        )

    def collect(self, names: Mapping[int, str], tensors: dict[str, Tensor]) -> Tree:
        """The tree; the tensors go to ``tensors``.

        Args:
            names: of the model's parameters, by their identity.

        Raises:
            WmtpError: the optimizer has parameters that are not the model's.
        """
        try:
            groups = [
                (group, [names[id(parameter)] for parameter in group["params"]])
                for group in self._optimizer.param_groups
            ]
            if self._changed():
                self._walk(names, tensors)
            else:
                tensors.update({name: one[key] for name, one, key in self._places})
        except KeyError:
            raise WmtpError(
                "some of its parameters are not the model's",
                subject="optimizer",
                hint="give the checkpointer the module that holds all parameters being trained",
            ) from None
        return {
            "state": self._tree,
            "param_groups": [
                self._settings_of(group, number, tensors) | {"params": parameters}
                for number, (group, parameters) in enumerate(groups)
            ],
        }

    def _settings_of(self, group: Mapping[str, Any], number: int, tensors: dict[str, Tensor]) -> Tree:
        own = {key: value for key, value in group.items() if key != "params"}
        tree: Tree = flatten(own, f"{self._prefix}.param_groups.{number}", tensors)
        return tree


class Collector:
    """Collects what there is to save: tensors that are not yet copied, and the JSON tree of the rest.

    Args:
        rank: whose part of it; of several, each names all of it in its tree and has its own of the tensors.
        world_size: how many ranks there are.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Mapping[str, Optimizer],
        extra: Mapping[str, Stateful],
        about: Tree,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._model, self._extra, self._about = ModelTensors(model), extra, about
        self._parts = Parts(model, rank) if world_size > 1 else None
        self._optimizers = {
            name: OptimizerTensors(optimizer, f"optim.{name}") for name, optimizer in optimizers.items()
        }

    @property
    def buffers(self) -> frozenset[str]:
        """The names of the model's buffers: a forward pass may change them."""
        return self._model.buffers

    @property
    def offsets(self) -> Offsets:
        """Of the tensors collected last that are parts, where in the whole they begin."""
        return self._parts.offsets if self._parts is not None else NOWHERE

    def collect(self) -> tuple[Groups, Tree]:
        """Everything as it is now; the tensors are those of the model and the optimizers themselves.

        Raises:
            WmtpError: an optimizer has parameters that are not the model's.
        """
        if self._parts is None:
            return self._collect()
        self._parts.reshard()
        groups, tree = self._collect()
        return self._parts.own(groups), tree

    def _collect(self) -> tuple[Groups, Tree]:
        groups: Groups = {"model": {}, "frozen": {}, "optim": {}, "extra": {}}
        state = self._model.current()
        tree: Tree = {"model": {}}
        for name, one in state.items():
            trained = isinstance(one, Tensor) and one.requires_grad
            tree["model"][name] = _leaf(one, name, groups["model" if trained else "frozen"])
        names = {id(one): name for name, one in state.items()}
        tree["optim"] = {
            name: optimizer.collect(names, groups["optim"]) for name, optimizer in self._optimizers.items()
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
