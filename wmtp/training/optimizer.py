"""AdamW, its learning rate as a function of the step, and gradient clipping.

The schedule has no state: a resumed run, at any step, computes what the uninterrupted one would have.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wmtp.checkpoint.parts import is_sharded


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """AdamW (arXiv 1711.05101).

    Attributes:
        learning_rate: the peak; ``set_learning_rate`` changes it before each step.
        weight_decay: on matrices only, embeddings included; norms are left alone.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW in two groups, matrices and the rest, each in the order of the model's parameters."""
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True
    )


def learning_rate(
    step: int, *, peak: float, warmup_steps: int, max_steps: int, floor_ratio: float = 0.1
) -> float:
    """The rate of the step that follows ``step`` finished ones.

    Rises linearly and reaches ``peak`` at the last of ``warmup_steps``, then falls along half a cosine to
    ``floor_ratio * peak`` at ``max_steps``, and stays there.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    done = min(1.0, (step - warmup_steps) / max(1, max_steps - warmup_steps))
    return peak * (floor_ratio + (1 - floor_ratio) * (1 + math.cos(math.pi * done)) / 2)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Use ``rate`` in every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[Tensor], max_norm: float = 1.0) -> Tensor:
    """Scale all gradients to a joint 2-norm of at most ``max_norm``; return the norm before, a scalar.

    Of sharded gradients the norm is that of all ranks' parts together.
    """
    norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm.full_tensor() if is_sharded(norm) else norm
