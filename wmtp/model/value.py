"""The value head of the critic: what is still to come, judged from the trunk's states."""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


class ValueHead(nn.Module):
    """Linear D→D/2, ReLU, linear →1; always in float32."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size // 2)
        self.value = nn.Linear(hidden_size // 2, 1)

    @classmethod
    def from_settings(cls, hidden_size: int, *, seed: int, device: torch.device | str = "cpu") -> Self:
        """A new head: equal weights for equal seeds on any device; global RNG is not touched."""
        with torch.device("meta"):
            head = cls(hidden_size)
        head.to_empty(device="cpu")
        head.initialise(torch.Generator().manual_seed(seed))
        return head.to(device)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Normal with variance 2 / inputs (arXiv 1502.01852), but the output 0, so that V begins at 0."""
        self.hidden.weight.normal_(0.0, (2 / self.hidden.in_features) ** 0.5, generator=generator)
        for zero in (self.hidden.bias, self.value.weight, self.value.bias):
            zero.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """V of each position: the trunk's states [B, S, D] to float32 [B, S].

        A tensor of its own, no view: what FSDP hooks to the output of a module would be lost with a view.
        """
        with torch.autocast(hidden.device.type, enabled=False):
            rectified = functional.relu(self.hidden(hidden.float()))
            return self.value(rectified).squeeze(-1).clone()  # type: ignore[no-any-return]
