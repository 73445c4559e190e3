"""The reference's cross entropies stand where the heads' targets stand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmtp.data.dataset import NO_TARGET
from wmtp.objectives.reference import align, next_token_cross_entropies

VOCAB = 11


def logits(ids: Tensor) -> Tensor:
    """A causal model whose logits at t depend on every token up to t."""
    history = torch.cumsum((ids + 1) * torch.arange(1, ids.shape[1] + 1), dim=1)
    return torch.sin(history[..., None] * torch.arange(1.0, VOCAB + 1))


def windows(text: Tensor, length: int, heads: int) -> tuple[Tensor, Tensor]:
    """A text that may end before the last head's last target: [1, S+H], and its labels [1, S, H]."""
    padded = torch.cat((text, torch.full((length + heads,), NO_TARGET)))[: length + heads]
    labels = torch.stack([padded[k + 1 : k + 1 + length] for k in range(heads)], dim=1)
    return padded[None], labels[None]


def reference_cross_entropies(text: Tensor, labels: Tensor) -> Tensor:
    return align(torch.stack([next_token_cross_entropies(logits, row) for row in text]), labels)


def slow(text: list[int], t: int, k: int) -> float:
    """Minus the log chance of token t+k+1, given all tokens before it."""
    chances = logits(torch.tensor([text[: t + k + 1]]))[0, -1].log_softmax(-1)
    return -chances[text[t + k + 1]].item()


@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 4), st.integers(0, 2**32 - 1))
def test_each_head_gets_the_nats_of_its_own_target(length: int, heads: int, beyond: int, seed: int) -> None:
    count = length + min(beyond, heads)
    text = torch.randint(0, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))
    padded, labels = windows(text, length, heads)
    found = reference_cross_entropies(padded, labels)
    assert found.shape == (1, length, heads)
    for t in range(length):
        for k in range(heads):
            expected = slow(text.tolist(), t, k) if t + k + 1 < count else 0.0
            assert found[0, t, k].item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_the_reference_reads_prompts_which_are_no_targets() -> None:
    text, labels = windows(torch.randint(0, VOCAB, (9,)), 6, 3)
    learnt = labels.clone()
    learnt[:, 3:], learnt[:, 5, 2] = NO_TARGET, labels[:, 5, 2]
    found = reference_cross_entropies(text, learnt)
    everything = reference_cross_entropies(text, labels)
    assert torch.equal(found, torch.where(learnt == NO_TARGET, 0.0, everything))


def test_alignment_by_hand() -> None:
    labels = torch.tensor([[[1, 2], [2, 3], [3, NO_TARGET]]])
    aligned = align(torch.tensor([[10.0, 20.0, 30.0, 40.0]]), labels)
    assert aligned.tolist() == [[[10, 20], [20, 30], [30, 0]]]


def test_next_token_nats_by_hand() -> None:
    found = next_token_cross_entropies(
        lambda ids: torch.zeros(*ids.shape, 4), torch.tensor([3, 0, NO_TARGET])
    )
    torch.testing.assert_close(found, torch.tensor([math.log(4), 0.0]))
