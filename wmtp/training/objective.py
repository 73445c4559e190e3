"""From a step's micro-batches to gradients: one class for each way to weigh targets.

All share one loss, ``Σ w·CE / Σ w`` over the whole step, and differ in where the weights come from. Weights
are decided for the whole step at once, all ranks' samples in their order, so neither they nor the loss depend
on how it is split.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET, Batch
from wmtp.model.mtp import MTPModel
from wmtp.objectives.baseline import uniform_weights
from wmtp.objectives.rho1 import excess_loss
from wmtp.ranks import Ranks
from wmtp.training.step import StepLoss, forward_backward, score

Measures = dict[str, Tensor]
"""What a step tells of itself, on the device: ``loss``, and more by name, each a scalar or [H]."""

SHARES = ("loss", "heads", "value_loss")
"""Measures of which each rank has its samples' share: their sum over ranks is the step's."""

Numbers = dict[str, float | list[float]]
"""The same on the host."""

Weigh = Callable[[Tensor, Tensor], Tensor]
"""Scores and where they are valid, both [B, S, H], to weights [B, S, H]."""

Scores = Callable[[Batch], Tensor]
"""A number for each target of a micro-batch, [B, S, H], or each position, [B, S]."""


@dataclass(frozen=True)
class Split:
    """How a step's samples lie on the ranks: a part each, in their order.

    Attributes:
        samples: of the step, over all ranks; of no interest where there is one.
    """

    ranks: Ranks = field(default_factory=Ranks)
    samples: int = 0

    def gather(self, part: Tensor) -> Tensor:
        """The whole step's [B, …], from this rank's part of it."""
        return self.ranks.gather(part, self.samples)

    def part(self, whole: Tensor) -> Tensor:
        """This rank's part of the whole step's [B, …]."""
        return self.ranks.part(whole)


ALONE = Split()


class Objective(Protocol):
    """What the trainer needs of an algorithm."""

    @property
    def first_step(self) -> int:
        """How many steps pass before the model itself is trained: its schedule begins there."""
        ...

    def backward(self, batches: Sequence[Batch], step: int) -> Measures:
        """Add the gradients of the step that follows ``step`` finished ones.

        Args:
            batches: this rank's micro-batches of the step; all ranks have as many.

        Returns:
            The step's measures; of ``SHARES`` this rank's share.
        """
        ...


@dataclass
class Baseline:
    """Every target counts the same."""

    model: MTPModel
    autocast_dtype: torch.dtype | None = None
    split: Split = ALONE
    first_step = 0

    def backward(self, batches: Sequence[Batch], step: int) -> Measures:
        valid = valid_targets(batches, self.split)
        weights = uniform_weights(valid)
        return weighted_backward(
            self.model, batches, weights, valid, self.split, autocast_dtype=self.autocast_dtype
        )


@dataclass
class Rho1:
    """Targets are weighed, or kept, by what the model could still learn of them.

    Attributes:
        reference: the reference's cross entropies, [B, S, H].
        weigh: excess losses of a whole step to weights.
    """

    model: MTPModel
    reference: Scores
    weigh: Weigh
    autocast_dtype: torch.dtype | None = None
    split: Split = ALONE
    first_step = 0

    def backward(self, batches: Sequence[Batch], step: int) -> Measures:
        own = torch.cat([score(self.model, one, autocast_dtype=self.autocast_dtype) for one in batches])
        reference = torch.cat([self.reference(one) for one in batches])
        scores = self.split.gather(excess_loss(own, reference))
        valid = valid_targets(batches, self.split)
        weights = self.weigh(scores, valid)
        measures = weighted_backward(
            self.model, batches, weights, valid, self.split, autocast_dtype=self.autocast_dtype
        )
        return measures | weight_measures(weights, valid)


def on_host(measures: Measures) -> Numbers:
    """All numbers in one transfer: on a device, the only time in a step that the host waits for it."""
    device = measures["loss"].device
    flat = [one.reshape(-1).to(device, torch.float64, non_blocking=True) for one in measures.values()]
    numbers = iter(torch.cat(flat).tolist())
    return {
        name: next(numbers) if one.ndim == 0 else [next(numbers) for _ in range(one.numel())]
        for name, one in measures.items()
    }


def valid_targets(batches: Sequence[Batch], split: Split) -> Tensor:
    """Where the step has targets: bool [B, S, H], all ranks' samples in their order."""
    return split.gather(torch.cat([batch.labels != NO_TARGET for batch in batches]))


def weighted_backward(
    model: MTPModel,
    batches: Sequence[Batch],
    weights: Tensor,
    valid: Tensor,
    split: Split,
    *,
    autocast_dtype: torch.dtype | None = None,
) -> Measures:
    """Add the gradients of this rank's part of the step, one micro-batch after the other.

    Args:
        weights, valid: of the whole step, [B, S, H].

    Returns:
        This rank's share of the loss, and of the unweighted mean cross entropy of each head.
    """
    denominator = weights.sum(dtype=torch.float64).float()
    parts = torch.split(split.part(weights), [len(batch) for batch in batches])
    losses = [
        forward_backward(model, batch, part, denominator, autocast_dtype=autocast_dtype)
        for batch, part in zip(batches, parts, strict=True)
    ]
    total = together(losses)
    targets = valid.sum(dim=(0, 1))
    return {"loss": total.loss, "heads": total.nats / targets.clamp(min=1)}


def together(losses: Sequence[StepLoss]) -> StepLoss:
    """The micro-batches' shares, added up."""
    total = losses[0]
    for loss in losses[1:]:
        total += loss
    return total


def weight_measures(weights: Tensor, valid: Tensor) -> Measures:
    """Mean and maximum of the weights over the step's targets, and the share of targets that have any."""
    targets = valid.sum().clamp(min=1)
    return {
        "weight_mean": weights.sum() / targets,
        "weight_max": weights.amax(),
        "kept": (weights > 0).sum() / targets,
    }
