"""The Llama decoder layer: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

Modules and parameters are named as Hugging Face's ``LlamaDecoderLayer`` names them, so reading and writing
its files is a renaming. Source: ``transformers/models/llama/modeling_llama.py``; RoPE: arXiv 2104.09864;
grouped-query attention: arXiv 2305.13245; SwiGLU: arXiv 2002.05202.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from uploader.errors import SettingsError
from wmtp.model.rope import RopeScaling, frequencies

Rotary: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines, float32, each of shape [S, head_size]."""

_LEAST = {"trunk_layers": 0, "dropout": 0, "norm_eps": 0}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a model; the defaults are the 1.2 M parameter reference over bytes.

    Attributes:
        trunk_layers: layers all heads share.
        heads: multi-token-prediction heads of one layer each; head k predicts the token k+1 ahead.
        attention_heads: query heads of each attention; ``kv_heads`` of keys and values divide them.
        max_sequence_length: longest input, in tokens.
        dropout: probability, on what each attention and each MLP adds.
        head_dim: channels of one attention head; None is ``hidden_size / attention_heads``.
        rope: how the rotary frequencies are scaled.
        attention_bias, mlp_bias: whether those matrices have biases.
        tie_embeddings: the unembedding is the embedding.

    Raises:
        SettingsError: a value is out of range, or two don't fit together.
    """

    vocab_size: int = 264
    hidden_size: int = 128
    intermediate_size: int = 384
    trunk_layers: int = 2
    heads: int = 4
    attention_heads: int = 4
    kv_heads: int = 2
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    max_sequence_length: int = 1024
    dropout: float = 0.0
    head_dim: int | None = None
    rope: RopeScaling = field(default_factory=RopeScaling)
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if type(value) in (int, float) and value < _LEAST.get(one.name, 1):
                raise SettingsError(f"{value} is too small", subject=f"model.{one.name}")
        if self.dropout >= 1:
            raise SettingsError(f"{self.dropout} is not below 1", subject="model.dropout")
        if self.head_dim is None:
            self._require_multiple("hidden_size", 2 * self.attention_heads, "twice attention_heads")
        else:
            self._require_multiple("head_dim", 2, "the two that rotary embedding turns together")
        self._require_multiple("attention_heads", self.kv_heads, "kv_heads")
        if self.rope.kind == "dynamic" and self.head_size <= 2:
            raise SettingsError(f"{self.head_size} is too small for dynamic RoPE", subject="model.head_dim")

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> Self:
        """The config that ``asdict`` made a tree of; fields that are not in it have their defaults."""
        rope = RopeScaling(**tree["rope"]) if "rope" in tree else RopeScaling()
        return cls(**{**tree, "rope": rope})

    def _require_multiple(self, name: str, unit: int, what: str) -> None:
        if (value := getattr(self, name)) % unit:
            raise SettingsError(f"{value} is no multiple of {what} ({unit})", subject=f"model.{name}")

    def require(self, *, vocab_size: int, sequence_length: int) -> None:
        """Before the first step: can the model take this text at all?

        Raises:
            SettingsError: the tokenizer has ids the model doesn't know, or the samples are too long.
        """
        if vocab_size > self.vocab_size:
            raise SettingsError(
                f"{self.vocab_size} is less than the tokenizer's {vocab_size}",
                subject="model.vocab_size",
                hint="use the tokenizer that the model was made with: set data.tokenizer",
            )
        if sequence_length > self.max_sequence_length:
            raise SettingsError(
                f"{sequence_length} is more than the model's {self.max_sequence_length}",
                subject="data.sequence_length",
                hint="shorten the samples or, of a new model, raise model.max_sequence_length",
            )

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.head_dim or self.hidden_size // self.attention_heads

    @property
    def fingerprint(self) -> str:
        """Equal for models of the same shape; hexadecimal."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class RMSNorm(nn.Module):
    """Scale each position to root mean square 1, in float32, then each channel by its weight."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(hidden.dtype)


def rotary(config: ModelConfig, length: int, device: torch.device) -> Rotary:
    """The angles of positions 0..length-1; channel i turns with channel i + head_size/2."""
    speeds, factor = frequencies(
        config.rope,
        size=config.head_size,
        theta=config.rope_theta,
        length=length,
        max_length=config.max_sequence_length,
        device=device,
    )
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), speeds)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos() * factor, angles.sin() * factor


def rotate(heads: Tensor, by: Rotary) -> Tensor:
    """Turn queries or keys, shape [B, heads, S, head_size], by their positions."""
    cos, sin = (table.to(heads.dtype) for table in by)
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention in which several query heads share one head of keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.head_size = config.head_size
        self.grouped = config.kv_heads != config.attention_heads
        query_size, kv_size = config.attention_heads * config.head_size, config.kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.attention_bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=config.attention_bias)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=config.attention_bias)

    def forward(self, hidden: Tensor, positions: Rotary) -> Tensor:
        batch, length, _ = hidden.shape

        def by_head(states: Tensor) -> Tensor:
            return states.view(batch, length, -1, self.head_size).transpose(1, 2)

        queries = rotate(by_head(self.q_proj(hidden)), positions)
        keys = rotate(by_head(self.k_proj(hidden)), positions)
        values = by_head(self.v_proj(hidden))
        mixed = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, enable_gqa=self.grouped
        )
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """SwiGLU: one projection gates the other."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, hidden: Tensor) -> Tensor:
        gated = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        return self.down_proj(gated)  # type: ignore[no-any-return]


class Block(nn.Module):
    """One decoder layer: attention, then MLP, each normalised before and added after.

    Attributes:
        recompute: whether it keeps its input alone and computes the rest again in the backward pass, with the
            same random numbers: the gradients are the same bit for bit.
    """

    recompute: bool = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = MLP(config)
        self.dropout = config.dropout

    def forward(self, hidden: Tensor, positions: Rotary) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._forward, hidden, positions, use_reentrant=False)  # type: ignore[no-any-return]
        return self._forward(hidden, positions)

    def _forward(self, hidden: Tensor, positions: Rotary) -> Tensor:
        attended = self.self_attn(self.input_layernorm(hidden), positions)
        hidden = hidden + functional.dropout(attended, self.dropout, self.training)
        computed = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + functional.dropout(computed, self.dropout, self.training)
