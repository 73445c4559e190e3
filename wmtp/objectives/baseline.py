"""Cross entropies, and the baseline objective: for each head the mean over its targets, summed over heads.

A mean's denominator always comes from outside, counted over all micro-batches and ranks of the step, so the
gradients of the parts add up to those of the whole however it was split.
"""

from torch import Tensor
from torch.nn import functional

from wmtp.data.dataset import NO_TARGET


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats for each target, in float32; 0 where there is none.

    Args:
        logits: [B, S, V].
        labels: [B, S], ``NO_TARGET`` where there is nothing to predict.

    Returns:
        Cross entropies, [B, S].
    """
    flat = functional.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=NO_TARGET, reduction="none"
    )
    return flat.view(labels.shape)


def count_targets(labels: Tensor) -> Tensor:
    """How many targets each head has: labels [B, S, H] to int64 [H]."""
    return (labels != NO_TARGET).sum(dim=(0, 1))


def head_loss(cross_entropies: Tensor, denominator: Tensor, weights: Tensor | None = None) -> Tensor:
    """One head's share of the step's loss: the (weighted) sum of its cross entropies over ``denominator``.

    Args:
        cross_entropies: [B, S], 0 where there is no target.
        denominator: scalar; the step's targets, over all micro-batches and ranks. 0 counts as 1, so a step
            without targets has the loss 0 and gradients of 0.
        weights: [B, S], without gradient; None means 1 everywhere.
    """
    total = cross_entropies.sum() if weights is None else (weights * cross_entropies).sum()
    return total / denominator.clamp(min=1)
