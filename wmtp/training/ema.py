"""An average of the weights, kept beside them: often better than the weights it is made of.

After each step ``average ← decay · average + (1 − decay) · weight``: the mean of about 1/(1 − decay) steps.
It begins as the weights do, so in a run that is not much longer than that they still count.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from uploader.errors import CorruptError
from wmtp.model.mtp import MTPModel


def place_for_averages(model: MTPModel) -> MTPModel:
    """A copy of a model that isn't sharded yet: of one that is there can be no copy."""
    return copy.deepcopy(model).requires_grad_(False).eval()


class Ema:
    """The averages of a model's weights, as a model; a part of every checkpoint.

    Args:
        model: what is trained, as it will be saved; a critic's value head is none of it.
        averages: what is to hold the averages, sharded as the model; None keeps none.
        decay: what a step leaves of an average.

    Attributes:
        model: holds the averages; None where there are none.
        news: what a person should know of the load: averages that begin or end at a resume.
    """

    def __init__(self, model: MTPModel, averages: MTPModel | None, decay: float | None) -> None:
        self.model, self.decay, self.news = averages, decay, ""
        self._weights: list[Tensor] = list(model.parameters())
        self._by_name: dict[str, Tensor] = {} if self.model is None else dict(self.model.named_parameters())
        self._averages = list(self._by_name.values())

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights of a step; behind the fence, for a snapshot may still copy before it."""
        if self.decay is not None:
            torch._foreach_lerp_(self._averages, self._weights, 1 - self.decay)

    def state_dict(self) -> dict[str, Any]:
        return {"weights": self._by_name}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Averages as they were; those of a checkpoint that has none begin as its weights, loaded before."""
        saved = state["weights"]
        if not self._by_name:
            if saved:
                self.news = "optim.ema_decay is null: the checkpoint's averaged weights are left behind"
            return
        if not saved:
            self.news = "optim.ema_decay: the checkpoint has no averaged weights, they begin as its weights"
            saved = dict(zip(self._by_name, self._weights, strict=True))
        if saved.keys() != self._by_name.keys():
            raise CorruptError("they are not those of the model", doing="loading", subject="averaged weights")
        for name, average in self._by_name.items():
            average.copy_(saved[name])
