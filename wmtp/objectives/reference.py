"""What a reference model makes of the targets, aligned with the heads that predict them.

A reference predicts one token ahead. Head k at position t predicts the token t+k+1, which the reference
predicts at position t+k: its next-token cross entropies, read k further on. So it reads H−1 tokens beyond the
window, too.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET
from wmtp.objectives.baseline import cross_entropy

Logits: TypeAlias = Callable[[Tensor], Tensor]
"""A frozen causal language model: token ids [B, S] to next-token logits [B, S, V]."""


def next_token_cross_entropies(logits: Logits, text: Tensor) -> Tensor:
    """Nats of each token after the first, given all before it: ids [L] to float32 [L−1].

    ``NO_TARGET`` in ``text`` is no token; it has 0 nats.
    """
    return cross_entropy(logits(text[None, :-1].clamp(min=0)), text[None, 1:])[0]


def align(next_token: Tensor, labels: Tensor) -> Tensor:
    """Entry t+k of a sequence's next-token cross entropies for head k at t: [B, S+H−1] to [B, S, H]."""
    aligned = next_token.unfold(1, labels.shape[2], 1)
    return torch.where(labels == NO_TARGET, 0.0, aligned)
