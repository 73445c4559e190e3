"""A reference model's cross entropies of the targets of a batch, each window's computed once."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from wmtp.data.dataset import Batch, Batches
from wmtp.model.pretrained import Pretrained
from wmtp.objectives.reference import align, next_token_cross_entropies
from wmtp.training.reference_cache import ReferenceCache
from wmtp.training.step import precision

FORMAT = "wmtp reference cross entropies 1"
"""Goes into every file's name: files of another layout get other names."""


@dataclass(frozen=True)
class ReferenceScores:
    """Computes what the cache does not have. One window goes through the reference at a time: its numbers
    never depend on its neighbours in a batch, so a run that finds them is bit for bit one that computes them.
    """

    reference: Pretrained
    cache: ReferenceCache
    autocast_dtype: torch.dtype | None = None

    @classmethod
    def open(
        cls, reference: Pretrained, train: Batches, directory: Path, *, autocast_dtype: torch.dtype | None
    ) -> "ReferenceScores":
        """With the file in ``directory`` that belongs to this reference and these windows.

        Raises:
            DiskError: it can't be made.
        """
        length = train.sequence_length + train.heads - 1
        device = reference.model.lm_head.weight.device.type
        parts = (FORMAT, reference.fingerprint, train.content, length, device, str(autocast_dtype))
        name = hashlib.sha256(repr(parts).encode()).hexdigest()
        cache = ReferenceCache(directory / f"{name}.nats", windows=len(train), length=length)
        return cls(reference, cache, autocast_dtype)

    def __call__(self, batch: Batch) -> Tensor:
        """Nats of each head's targets, float32 [B, S, H]; 0 where there is none."""
        rows = [
            self._row(window, text) for window, text in zip(batch.windows.tolist(), batch.text, strict=True)
        ]
        return align(torch.stack(rows), batch.labels)

    @torch.no_grad()
    def _row(self, window: int, text: Tensor) -> Tensor:
        """Nats of each token of a window and beyond, given those before it: [S+H−1]."""
        if (kept := self.cache.read(window)) is not None:
            return kept.to(text.device)
        with precision(text, self.autocast_dtype):
            row = next_token_cross_entropies(self.reference.logits, text)
        self.cache.write(window, row)
        return row
