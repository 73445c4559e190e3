"""Greedy decoding, token by token, and with the further heads as drafts: the same tokens, in fewer passes.

A pass over the text so far and its drafts tells at each position what head 0 would have said; drafts that it
agrees with are kept, and where it stops agreeing its own token is. So each pass gives 1 to H tokens, and all
of them are head 0's (blockwise parallel decoding, arXiv 1811.03115; arXiv 2404.19737).

Sums over another number of tokens differ in their last bits. Where the two best logits are closer than such
differences could matter, a pass over the text alone decides, which is the one that plain decoding makes: the
output is equal, not nearly equal.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from wmtp.model.mtp import MTPModel

CLOSE_ULPS = 64
"""Two logits this near, in units of the last place of the largest, are not told apart."""


@dataclass
class Decoded:
    """What was generated.

    Attributes:
        tokens: without the prompt.
        passes: of the model, whatever the text's length.
        offered, accepted: drafts by each head from the second on, and those of them that were kept.
    """

    tokens: list[int] = field(default_factory=list)
    passes: int = 0
    offered: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)


@torch.no_grad()
def decode_plainly(model: MTPModel, prompt: Tensor, count: int) -> Decoded:
    """``count`` tokens after ``prompt`` (ids [S]), each the most likely next one to head 0."""
    decoded, text = Decoded(), prompt
    for _ in range(count):
        logits = model.head(0, model.trunk(text[None]))[0, -1]
        text = torch.cat((text, logits.argmax(keepdim=True)))
        decoded.passes += 1
    decoded.tokens = text[len(prompt) :].tolist()
    return decoded


@torch.no_grad()
def decode_speculatively(model: MTPModel, prompt: Tensor, count: int) -> Decoded:
    """The tokens of ``decode_plainly``, with drafts from the heads after the first."""
    further = model.config.heads - 1
    decoded = Decoded(offered=[0] * further, accepted=[0] * further)
    text, drafts = prompt, prompt[:0]
    while (missing := len(prompt) + count - len(text)) > 0:
        drafts = drafts[: missing - 1]  # the pass itself gives one more
        hidden = model.trunk(torch.cat((text, drafts))[None])
        decoded.passes += 1
        found, is_clear = _agreed(model.head(0, hidden)[0, len(text) - 1 :], drafts)
        for k in range(len(drafts)):
            decoded.offered[k] += 1
            decoded.accepted[k] += int(k < len(found) and bool(found[k] == drafts[k]))
        text = torch.cat((text, found))
        drafts = _drafts(model, hidden[:, : len(text) - 1]) if is_clear else prompt[:0]
    decoded.tokens = text[len(prompt) :].tolist()
    return decoded


def _agreed(logits: Tensor, drafts: Tensor) -> tuple[Tensor, bool]:
    """What head 0 says as far as the drafts are what it says: logits [N+1, V], drafts [N].

    Returns:
        Its tokens, and whether they end for another reason than that two were too close to tell. Without
        drafts the pass is the one that plain decoding makes, and nothing is too close.
    """
    best = logits.topk(min(2, logits.shape[1]), dim=1)
    tokens = logits.argmax(dim=1)
    margin = CLOSE_ULPS * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
    clear = (best.values[:, 0] - best.values[:, -1] > margin) | torch.tensor(len(drafts) == 0)
    agreed = len(drafts) if (same := tokens[:-1] == drafts).all() else int((~same).nonzero()[0])
    decided = agreed + 1 if clear[: agreed + 1].all() else int((~clear).nonzero()[0])
    return tokens[:decided], decided == agreed + 1


def _drafts(model: MTPModel, hidden: Tensor) -> Tensor:
    """What the further heads expect after the token that head 0 just gave, from states [1, S, D]."""
    guesses = [model.head(k, hidden)[0, -1].argmax() for k in range(1, model.config.heads)]
    return torch.stack(guesses) if guesses else torch.empty(0, dtype=torch.int64, device=hidden.device)
