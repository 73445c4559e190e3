"""Everything ``wmtp eval`` measures of a model, as one value."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uploader.errors import SettingsError, WmtpError
from wmtp.data.dataset import Batches
from wmtp.eval.decoding import decode_plainly, decode_speculatively
from wmtp.model.mtp import MTPModel
from wmtp.training.step import Evaluation, evaluate


@dataclass(frozen=True)
class Decoding:
    """How far the further heads shorten greedy decoding; its tokens are those of plain decoding.

    Attributes:
        passes: of the model, for ``tokens`` tokens after ``prompts`` prompts.
        accepted: share of its drafts that were kept, for each head from the second on.
    """

    prompts: int
    tokens: int
    passes: int
    accepted: tuple[float, ...]

    @property
    def tokens_per_pass(self) -> float:
        """Plain decoding has 1."""
        return self.tokens / max(1, self.passes)


@dataclass(frozen=True)
class Report:
    """Losses on held-out text, and decoding; ``decoding`` is None where none was asked for."""

    losses: Evaluation
    decoding: Decoding | None

    def as_json(self) -> dict[str, Any]:
        heads = zip(self.losses.cross_entropies, self.losses.accuracies, strict=True)
        decoding = self.decoding
        return {
            "heads": [{"cross_entropy": nats, "accuracy": accuracy} for nats, accuracy in heads],
            "bits_per_byte": self.losses.bits_per_byte,
            "targets": self.losses.targets,
            "decoding": None if decoding is None else {
                "prompts": decoding.prompts,
                "tokens": decoding.tokens,
                "passes": decoding.passes,
                "tokens_per_pass": decoding.tokens_per_pass,
                "accepted": list(decoding.accepted),
            },
        }  # fmt: skip


def measure(
    model: MTPModel,
    batches: Batches,
    *,
    batch_size: int,
    samples: int | None,
    prompts: int,
    tokens: int,
    bytes_per_token: float,
) -> Report:
    """Evaluate on a split, and decode after the first half of some of its windows.

    Args:
        samples: windows to measure losses on, spread over the split; None means all.
        prompts: windows to decode after; 0 means none.
        tokens: to generate after each prompt.

    Raises:
        SettingsError: nothing is held out, or prompt and tokens are longer than the model reads.
        WmtpError: speculative decoding gave other tokens than plain decoding.
    """
    if not len(batches):
        hint = "set data.validation_fraction, or name text with --data"
        raise SettingsError("nothing is held out", subject="data.validation_fraction", hint=hint)
    device = model.embed_tokens.weight.device
    losses = evaluate(
        model,
        (batch.to(device) for batch in batches.in_order(batch_size, max_samples=samples)),
        bytes_per_token=bytes_per_token,
    )
    if not (prompts and tokens):
        return Report(losses, None)
    length = max(1, batches.sequence_length // 2)
    if length + tokens > model.config.max_sequence_length:
        spare = model.config.max_sequence_length - length
        raise SettingsError(f"after {length} tokens the model reads {spare} more", subject="--tokens")
    windows = batches.in_order(1, max_samples=prompts)
    return Report(
        losses, measure_decoding(model, (one.ids[0, :length].to(device) for one in windows), tokens)
    )


def measure_decoding(model: MTPModel, prompts: Iterable[Tensor], tokens: int) -> Decoding:
    """Decode after each prompt, ids [S], both ways.

    Raises:
        WmtpError: the two differ.
    """
    count, passes = 0, 0
    offered, accepted = torch.zeros(2, model.config.heads - 1, dtype=torch.int64)
    for count, prompt in enumerate(prompts, 1):
        found = decode_speculatively(model, prompt, tokens)
        if found.tokens != decode_plainly(model, prompt, tokens).tokens:
            raise WmtpError(
                "speculative decoding gave other tokens than plain decoding",
                doing="decoding",
                subject=f"prompt {count}",
                hint="this is a fault of the program: report it with the checkpoint",
            )
        passes += found.passes
        offered += torch.tensor(found.offered, dtype=torch.int64)
        accepted += torch.tensor(found.accepted, dtype=torch.int64)
    shares = accepted / offered.clamp(min=1)
    return Decoding(count, count * tokens, passes, tuple(shares.tolist()))
