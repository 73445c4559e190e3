"""What our trainer is measured beside: a decoder of the same size, and a loop as in nanoGPT's ``train.py``.

Nothing but PyTorch: random windows of the text, forward, loss, backward, clip, AdamW. It keeps no position
and no metrics, saves nothing and can't be resumed. Source: https://github.com/karpathy/nanoGPT.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

Shape = tuple[int, int]
"""Windows a batch, and tokens a window."""


class Layer(nn.Module):
    """GPT-2's: 12·D² weights, as many as a Llama layer has with half as many key heads and an MLP of 3·D."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.c_attn, self.c_proj = (
            nn.Linear(width, 3 * width, bias=False),
            nn.Linear(width, width, bias=False),
        )
        self.c_fc, self.c_out = (
            nn.Linear(width, 4 * width, bias=False),
            nn.Linear(4 * width, width, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        mixed = self.c_attn(self.ln_1(x)).view(batch, length, 3, self.heads, -1)
        queries, keys, values = mixed.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.c_out(functional.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """Token and position embeddings, layers, a norm and an unembedding of its own."""

    def __init__(self, vocab_size: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab_size, width), nn.Embedding(length, width)
        self.layers = nn.Sequential(*(Layer(width, heads) for _ in range(layers)))
        self.ln_f, self.lm_head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocab_size, bias=False)
        for weight in self.parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        return self.lm_head(self.ln_f(self.layers(self.wte(ids) + self.wpe(places))))


def loop(
    model: nn.Module, next_token: Callable[[Tensor], Tensor], tokens: npt.NDArray[np.integer], shape: Shape
) -> Callable[[int], None]:
    """A function that trains for so many steps more.

    Args:
        next_token: ids [B, S] to logits [B, S, V], by ``model``.
        shape: of a batch.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    (size, length), at = shape, 0

    def train(steps: int) -> None:
        nonlocal at
        for _ in range(steps):
            starts = torch.randint(len(tokens) - length, (size,)).tolist()
            windows = np.stack([tokens[start : start + length + 1] for start in starts]).astype(np.int64)
            text = torch.from_numpy(windows)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * (1 + math.cos(min(1.0, at / 1000) * math.pi)) / 2
            logits = next_token(text[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            at += 1
            if at % 10 == 0 and not math.isfinite(loss.item()):
                raise ArithmeticError(f"the loss of step {at} is {loss.item()}")

    return train
