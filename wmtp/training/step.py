"""One step's forward and backward, head after head, and the same forward for evaluation.

The trunk runs once; each head runs forward and backward from its detached hidden states, where the gradients
of all heads add up; then the trunk runs backward. The logits of one head are gone before the next one's are
made, so memory grows with V, not with H·V (arXiv 2404.19737); the gradients are those of the joint loss.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET, Batch
from wmtp.model.mtp import MTPModel
from wmtp.objectives.baseline import cross_entropy, head_loss


@dataclass(frozen=True, slots=True)
class StepLoss:
    """What one micro-batch adds to the step's loss, in nats, detached and still on the device.

    Attributes:
        heads: the share of each head, float32 [H]; their sum is the loss that was differentiated.
    """

    heads: Tensor

    @property
    def total(self) -> Tensor:
        return self.heads.sum()

    def __add__(self, other: "StepLoss") -> "StepLoss":
        return StepLoss(self.heads + other.heads)


def forward_backward(
    model: MTPModel,
    batch: Batch,
    denominators: Tensor,
    *,
    weights: Tensor | None = None,
    autocast_dtype: torch.dtype | None = None,
) -> StepLoss:
    """Add the gradients of one micro-batch to ``.grad``.

    Args:
        denominators: [H], what each head's sum is divided by: the step's targets over all micro-batches
            and ranks.
        weights: [B, S, H] factors of the cross entropies; None means 1.
        autocast_dtype: run matrix products in this type; None means as the parameters are.
    """
    with _precision(batch, autocast_dtype):
        hidden = model.trunk(batch.ids)
    shared = hidden.detach().requires_grad_()
    shares = []
    for k in range(model.config.heads):
        with _precision(batch, autocast_dtype):
            cross_entropies = cross_entropy(model.head(k, shared), batch.labels[..., k])
        share = head_loss(cross_entropies, denominators[k], None if weights is None else weights[..., k])
        share.backward()  # type: ignore[no-untyped-call]
        shares.append(share.detach())
    hidden.backward(shared.grad)  # type: ignore[no-untyped-call]
    return StepLoss(torch.stack(shares))


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
) -> Evaluation:
    """Measure the model on ``batches``, without dropout; random state and mode stay as they were."""
    sums = torch.zeros(3, model.config.heads, dtype=torch.float64)
    with _evaluating(model):
        for batch in batches:
            with _precision(batch, autocast_dtype):
                hidden = model.trunk(batch.ids)
                each = [_measure(model.head(k, hidden), batch.labels[..., k]) for k in range(len(sums[0]))]
            sums += torch.stack(each, dim=1).cpu()
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
def _evaluating(model: MTPModel) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _precision(batch: Batch, dtype: torch.dtype | None) -> torch.autocast:
    return torch.autocast(batch.ids.device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
