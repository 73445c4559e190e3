"""One step's forward and backward, head after head, and the same forward for scores and evaluation.

The trunk runs once; each head runs forward and backward from its detached hidden states, where the gradients
of all heads add up; then the trunk runs backward. The logits of one head are gone before the next one's are
made, so memory grows with V, not with H·V (arXiv 2404.19737); the gradients are those of the joint loss.

Weights that depend on the model's own losses are needed before the first backward: ``score`` finds those
losses in a forward pass of its own, which costs a third more time and no more memory than a head's logits.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET, Batch
from wmtp.model.mtp import MTPModel
from wmtp.objectives.baseline import cross_entropy, weighted_loss
from wmtp.ranks import Ranks


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What one micro-batch adds to the step's loss, in nats, detached and still on the device.

    Attributes:
        loss: scalar; its share of the step's weighted loss.
        nats: unweighted cross entropies of each head, summed over its targets: float32 [H].
    """

    loss: Tensor
    nats: Tensor

    def __add__(self, other: "StepLoss") -> "StepLoss":
        return StepLoss(self.loss + other.loss, self.nats + other.nats)


def forward_backward(
    model: MTPModel,
    batch: Batch,
    weights: Tensor,
    denominator: Tensor,
    *,
    autocast_dtype: torch.dtype | None = None,
) -> StepLoss:
    """Add the gradients of one micro-batch to ``.grad``.

    Args:
        weights: [B, S, H] factors of the cross entropies, 0 where there is no target.
        denominator: scalar; the step's weights, summed over all micro-batches and ranks.
        autocast_dtype: run matrix products in this type; None means as the parameters are.
    """
    with precision(batch.ids, autocast_dtype):
        hidden = model.trunk(batch.ids)
    shared = hidden.detach().requires_grad_()
    loss, nats = shared.new_zeros((), dtype=torch.float32), []
    for k in range(model.config.heads):
        with precision(batch.ids, autocast_dtype):
            cross_entropies = cross_entropy(model.head(k, shared), batch.labels[..., k])
        share = weighted_loss(cross_entropies, weights[..., k], denominator)
        share.backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
        nats.append(cross_entropies.detach().sum())
    hidden.backward(shared.grad)  # type: ignore[no-untyped-call]
    return StepLoss(loss, torch.stack(nats))


@torch.no_grad()
def score(model: MTPModel, batch: Batch, *, autocast_dtype: torch.dtype | None = None) -> Tensor:
    """The cross entropies [B, S, H] of one micro-batch, without gradient or dropout; 0 without a target."""
    hidden = trunk_states(model, batch, autocast_dtype=autocast_dtype)
    with evaluating(model), precision(batch.ids, autocast_dtype):
        heads = range(model.config.heads)
        each = [cross_entropy(model.head(k, hidden), batch.labels[..., k]) for k in heads]
    return torch.stack(each, dim=2)


@torch.no_grad()
def trunk_states(model: MTPModel, batch: Batch, *, autocast_dtype: torch.dtype | None = None) -> Tensor:
    """The trunk's states [B, S, D], without gradient or dropout."""
    with evaluating(model), precision(batch.ids, autocast_dtype):
        return model.trunk(batch.ids)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How well each head predicts held-out text.

    Attributes:
        cross_entropies: nats a target, head by head.
        accuracies: share of targets that got the highest logit, head by head.
        bits_per_byte: of text, from head 0 alone.
        targets: how many head 0 had.
    """

    cross_entropies: tuple[float, ...]
    accuracies: tuple[float, ...]
    bits_per_byte: float
    targets: int


@torch.no_grad()
def evaluate(
    model: MTPModel,
    batches: Iterable[Batch],
    *,
    bytes_per_token: float = 1.0,
    autocast_dtype: torch.dtype | None = None,
    ranks: Ranks | None = None,
) -> Evaluation:
    """Measure the model on ``batches``, without dropout; random state and mode stay as they were.

    Args:
        ranks: where there are several, each has its part of every batch; the result is over all parts.
    """
    sums = torch.zeros(3, model.config.heads, dtype=torch.float64)
    with evaluating(model):
        for batch in batches:
            with precision(batch.ids, autocast_dtype):
                hidden = model.trunk(batch.ids)
                each = [_measure(model.head(k, hidden), batch.labels[..., k]) for k in range(len(sums[0]))]
            sums += torch.stack(each, dim=1).cpu()
    sums = sums if ranks is None else ranks.sum(sums)
    nats, hits, targets = sums[0], sums[1], sums[2].clamp(min=1)
    cross_entropies = tuple((nats / targets).tolist())
    return Evaluation(
        cross_entropies=cross_entropies,
        accuracies=tuple((hits / targets).tolist()),
        bits_per_byte=cross_entropies[0] / math.log(2) / bytes_per_token,
        targets=int(sums[2, 0]),
    )


def _measure(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums over one head's targets, float64 [3]: nats, hits, targets."""
    nats = cross_entropy(logits, labels).sum(dtype=torch.float64)
    hits = (logits.argmax(dim=-1) == labels).sum()
    return torch.stack((nats, hits.double(), (labels != NO_TARGET).sum().double()))


@contextmanager
def evaluating(model: MTPModel) -> Iterator[None]:
    """Without dropout; the mode is afterwards what it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def precision(ids: Tensor, dtype: torch.dtype | None) -> torch.autocast:
    """Matrix products in ``dtype`` on the device of ``ids``; None leaves them as the parameters are."""
    return torch.autocast(ids.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
