"""What the model is worth on held-out text, measured while it trains, which changes nothing of that."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from uploader.errors import SettingsError
from wmtp.data.dataset import NO_TARGET, Batch, Batches
from wmtp.model.mtp import MTPModel
from wmtp.ranks import Ranks
from wmtp.settings.recipe import Validation as Section
from wmtp.training.step import evaluate
from wmtp.training.tracking import Metric

EMA = "ema_"
"""Begins the names of what was measured of the averaged weights."""


@dataclass(frozen=True)
class Validation:
    """Measures a model, and the averages of its weights where there are any.

    Args:
        models: by what their metrics' names begin with: nothing, or ``ema_``.
        batch_size: windows a forward pass, over all ranks.
    """

    section: Section
    models: Mapping[str, MTPModel]
    held_out: Batches
    batch_size: int
    bytes_per_token: float
    device: torch.device
    autocast_dtype: torch.dtype | None
    ranks: Ranks = field(default_factory=Ranks)

    def require_text(self) -> None:
        """Before the first step: is there anything to measure?

        Raises:
            SettingsError: validations are wanted, and what is held out has nothing to predict.
        """
        if self.section.every is not None and not any(_has_targets(batch) for batch in self._batches()):
            raise SettingsError(
                "what is held out has nothing to predict: it is all prompts",
                subject="data.validation_fraction",
                hint="hold out more, or set train.validation.every to null",
            )

    def is_due(self, step: int) -> bool:
        """Whether the model is measured after ``step`` steps."""
        return self.section.every is not None and step % self.section.every == 0

    def measure(self) -> dict[str, Metric]:
        """Loss and accuracy of each head and bits a byte of each model; nothing where nothing is held out.

        Each rank measures its part; what they found is the same on all.
        """
        if not len(self.held_out):
            return {}
        metrics: dict[str, Metric] = {}
        for prefix, model in self.models.items():
            found = evaluate(
                model,
                (own_part(batch, self.ranks) for batch in self._batches()),
                bytes_per_token=self.bytes_per_token,
                autocast_dtype=self.autocast_dtype,
                ranks=self.ranks,
            )
            metrics[f"{prefix}held_out"] = list(found.cross_entropies)
            metrics[f"{prefix}held_out_accuracy"] = list(found.accuracies)
            metrics[f"{prefix}bits_per_byte"] = found.bits_per_byte
        return metrics

    def _batches(self) -> Iterator[Batch]:
        for batch in self.held_out.in_order(self.batch_size, max_samples=self.section.samples):
            yield batch.to(self.device)


def own_part(batch: Batch, ranks: Ranks) -> Batch:
    """This rank's part of a batch. Where it has none, a sample with no target: all run the same passes."""
    start, end = ranks.bounds(len(batch))
    return batch[start:end] if start < end else batch.blank()


def _has_targets(batch: Batch) -> bool:
    return bool((batch.labels[..., 0] != NO_TARGET).any())


def as_numbers(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """One number a metric, for a checkpoint's record and for comparing: of each head's, head 0's."""
    firsts = ((name, value[0] if isinstance(value, list) else value) for name, value in metrics.items())
    return {name: value for name, value in firsts if isinstance(value, float)}
