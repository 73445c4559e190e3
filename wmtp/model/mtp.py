"""Multi-token prediction: a shared trunk, heads of one layer each, and one norm and unembedding for all.

``trunk`` and ``head`` are separate so that training can run one head after another and hold the logits of
only one. Source: arXiv 2404.19737.
"""

from typing import Self

import torch
from torch import Tensor, nn

from wmtp.model.llama import Block, ModelConfig, RMSNorm, rotary
from wmtp.model.value import ValueHead

INIT_STD = 0.02


class MTPModel(nn.Module):
    """A Llama decoder whose last layer exists once for each token to predict.

    Attributes:
        layers: the trunk.
        heads: head k is the last layer of the decoder that predicts the token k+1 ahead.
        value_head: the critic's, kept here to be saved with the rest; None where there is no critic.
    """

    value_head: ValueHead | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.trunk_layers))
        self.heads = nn.ModuleList(Block(config) for _ in range(config.heads))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie()

    def tie(self) -> None:
        """Where the config says so, make the embedding the unembedding, too: one parameter, two names."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    @classmethod
    def from_settings(cls, config: ModelConfig, *, seed: int, device: torch.device | str = "cpu") -> Self:
        """A new model in float32: equal weights for equal seeds on any device; global RNG is not touched."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device="cpu")
        model.tie()
        model.initialise(torch.Generator().manual_seed(seed))
        return model.to(device)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw all weights, in the order of their names in the model.

        Norms are 1, biases 0, matrices normal with standard deviation 0.02; those that write into the
        residual stream (``o_proj``, ``down_proj``) 0.02 / sqrt(2 · layers), with the trunk and one head as
        the layers a token passes, so that the stream's variance doesn't grow with depth (GPT-2).
        """
        residual_std = INIT_STD / (2 * (self.config.trunk_layers + 1)) ** 0.5
        for name, weight in self.named_parameters():
            if weight.ndim == 1:
                weight.fill_(0.0 if name.endswith(".bias") else 1.0)
            else:
                writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0.0, residual_std if writes_residual else INIT_STD, generator=generator)

    def trunk(self, ids: Tensor) -> Tensor:
        """The hidden states all heads start from: ids [B, S] to [B, S, D]."""
        hidden: Tensor = self.embed_tokens(ids)
        positions = rotary(self.config, ids.shape[1], ids.device)
        for layer in self.layers:
            hidden = layer(hidden, positions)
        return hidden

    def head(self, k: int, hidden: Tensor) -> Tensor:
        """Logits [B, S, V] of the token k+1 ahead, from the trunk's hidden states [B, S, D]."""
        return self.lm_head(self.states(k, hidden))  # type: ignore[no-any-return]

    def states(self, k: int, hidden: Tensor) -> Tensor:
        """What head k unembeds, [B, S, D], from the trunk's hidden states [B, S, D]."""
        hidden = self.heads[k](hidden, rotary(self.config, hidden.shape[1], hidden.device))
        return self.norm(hidden)  # type: ignore[no-any-return]

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of all heads at once, [B, S, H, V]; training runs ``trunk`` and ``head`` instead."""
        hidden = self.trunk(ids)
        return torch.stack([self.head(k, hidden) for k in range(self.config.heads)], dim=2)

    def blocks(self) -> list[Block]:
        """All decoder layers: the trunk's, and each head's."""
        return [*self.layers, *self.heads]

    def parameter_count(self) -> int:
        return sum(weight.numel() for weight in self.parameters())
