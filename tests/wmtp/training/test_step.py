"""One step: heads one after another give the joint gradients, and training resumes bit for bit."""

import copy
import dataclasses
import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET, Batch, Batches, split
from wmtp.data.packed import PackedRecord, PackedTokens
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.objectives.baseline import cross_entropy, uniform_weights, weighted_loss
from wmtp.training.optimizer import (
    OptimizerSettings,
    build_optimizer,
    clip_gradients,
    learning_rate,
    set_learning_rate,
)
from wmtp.training.step import evaluate, forward_backward, score

TINY = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=3
)


def batches(count: int = 400) -> tuple[Batches, Batches]:
    array = np.random.Generator(np.random.PCG64(0)).integers(0, 32, count).astype(np.uint16)
    packed = PackedTokens(array, PackedRecord("f", "t", "<u2", count, count))
    return split(packed, sequence_length=8, heads=3, seed=1, held_out_fraction=0.1)


def sample() -> Batch:
    """A batch in which each head has another number of targets."""
    batch = batches()[0].batch(0, 4)
    batch.labels[0, :, 0], batch.labels[1, 3:, 2] = NO_TARGET, NO_TARGET
    return batch


def gradients(model: MTPModel) -> dict[str, Tensor]:
    return {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}


def assert_same_gradients(model: MTPModel, other: MTPModel, tolerance: float) -> None:
    ours, theirs = gradients(model), gradients(other)
    assert set(ours) == {name for name, _ in model.named_parameters()} == set(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance, msg=name)
    assert max(gradient.abs().max().item() for gradient in ours.values()) > 1e-2


def part(batch: Batch, rows: slice) -> Batch:
    return Batch(batch.text[rows], batch.labels[rows], batch.windows[rows])


def ones(batch: Batch) -> Tensor:
    return uniform_weights(batch.labels != NO_TARGET)


@pytest.mark.parametrize("weighted", [False, True])
def test_sequential_and_joint_gradients_agree(weighted: bool) -> None:
    sequential = MTPModel.from_settings(TINY, seed=0)
    joint, batch = copy.deepcopy(sequential), sample()
    weights = ones(batch)
    if weighted:
        weights = weights * torch.rand(weights.shape, generator=torch.Generator().manual_seed(0))
    loss = forward_backward(sequential, batch, weights, weights.sum())

    logits = joint(batch.ids)
    nats = torch.stack([cross_entropy(logits[:, :, k], batch.labels[..., k]) for k in range(3)], dim=2)
    expected = weighted_loss(nats, weights, weights.sum())
    expected.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.loss, expected.detach())
    torch.testing.assert_close(loss.nats, nats.detach().sum(dim=(0, 1)))
    assert_same_gradients(sequential, joint, 1e-6)


def test_micro_batches_add_up_to_the_batch() -> None:
    whole = MTPModel.from_settings(TINY, seed=0)
    parts, batch = copy.deepcopy(whole), sample()
    weights = ones(batch)
    loss = forward_backward(whole, batch, weights, weights.sum())
    first, second = (
        forward_backward(parts, part(batch, rows), weights[rows], weights.sum())
        for rows in (slice(0, 1), slice(1, 4))
    )
    torch.testing.assert_close((first + second).loss, loss.loss)
    torch.testing.assert_close((first + second).nats, loss.nats)
    assert_same_gradients(whole, parts, 1e-6)


def test_the_logits_of_one_head_are_gone_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    model = MTPModel.from_settings(TINY, seed=0)
    alive: list[weakref.ref[Tensor]] = []
    seen: list[int] = []
    head = model.head

    def watched(k: int, hidden: Tensor) -> Tensor:
        seen.append(sum(reference() is not None for reference in alive))
        logits = head(k, hidden)
        alive.append(weakref.ref(logits))
        return logits

    monkeypatch.setattr(model, "head", watched)
    batch = sample()
    score(model, batch)
    forward_backward(model, batch, ones(batch), torch.tensor(1.0))
    assert seen == [0] * 6


def test_a_batch_without_targets_leaves_zero_gradients() -> None:
    model, batch = MTPModel.from_settings(TINY, seed=0), sample()
    batch.labels.fill_(NO_TARGET)
    loss = forward_backward(model, batch, ones(batch), ones(batch).sum())
    assert loss.loss.item() == 0 and loss.nats.tolist() == [0.0, 0.0, 0.0]
    assert len(gradients(model)) == len(list(model.parameters()))
    assert all(gradient.abs().max() == 0 for gradient in gradients(model).values())


def test_autocast_changes_precision_and_not_the_result() -> None:
    exact = MTPModel.from_settings(TINY, seed=0)
    rounded, batch = copy.deepcopy(exact), sample()
    weights = ones(batch)
    one = forward_backward(exact, batch, weights, weights.sum())
    other = forward_backward(rounded, batch, weights, weights.sum(), autocast_dtype=torch.bfloat16)
    assert other.nats.dtype == other.loss.dtype == torch.float32
    torch.testing.assert_close(other.nats, one.nats, rtol=0.01, atol=0)
    assert not torch.equal(other.nats, one.nats)
    assert_same_gradients(exact, rounded, 0.01)


def test_scores_are_the_losses_without_dropout_and_change_nothing() -> None:
    model, batch = MTPModel.from_settings(dataclasses.replace(TINY, dropout=0.2), seed=0).train(), sample()
    state = torch.get_rng_state()
    scores = score(model, batch)
    assert model.training and torch.equal(torch.get_rng_state(), state) and not scores.requires_grad
    model.eval()
    expected = forward_backward(model, batch, ones(batch), ones(batch).sum())
    torch.testing.assert_close(scores.sum(dim=(0, 1)), expected.nats)
    assert (scores[batch.labels == NO_TARGET] == 0).all()


def test_evaluation_equals_its_definition_and_changes_nothing() -> None:
    model = MTPModel.from_settings(dataclasses.replace(TINY, dropout=0.2), seed=0).train()
    held_out, state = batches()[1], torch.get_rng_state()
    result = evaluate(model, held_out.in_order(2), bytes_per_token=0.5)
    assert model.training and torch.equal(torch.get_rng_state(), state)

    (whole,) = held_out.in_order(100)
    with torch.no_grad():
        logits = model.eval()(whole.ids)
    for k in range(3):
        valid = whole.labels[..., k] != NO_TARGET
        chances = logits[:, :, k].log_softmax(-1)[valid]
        targets = whole.labels[..., k][valid]
        nats = -chances.gather(1, targets[:, None]).mean().item()
        assert result.cross_entropies[k] == pytest.approx(nats, rel=1e-5)
        assert result.accuracies[k] == pytest.approx((chances.argmax(-1) == targets).double().mean().item())
    assert result.bits_per_byte == pytest.approx(result.cross_entropies[0] / math.log(2) / 0.5)
    assert result.targets == (whole.labels[..., 0] != NO_TARGET).sum()


class Run:
    """The whole of a training run that the loop will checkpoint here: model, optimizer, step and position."""

    def __init__(self, max_steps: int = 20) -> None:
        self.max_steps = max_steps
        self.model = MTPModel.from_settings(TINY, seed=5)
        self.optimizer = build_optimizer(self.model, OptimizerSettings())
        self.data, self.step, self.position = batches()[0], 0, 0

    def train(self, steps: int) -> list[list[float]]:
        losses = []
        for _ in range(steps):
            batch = self.data.batch(self.position, 4)
            set_learning_rate(
                self.optimizer, learning_rate(self.step, peak=1e-2, warmup_steps=4, max_steps=self.max_steps)
            )
            weights = ones(batch)
            loss = forward_backward(self.model, batch, weights, weights.sum())
            clip_gradients(self.model.parameters())
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step, self.position = self.step + 1, self.position + 4
            losses.append(loss.nats.tolist())
        return losses

    def state(self) -> dict[str, Any]:
        parts = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        return copy.deepcopy(parts | {"step": self.step, "position": self.position})

    @classmethod
    def resumed(cls, state: dict[str, Any]) -> "Run":
        run = cls()
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.step, run.position = state["step"], state["position"]
        return run


def test_n_steps_and_n_more_equal_2n_bit_for_bit() -> None:
    uninterrupted, first = Run(), Run()
    expected, before = uninterrupted.train(16), first.train(8)
    second = Run.resumed(first.state())
    assert before + second.train(8) == expected

    one, other = uninterrupted.state(), second.state()
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
    assert one["optimizer"]["param_groups"] == other["optimizer"]["param_groups"]
    for key, moments in one["optimizer"]["state"].items():
        assert all(torch.equal(moments[name], other["optimizer"]["state"][key][name]) for name in moments)
    assert (one["step"], one["position"]) == (other["step"], other["position"]) == (16, 64)


def test_training_learns_what_can_be_learnt() -> None:
    """Text that counts is predicted by every head once the loss has fallen."""
    array = (np.arange(400) % 32).astype(np.uint16)
    packed = PackedTokens(array, PackedRecord("f", "t", "<u2", 400, 400))
    run = Run(max_steps=120)
    run.data, held_out = split(packed, sequence_length=8, heads=3, seed=1, held_out_fraction=0.1)
    before = evaluate(run.model, held_out.in_order(8))
    run.train(120)
    after = evaluate(run.model, held_out.in_order(8))
    assert max(before.accuracies) < 0.2
    assert min(after.accuracies) > 0.95
    assert max(after.cross_entropies) < 1 < min(before.cross_entropies)
