"""A transformer with Adam's state of a given size, and the three ways in which it is trained.

``cpu`` trains for real. ``accelerator`` stands for a device: the host waits, the CPU is idle, and parameters
change only in the optimizer's step, a little on every page. ``cuda`` trains for real on the device there is.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Mode = Literal["cpu", "accelerator", "cuda"]

BYTES_A_PARAMETER = 12
"""float32 weights and Adam's two averages; gradients are not saved."""

TOKENS = 128
TOKEN_KINDS = 1024
PAGE_FLOATS = 1024
WIDTHS = {0.02: 64, 0.3: 256, 0.8: 512, 2.0: 768}


@dataclass
class Workload:
    """What the loop drives: forward and backward, then ``optimizer.step()``, then ``settle``."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    forward_backward: Callable[[], None]
    settle: Callable[[], None] = lambda: None

    @property
    def size_bytes(self) -> int:
        """The state that a checkpoint holds."""
        parameters = list(self.model.parameters())
        states = [one for state in self.optimizer.state.values() for one in state.values()]
        return sum(one.nbytes for one in [*parameters, *states] if isinstance(one, Tensor))


class PageTouch(torch.optim.Optimizer):
    """Stands for an optimizer on a device: Adam's state, and a change on every page in hardly any time."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, {"lr": 1e-3, "betas": (0.9, 0.999)})
        for parameter in self.param_groups[0]["params"]:
            average = torch.full_like(parameter, 1e-3)
            self.state[parameter] = {
                "step": torch.zeros(()),
                "exp_avg": average,
                "exp_avg_sq": average.clone(),
            }
        self._touched = [one.detach().view(-1)[::PAGE_FLOATS] for one in self.param_groups[0]["params"]]
        self._steps = [one["step"] for one in self.state.values()]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        torch._foreach_add_(self._touched, 1e-3)
        torch._foreach_add_(self._steps, 1.0)


class Transformer(nn.Module):
    """Blocks between an embedding and a head, as small a program as trains like a language model."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(TOKEN_KINDS, width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, max(width // 64, 1), 4 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.head = nn.Linear(width, TOKEN_KINDS)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.embedding(tokens)
        for block in self.blocks:
            hidden = block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def build(mode: Mode, size_gb: float, step_s: float) -> Workload:
    """The workload whose checkpoint has about ``size_gb`` (1e9 bytes).

    Args:
        step_s: how long the simulated device is busy; without meaning in the other modes.
    """
    torch.manual_seed(0)
    width = next((width for limit, width in WIDTHS.items() if size_gb <= limit), 1024)
    parameters = size_gb * 1e9 / BYTES_A_PARAMETER - 2 * TOKEN_KINDS * width
    layers = max(1, round(parameters / (12 * width**2)))
    model = Transformer(width, layers)
    if mode == "accelerator":
        return Workload(model, PageTouch(model.parameters()), lambda: time.sleep(step_s))
    device = torch.device("cuda" if mode == "cuda" else "cpu")
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    tokens = torch.randint(TOKEN_KINDS, (1, TOKENS + 1), device=device)

    def forward_backward() -> None:
        optimizer.zero_grad()
        logits = model(tokens[:, :-1])
        nn.functional.cross_entropy(logits.view(-1, TOKEN_KINDS), tokens[:, 1:].reshape(-1)).backward()  # type: ignore[no-untyped-call]

    settle = torch.cuda.synchronize if mode == "cuda" else lambda: None
    return Workload(model, optimizer, forward_backward, settle)
