"""Whatever is masked, a step has a loss and gradients that are finite, and 0 where nothing is learnt."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET, Batch
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.objectives.baseline import uniform_weights
from wmtp.objectives.critic import head_weights, inside_window
from wmtp.objectives.rho1 import kept_weights, softmax_weights
from wmtp.training.step import forward_backward

HEADS, LENGTH = 3, 7
TINY = ModelConfig(
    vocab_size=16, hidden_size=8, intermediate_size=8, attention_heads=2, kv_heads=1, heads=HEADS
)
Weigh = Callable[[Tensor], Tensor]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


WEIGH: dict[str, Weigh] = {
    "baseline": uniform_weights,
    "weighted": lambda valid: softmax_weights(drawn(*valid.shape), valid),
    "tokenskip": lambda valid: kept_weights(drawn(*valid.shape), valid),
    "critic": lambda valid: head_weights(drawn(*valid.shape[:2]), valid),
}


def nothing(labels: Tensor) -> None:
    labels.fill_(NO_TARGET)


def no_second_head(labels: Tensor) -> None:
    labels[..., 1] = NO_TARGET


def one_sample(labels: Tensor) -> None:
    labels[1:] = NO_TARGET


def one_target(labels: Tensor) -> None:
    only = labels[0, 2, 0].clone()
    labels.fill_(NO_TARGET)[0, 2, 0] = only


MASKS = (nothing, no_second_head, one_sample, one_target)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", WEIGH)
def test_masked_steps(name: str, mask: Callable[[Tensor], None]) -> None:
    text = torch.randint(0, 16, (3, LENGTH + HEADS), generator=torch.Generator().manual_seed(0))
    labels = text[:, 1:].unfold(1, HEADS, 1).clone()
    mask(labels)
    batch, model = Batch(text, labels, torch.arange(3)), MTPModel.from_settings(TINY, seed=0)
    valid = labels != NO_TARGET
    weights = WEIGH[name](valid)
    loss = forward_backward(model, batch, weights, weights.sum())

    weighed = inside_window(valid) if name == "critic" else valid
    assert not weights.requires_grad and (weights[~weighed] == 0).all()
    if name == "tokenskip":
        assert weights.sum() == -(-7 * int(weighed.sum()) // 10)
    elif weighed.any():
        assert weights[weighed].mean().item() == pytest.approx(1.0, abs=1e-6)
    assert loss.loss.isfinite() and (loss.loss > 0) == weighed.any()
    assert loss.nats[1].item() == 0 or valid[..., 1].any()
    for where, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), where
        learnt = weights[..., int(where.split(".")[1])] if where.startswith("heads.") else weights
        assert (weight.grad != 0).any() == (learnt > 0).any(), where
