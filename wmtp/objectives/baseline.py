"""Cross entropies, and the loss that every objective has in common: a weighted mean over the step's targets.

``loss = Σ w·CE / Σ w`` over all heads; the baseline's weights are 1. The denominator always comes from
outside, summed over all micro-batches and ranks of the step, so the gradients of the parts add up to those
of the whole however it was split.
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


def uniform_weights(valid: Tensor) -> Tensor:
    """The baseline's weights: 1 for each target. ``valid``: bool [B, S, H], where there is one."""
    return valid.float()


def weighted_loss(cross_entropies: Tensor, weights: Tensor, denominator: Tensor) -> Tensor:
    """What these targets add to the step's loss: their weighted cross entropies over ``denominator``.

    Args:
        cross_entropies: of one head, [B, S], or of all, [B, S, H]; 0 where there is no target.
        weights: of the same shape, without gradient.
        denominator: scalar; the step's weights, summed over heads, micro-batches and ranks. Below 1 there is
            no target, for a weight's mean over targets is 1: it counts as 1, so such a step has the loss 0
            and gradients of 0.
    """
    return (weights * cross_entropies).sum() / denominator.clamp(min=1)
