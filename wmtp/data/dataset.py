"""Packed tokens to batches; where training stands in the data is one integer.

``position`` counts the samples consumed by all ranks together since the run began. Sample ``i`` of epoch
``e`` is window ``shuffled(i, seed, e)``: computed, not drawn, so a run resumes anywhere, at any world size
and batch size, and sees the same samples in the same order.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from uploader.errors import SettingsError
from wmtp.data.packed import PackedTokens
from wmtp.data.permutation import shuffled

NO_TARGET = -100
"""The label where a head has nothing to predict."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples and what each head has to predict, as int64.

    Attributes:
        text: token ids, shape [B, S+H]: the window and what its last position's heads look at; ``NO_TARGET``
            past the end of the text.
        labels: shape [B, S, H]: for head k, labels[b, t, k] is text[b, t+k+1]; ``NO_TARGET`` where there is
            none, or where it is part of a prompt.
        windows: shape [B]: the number of each sample's window in its split, by which results may be kept.
    """

    text: Tensor
    labels: Tensor
    windows: Tensor

    @property
    def ids(self) -> Tensor:
        """What the model reads, shape [B, S]."""
        return self.text[:, : self.labels.shape[1]]

    def __len__(self) -> int:
        """How many samples."""
        return len(self.text)

    def __getitem__(self, samples: slice) -> "Batch":
        return Batch(self.text[samples], self.labels[samples], self.windows[samples])

    def to(self, device: torch.device | str) -> "Batch":
        parts = (self.text, self.labels, self.windows)
        return Batch(*(part.to(device, non_blocking=True) for part in parts))

    def blank(self) -> "Batch":
        """One sample of it with nothing to predict: for a rank that has none, and has to compute."""
        first = self[:1]
        return Batch(first.text, torch.full_like(first.labels, NO_TARGET), first.windows)


@dataclass(frozen=True, slots=True)
class Batches:
    """The windows of one split: ``sequence_length`` tokens each, side by side.

    Attributes:
        first_token, end_token: the split's range of the packed tokens; no label comes from outside it.
        heads: how many tokens ahead the labels look.
        seed: of the order of each epoch.
    """

    packed: PackedTokens
    first_token: int
    end_token: int
    sequence_length: int
    heads: int
    seed: int

    def __len__(self) -> int:
        """Samples in an epoch."""
        return (self.end_token - self.first_token) // self.sequence_length

    @property
    def fingerprint(self) -> str:
        """Equal where every position means the same sample; the number of heads doesn't matter."""
        return hashlib.sha256(repr((*self.content, self.seed)).encode()).hexdigest()

    @property
    def content(self) -> tuple[str, int, int, int]:
        """Equal where every window of a number holds the same text, in whatever order they come."""
        return self.packed.fingerprint, self.first_token, self.end_token, self.sequence_length

    def epoch(self, position: int) -> int:
        """The epoch, from 0, that the next sample belongs to."""
        return position // len(self)

    def batch(self, position: int, size: int) -> Batch:
        """The ``size`` samples from ``position`` on."""
        samples = np.arange(position, position + size, dtype=np.int64)
        epochs, windows = np.divmod(samples, len(self))
        for epoch in np.unique(epochs):
            inside = epochs == epoch
            windows[inside] = shuffled(windows[inside], size=len(self), seed=self.seed, epoch=int(epoch))
        return self._gather(windows)

    def in_order(self, size: int, *, max_samples: int | None = None) -> Iterator[Batch]:
        """The split once, unshuffled, ``size`` at a time; or ``max_samples`` spread evenly over it."""
        chosen = len(self) if max_samples is None else min(len(self), max_samples)
        windows = np.arange(chosen, dtype=np.int64) * len(self) // max(1, chosen)
        for start in range(0, chosen, size):
            yield self._gather(windows[start : start + size])

    def _gather(self, windows: npt.NDArray[np.int64]) -> Batch:
        starts = self.first_token + windows * self.sequence_length
        places = starts[:, None] + np.arange(self.sequence_length + self.heads)
        inside = places < self.end_token
        tokens = self.packed.array[np.minimum(places, self.end_token - 1)].astype(np.int64)
        learnt = torch.from_numpy(np.where(inside & ~self.packed.is_prompt(places), tokens, NO_TARGET))
        return Batch(
            text=torch.from_numpy(np.where(inside, tokens, NO_TARGET)),
            labels=learnt[:, 1:].unfold(1, self.heads, 1).contiguous(),
            windows=torch.from_numpy(windows),
        )


def split(
    packed: PackedTokens, *, sequence_length: int, heads: int, seed: int, held_out_fraction: float = 0.02
) -> tuple[Batches, Batches]:
    """The windows to train on, and those held out: the last ``held_out_fraction`` of them.

    A fraction above 0 holds out at least one window; 0 holds out none.

    Raises:
        SettingsError: the text is too short for one window in each.
    """
    windows = len(packed) // sequence_length
    held_out = max(1, round(windows * held_out_fraction)) if held_out_fraction else 0
    if windows <= held_out:
        raise SettingsError(
            f"{len(packed)} tokens make {windows} windows of {sequence_length}, {held_out} of them held out",
            subject="data.sequence_length",
            hint="name more text or a shorter sequence",
        )
    border = (windows - held_out) * sequence_length
    train = Batches(packed, 0, border, sequence_length, heads, seed)
    return train, Batches(packed, border, len(packed), sequence_length, heads, seed)
