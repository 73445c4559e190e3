"""Activation checkpointing: the same gradients bit for bit, and less that is kept for the backward pass."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from wmtp.data.dataset import Batch
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.objectives.baseline import uniform_weights
from wmtp.training.step import forward_backward, score

DEEP = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, trunk_layers=6,
    heads=3, dropout=0.2,
)  # fmt: skip


def batch() -> Batch:
    text = torch.randint(0, 32, (4, 12 + 3), generator=torch.Generator().manual_seed(0))
    return Batch(text, text[:, 1:].unfold(1, 3, 1).contiguous(), torch.arange(4))


def recompute(model: MTPModel) -> None:
    for block in model.blocks():
        block.recompute = True


def step(model: MTPModel, dtype: torch.dtype | None) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Loss, gradients, and the random state it leaves."""
    torch.manual_seed(3)
    weights = uniform_weights(batch().labels >= 0)
    loss = forward_backward(model.train(), batch(), weights, weights.sum(), autocast_dtype=dtype)
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.loss, gradients, torch.get_rng_state()


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_gradients_are_the_same_bit_for_bit(dropout: float, dtype: torch.dtype | None) -> None:
    state = torch.get_rng_state()
    kept = MTPModel.from_settings(dataclasses.replace(DEEP, dropout=dropout), seed=0)
    again = copy.deepcopy(kept)
    recompute(again)
    (loss, gradients, after), (other, theirs, after_too) = step(kept, dtype), step(again, dtype)
    torch.set_rng_state(state)
    assert torch.equal(loss, other) and torch.equal(after, after_too)
    assert len(gradients) == len([*kept.parameters()])
    assert all(torch.equal(gradient, theirs[name]) for name, gradient in gradients.items())


def kept_bytes(model: MTPModel) -> int:
    """What the trunk keeps for its backward pass, weights aside."""
    weights = {weight.data_ptr() for weight in model.parameters()}
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = model.trunk(batch().ids)
    assert hidden.requires_grad
    return sum(sizes.values())


def test_a_layer_keeps_its_input_alone() -> None:
    model = MTPModel.from_settings(DEEP, seed=0)
    kept = kept_bytes(model)
    recompute(model)
    inputs_bytes = 4 * 12 * 16 * 4
    assert kept_bytes(model) < 2 * DEEP.trunk_layers * inputs_bytes < kept / 2


def test_scores_are_untouched() -> None:
    model = MTPModel.from_settings(DEEP, seed=0)
    before = score(model, batch())
    recompute(model)
    assert torch.equal(score(model, batch()), before)
