"""The baseline objective against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET
from wmtp.objectives.baseline import count_targets, cross_entropy, head_loss


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [math.log(3), 0.0], [5.0, -5.0]]])
    labels = torch.tensor([[0, 1, NO_TARGET]])
    expected = torch.tensor([[math.log(2), math.log(4), 0.0]])
    torch.testing.assert_close(cross_entropy(logits, labels), expected)


def test_cross_entropy_of_half_precision_logits_is_float32() -> None:
    logits = torch.randn(1, 3, 5).bfloat16()
    assert cross_entropy(logits, torch.zeros(1, 3, dtype=torch.int64)).dtype == torch.float32


def test_targets_are_counted_head_by_head() -> None:
    labels = torch.tensor([[[1, 2], [3, NO_TARGET]], [[4, NO_TARGET], [NO_TARGET, NO_TARGET]]])
    assert count_targets(labels).tolist() == [3, 1]


def test_the_loss_is_a_mean_over_targets_or_over_whatever_is_asked() -> None:
    nats = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    assert head_loss(nats, torch.tensor(3)).item() == 2.0
    assert head_loss(nats, torch.tensor(12)).item() == 0.5
    weights = torch.tensor([[2.0, 0.0], [1.0, 7.0]])
    assert head_loss(nats, torch.tensor(3), weights).item() == pytest.approx(5 / 3)


def random_case() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 4, 7, generator=draw)
    labels = torch.randint(0, 7, (6, 4), generator=draw)
    labels[0], labels[5, 2:] = NO_TARGET, NO_TARGET
    return logits, labels


@pytest.mark.parametrize("size", [1, 2, 4])
def test_losses_and_gradients_of_parts_add_up_however_it_is_split(size: int) -> None:
    logits, labels = random_case()
    denominator = count_targets(labels[..., None])[0]
    whole = logits.clone().requires_grad_()
    loss = head_loss(cross_entropy(whole, labels), denominator)
    loss.backward()  # type: ignore[no-untyped-call]

    parts = logits.clone().requires_grad_()
    total = 0.0
    for at in range(0, 6, size):
        part = head_loss(cross_entropy(parts[at : at + size], labels[at : at + size]), denominator)
        part.backward()  # type: ignore[no-untyped-call]
        total += part.item()
    assert total == pytest.approx(loss.item(), abs=1e-6)
    assert whole.grad is not None and parts.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad, rtol=0, atol=1e-7)


def test_without_targets_the_loss_is_zero_and_still_attached() -> None:
    logits = torch.randn(2, 3, 5, requires_grad=True)
    labels = torch.full((2, 3), NO_TARGET)
    loss = head_loss(cross_entropy(logits, labels), count_targets(labels[..., None])[0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert logits.grad is not None and logits.grad.abs().max() == 0.0
