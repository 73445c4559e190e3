"""Rho-1: weigh targets by their excess loss over a reference model. Source: arXiv 2404.07965.

A target's score is the signed difference of the model's and the reference's cross entropy: what the model
could still learn of it. Mean, deviation, softmax and rank are over all valid targets of an optimizer step,
so the functions take the scores of the whole step, all micro-batches and ranks in their order: how it was
split can't matter then.
"""

from fractions import Fraction

import torch
from torch import Tensor

from wmtp.objectives.scores import z_scores


def excess_loss(cross_entropies: Tensor, reference: Tensor) -> Tensor:
    """The score of each target, without gradient: CE − CE of the reference, both [B, S, H], in nats."""
    return (cross_entropies - reference).detach()


def softmax_weights(
    scores: Tensor, valid: Tensor, *, temperature: float = 0.7, clip: tuple[float, float] = (0.05, 3.0)
) -> Tensor:
    """Weights that grow with the score: softmax of the z-scores, scaled to mean 1, clipped, and mean 1 again.

    Args:
        scores: [B, S, H].
        valid: bool [B, S, H], where there is a target.
        temperature: of the softmax; higher is more uniform.
        clip: lowest and highest weight before the second scaling.

    Returns:
        Weights, float32 [B, S, H]; 0 where there is no target. Their mean over targets is 1.
    """
    weights = torch.zeros_like(scores, dtype=torch.float32)
    chances = torch.softmax(z_scores(scores[valid]) / temperature, dim=0)
    clipped = (chances * chances.numel()).clamp(*clip)
    weights[valid] = (clipped / clipped.mean()).float()
    return weights


def kept_weights(scores: Tensor, valid: Tensor, *, keep_ratio: float = 0.7) -> Tensor:
    """Weight 1 for exactly the ⌈keep_ratio · targets⌉ targets of the highest score, 0 for all others.

    Of equal scores the earlier ones are kept, in the order sample, position, head.

    Args:
        scores: [B, S, H].
        valid: bool [B, S, H], where there is a target.

    Returns:
        Weights, float32 [B, S, H].
    """
    ranked = scores.detach()[valid].argsort(descending=True, stable=True)
    kept = torch.zeros(len(ranked), device=scores.device)
    kept[ranked[: kept_count(len(ranked), keep_ratio)]] = 1.0
    weights = torch.zeros_like(scores, dtype=torch.float32)
    weights[valid] = kept
    return weights


def kept_count(targets: int, keep_ratio: float) -> int:
    """⌈keep_ratio · targets⌉ of the ratio as it is written: 0.55 of 100 is 55, not 56 as in binary."""
    share = Fraction(str(keep_ratio)) * targets
    return -(-share.numerator // share.denominator)
