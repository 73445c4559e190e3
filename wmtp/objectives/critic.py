"""A critic's rewards, returns and weights: a head weighs more where the value rises on what it predicts.

A sequence is where ``mask`` is true without a gap; where it ends, nothing follows. Sources: generalised
advantage estimation, arXiv 1506.02438; multi-token prediction, arXiv 2404.19737.
"""

import torch
from torch import Tensor
from torch.nn import functional

from wmtp.objectives.scores import z_scores


def likelihood_rewards(reference: Tensor, mask: Tensor) -> Tensor:
    """For each next token, how likely the reference finds it: −CE, in nats.

    Args:
        reference: cross entropies of the next token, [B, S].
        mask: bool [B, S], where there is a next token.

    Returns:
        Rewards, [B, S]; 0 outside the mask.
    """
    return torch.where(mask, -reference, 0.0).detach()


def final_rewards(scores: Tensor, mask: Tensor) -> Tensor:
    """The reward model's score of each sequence, paid at its end.

    Args:
        scores: [B, S], of the text up to each position.
        mask: bool [B, S].

    Returns:
        Rewards, [B, S]: the score where a sequence ends, 0 elsewhere.
    """
    goes_on = functional.pad(mask[:, 1:], (0, 1), value=False)
    return torch.where(mask & ~goes_on, scores, 0.0).detach()


def gae_returns(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float = 0.99, gae_lambda: float = 0.95
) -> Tensor:
    """What the value head is to predict: generalised advantages plus the values they were estimated with.

    Args:
        rewards: [B, S].
        values: [B, S].
        mask: bool [B, S]; true lengths: beyond a sequence's end there is neither reward nor value.
        gamma: discount of a token.
        gae_lambda: 0 trusts the next value, 1 the rewards alone.

    Returns:
        Returns, [B, S], without gradient; 0 outside the mask.
    """
    values, rewards = values.detach().masked_fill(~mask, 0.0), rewards.masked_fill(~mask, 0.0)
    advantages = torch.zeros_like(values)
    advantage = next_value = torch.zeros_like(values[:, 0])
    for t in reversed(range(values.shape[1])):
        surprise = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = mask[:, t] * (surprise + gamma * gae_lambda * advantage)
        advantages[:, t], next_value = advantage, values[:, t]
    return advantages + values


def value_loss(values: Tensor, returns: Tensor, mask: Tensor, denominator: Tensor) -> Tensor:
    """These positions' share of the step's mean squared error.

    Args:
        values, returns: [B, S].
        mask: bool [B, S].
        denominator: scalar; true positions of the mask over all micro-batches and ranks; 0 counts as 1.
    """
    return (values - returns).square().masked_fill(~mask, 0.0).sum() / denominator.clamp(min=1)


def head_weights(
    values: Tensor, valid: Tensor, *, delta_lambda: float = 0.95, temperature: float = 0.7
) -> Tensor:
    """Share each position's weight among its heads: softmax over k of the z-score of δ(t+k+1).

    δ(t) = V(t) − delta_lambda · V(t−1). Its mean and deviation are over all valid entries of the step, so
    give the values of the whole step, as in ``rho1``. Where t+k+1 lies beyond the window there is no value,
    and the head has no weight.

    Args:
        values: [B, S].
        valid: bool [B, S, H], where head k has a target at t.

    Returns:
        Weights, float32 [B, S, H], without gradient: their mean over the valid heads of a position is 1.
    """
    deltas = values.detach()[:, 1:] - delta_lambda * values.detach()[:, :-1]
    ahead = functional.pad(deltas, (0, valid.shape[2])).unfold(1, valid.shape[2], 1)
    valid = inside_window(valid)
    logits = torch.full(valid.shape, -torch.inf, dtype=torch.float64, device=values.device)
    logits[valid] = z_scores(ahead[valid]) / temperature
    shares = torch.softmax(logits, dim=2).masked_fill(~valid, 0.0)
    return (shares * valid.sum(dim=2, keepdim=True)).float()


def inside_window(valid: Tensor) -> Tensor:
    """The targets that lie in the window, where there are values: t+k+1 < S. Both bool [B, S, H]."""
    _, length, heads = valid.shape
    positions = torch.arange(length, device=valid.device)
    ahead = positions[:, None] + torch.arange(1, heads + 1, device=valid.device)
    return valid & (ahead < length)
