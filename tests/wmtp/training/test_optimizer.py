"""Which weights decay, the schedule, and clipping."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.training.optimizer import (
    OptimizerSettings,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)

TINY = ModelConfig(
    vocab_size=16, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=2
)


def test_matrices_decay_and_norms_do_not() -> None:
    model = MTPModel.from_settings(TINY, seed=0)
    matrices, norms = build_optimizer(model, OptimizerSettings(weight_decay=0.3)).param_groups
    assert matrices["weight_decay"] == 0.3 and norms["weight_decay"] == 0.0
    assert {weight.ndim for weight in matrices["params"]} == {2}
    assert {weight.ndim for weight in norms["params"]} == {1}
    assert len(matrices["params"]) + len(norms["params"]) == len(list(model.parameters()))
    assert matrices["betas"] == norms["betas"] == (0.9, 0.95)


def test_frozen_weights_are_left_out() -> None:
    model = MTPModel.from_settings(TINY, seed=0)
    model.embed_tokens.requires_grad_(False)
    groups = build_optimizer(model, OptimizerSettings()).param_groups
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters())) - 1


def rate(step: int) -> float:
    return learning_rate(step, peak=2.0, warmup_steps=4, max_steps=24, floor_ratio=0.1)


def test_the_rate_rises_to_the_peak_and_falls_to_the_floor() -> None:
    assert [rate(step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    assert rate(14) == pytest.approx(1.1)
    assert rate(24) == rate(1000) == pytest.approx(0.2)
    assert learning_rate(0, peak=2.0, warmup_steps=0, max_steps=10) == 2.0
    assert learning_rate(5, peak=2.0, warmup_steps=5, max_steps=5) == 2.0


@given(step=st.integers(0, 300), warmup=st.integers(0, 100), length=st.integers(1, 200))
def test_the_rate_stays_between_zero_and_peak_and_turns_once(step: int, warmup: int, length: int) -> None:
    rates = [learning_rate(s, peak=1.0, warmup_steps=warmup, max_steps=length) for s in (step, step + 1)]
    assert all(0 < value <= 1 for value in rates)
    assert rates[0] <= rates[1] if step + 1 < warmup else step < warmup or rates[0] >= rates[1]


def test_a_new_rate_reaches_every_group() -> None:
    optimizer = build_optimizer(MTPModel.from_settings(TINY, seed=0), OptimizerSettings())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(("scale", "kept"), [(10.0, 1.0), (0.1, 0.5)])
def test_clipping_returns_the_norm_there_was(scale: float, kept: float) -> None:
    weights = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
    weights[0].grad, weights[1].grad = torch.tensor([3.0, 0.0]) * scale, torch.tensor([4.0]) * scale
    assert clip_gradients(weights).item() == pytest.approx(5 * scale)
    norm = torch.cat([weight.grad for weight in weights if weight.grad is not None]).norm()
    assert norm.item() == pytest.approx(kept, rel=1e-4)
