"""Rewards, returns and head weights of the critic, by hand and against a slow implementation."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmtp.objectives.critic import (
    final_rewards,
    gae_returns,
    head_weights,
    inside_window,
    likelihood_rewards,
    value_loss,
)

Sequences = tuple[Tensor, Tensor, Tensor]


def test_likelihoods_are_rewards_inside_the_mask() -> None:
    rewards = likelihood_rewards(torch.tensor([[0.5, 2.0, 9.0]]), torch.tensor([[True, True, False]]))
    assert rewards.tolist() == [[-0.5, -2.0, 0.0]]


def test_a_score_is_paid_where_its_sequence_ends() -> None:
    scores = torch.arange(1.0, 11.0).view(2, 5)
    mask = torch.tensor([[True, True, True, False, False], [True, False, True, True, True]])
    assert final_rewards(scores, mask).tolist() == [[0, 0, 3, 0, 0], [6, 0, 0, 0, 10]]


def test_returns_by_hand() -> None:
    """γ = λ = ½, rewards 1, 1, 1, values 2, 4, 8, two true positions.

    δ₁ = 1 − 4 = −3, δ₀ = 1 + ½·4 − 2 = 1; A₁ = −3, A₀ = 1 + ¼·(−3) = ¼; returns A + V.
    """
    returns = gae_returns(
        torch.ones(1, 3),
        torch.tensor([[2.0, 4.0, 8.0]]),
        torch.tensor([[True, True, False]]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert returns.tolist() == [[2.25, 1.0, 0.0]]


def test_lambda_one_gives_discounted_sums_of_rewards() -> None:
    rewards, values = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[9.0, -5.0, 3.0]])
    returns = gae_returns(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, gae_lambda=1.0)
    torch.testing.assert_close(returns, torch.tensor([[3.0, 4.0, 4.0]]))


def test_what_lies_outside_the_mask_does_not_matter() -> None:
    mask = torch.tensor([[True, True, False, True]])
    one, other = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 2.0, math.nan, 4.0]])
    assert torch.equal(gae_returns(one, one, mask), gae_returns(other, other, mask))
    loss = value_loss(other, torch.zeros(1, 4), mask, torch.tensor(3))
    assert loss.item() == pytest.approx((1 + 4 + 16) / 3)


def test_value_loss_of_nothing_is_zero_and_attached() -> None:
    values = torch.randn(2, 3, requires_grad=True)
    loss = value_loss(values, torch.randn(2, 3), torch.zeros(2, 3, dtype=torch.bool), torch.tensor(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0 and values.grad is not None and values.grad.abs().max() == 0


@st.composite
def sequences(draw: st.DrawFn) -> Sequences:
    """Rewards, values and mask, [B, S]."""
    shape = draw(st.tuples(st.integers(1, 3), st.integers(1, 7)))
    size = math.prod(shape)

    def numbers() -> Tensor:
        return torch.tensor(draw(st.lists(st.floats(-5, 5, width=32), min_size=size, max_size=size)))

    mask = draw(st.lists(st.booleans(), min_size=size, max_size=size))
    return numbers().view(shape), numbers().view(shape), torch.tensor(mask).view(shape)


def slow_return(rewards: list[float], values: list[float], start: int, end: int) -> float:
    """Σ (γλ)^i δ(start+i) + V(start), within the sequence that ends before ``end``."""
    total = values[start]
    for t in range(start, end):
        after = values[t + 1] if t + 1 < end else 0.0
        total += (0.99 * 0.95) ** (t - start) * (rewards[t] + 0.99 * after - values[t])
    return total


@given(sequences())
def test_returns_are_those_of_the_slow_implementation(case: Sequences) -> None:
    returns = gae_returns(*case)
    for row, (rewards, values, mask) in enumerate(zip(*(part.tolist() for part in case), strict=True)):
        for t, inside in enumerate(mask):
            end = next((u for u in range(t, len(mask)) if not mask[u]), len(mask))
            expected = slow_return(rewards, values, t, end) if inside else 0.0
            assert returns[row, t].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_targets_beyond_the_window_have_no_value() -> None:
    inside = inside_window(torch.ones(1, 4, 2, dtype=torch.bool))
    assert inside.tolist() == [[[True, True], [True, True], [True, False], [False, False]]]


def test_head_weights_by_hand() -> None:
    """λ_d = 1 makes δ = 1, 3, 1, of which the heads see (1, 3), (3, 1), (1, –), (–, –): five entries with
    mean 1.8 and variance 0.96; both heads that choose differ by 2 / √0.96.
    """
    values = torch.tensor([[0.0, 1.0, 4.0, 5.0]])
    weights = head_weights(values, torch.ones(1, 4, 2, dtype=torch.bool), delta_lambda=1.0, temperature=2.0)
    high = 1 / (1 + math.exp(-2 / math.sqrt(0.96) / 2))
    expected = [[2 - 2 * high, 2 * high], [2 * high, 2 - 2 * high], [1.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(weights, torch.tensor([expected]))


def slow_head_weights(values: list[list[float]], valid: Tensor) -> list[list[list[float]]]:
    samples, length, heads = valid.shape
    deltas = {
        (b, t, k): values[b][t + k + 1] - 0.95 * values[b][t + k]
        for b in range(samples)
        for t in range(length)
        for k in range(heads)
        if valid[b, t, k] and t + k + 1 < length
    }
    mean = sum(deltas.values()) / max(1, len(deltas))
    deviation = math.sqrt(sum((one - mean) ** 2 for one in deltas.values()) / max(1, len(deltas)))
    weights = [[[0.0] * heads for _ in range(length)] for _ in range(samples)]
    for b in range(samples):
        for t in range(length):
            here = {
                k: (deltas[b, t, k] - mean) / max(deviation, 1e-8)
                for k in range(heads)
                if (b, t, k) in deltas
            }
            total = sum(math.exp(z / 0.7) for z in here.values())
            for k, z in here.items():
                weights[b][t][k] = len(here) * math.exp(z / 0.7) / total
    return weights


@given(sequences(), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_head_weights_are_those_of_the_slow_implementation(case: Sequences, heads: int, seed: int) -> None:
    values = case[0]
    valid = torch.rand(*values.shape, heads, generator=torch.Generator().manual_seed(seed)) < 0.7
    weights = head_weights(values, valid)
    expected = torch.tensor(slow_head_weights(values.double().tolist(), valid)).view(weights.shape)
    torch.testing.assert_close(weights, expected, rtol=1e-3, atol=1e-4)
    inside = inside_window(valid)
    assert (weights[~inside] == 0).all()
    counts = inside.sum(dim=2)
    torch.testing.assert_close(weights.sum(dim=2), counts.float())


def test_head_weights_have_no_gradient() -> None:
    values = torch.randn(2, 5, requires_grad=True)
    assert not head_weights(values, torch.ones(2, 5, 2, dtype=torch.bool)).requires_grad


def test_a_head_without_targets_leaves_its_share_to_the_others() -> None:
    values, valid = torch.randn(2, 6, generator=torch.Generator().manual_seed(0)), torch.ones(2, 6, 3) > 0
    valid[..., 1] = False
    weights = head_weights(values, valid)
    assert (weights[..., 1] == 0).all()
    torch.testing.assert_close(weights.sum(dim=2), inside_window(valid).sum(dim=2).float())


def test_one_valid_entry_and_equal_values_weigh_1() -> None:
    valid = torch.zeros(1, 4, 2, dtype=torch.bool)
    valid[0, 1, 1] = True
    assert head_weights(torch.tensor([[1.0, 2.0, 5.0, 3.0]]), valid).tolist() == valid.float().tolist()
    everywhere = torch.ones(1, 4, 2, dtype=torch.bool)
    flat = head_weights(torch.full((1, 4), 0.3), everywhere)
    torch.testing.assert_close(flat, inside_window(everywhere).float())
