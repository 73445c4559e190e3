"""The baseline objective against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET
from wmtp.objectives.baseline import cross_entropy, uniform_weights, weighted_loss


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0], [5.0, -5.0]]])
    labels = torch.tensor([[0, 1, NO_TARGET]])
    expected = torch.tensor([[math.log(2), math.log(4), 0.0]])
    torch.testing.assert_close(cross_entropy(logits, labels), expected)


def test_cross_entropy_of_half_precision_logits_is_float32() -> None:
    logits = torch.randn(1, 3, 5).bfloat16()
    assert cross_entropy(logits, torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.float32


def test_the_loss_is_a_weighted_sum_over_what_is_asked() -> None:
    nats = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    weights = torch.tensor([[2.0, 0.5], [1.0, 7.0]])
    assert weighted_loss(nats, weights, torch.tensor(3.0)).item() == 2.0
    assert weighted_loss(nats, weights, torch.tensor(12.0)).item() == 0.5


def test_the_baseline_weighs_each_target_1() -> None:
    valid = torch.tensor([[[True, False], [True, True]]])
    assert uniform_weights(valid).tolist() == [[[1.0, 0.0], [1.0, 1.0]]]


def random_case() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 4, 7, generator=draw)
    labels = torch.randint(0, 7, (6, 4), generator=draw)
    labels[0], labels[5, 2:] = NO_TARGET, NO_TARGET
    return logits, labels


@pytest.mark.parametrize("size", [1, 2, 4])
def test_losses_and_gradients_of_parts_add_up_however_it_is_split(size: int) -> None:
    logits, labels = random_case()
    weights = uniform_weights(labels != NO_TARGET)
    denominator = weights.sum()
    whole = logits.clone().requires_grad_()
    loss = weighted_loss(cross_entropy(whole, labels), weights, denominator)
    loss.backward()  # type: ignore[no-untyped-call]

    parts = logits.clone().requires_grad_()
    total = 0.0
    for at in range(0, 6, size):
        rows = slice(at, at + size)
        part = weighted_loss(cross_entropy(parts[rows], labels[rows]), weights[rows], denominator)
        part.backward()  # type: ignore[no-untyped-call]
        total += part.item()
    assert total == pytest.approx(loss.item(), abs=1e-6)
    assert whole.grad is not None and parts.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad, rtol=0, atol=1e-7)


def test_without_targets_the_loss_is_zero_and_still_attached() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.full((2, 3), NO_TARGET)
    weights = uniform_weights(labels != NO_TARGET)
    loss = weighted_loss(cross_entropy(logits, labels), weights, weights.sum())
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert logits.grad is not None and logits.grad.abs().max() == 0.0
