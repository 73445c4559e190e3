"""The decoder layer against its definition, and shapes that don't fit."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from uploader.errors import SettingsError
from wmtp.model.llama import Attention, Block, ModelConfig, RMSNorm, rotary, rotate

TINY = ModelConfig(
    vocab_size=16, hidden_size=16, intermediate_size=24, attention_heads=4, kv_heads=2, max_sequence_length=8
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_attention(layer: Attention, hidden: Tensor) -> Tensor:
    """Query by query and head by head, with explicit softmax over the positions up to its own."""
    batch, length, width = hidden.shape
    size, group = TINY.head_size, TINY.attention_heads // TINY.kv_heads
    cos, sin = rotary(TINY, length, hidden.device)
    out = torch.zeros(batch, length, width)

    def turned(vector: Tensor, at: int) -> Tensor:
        half = size // 2
        return vector * cos[at] + torch.cat((-vector[half:], vector[:half])) * sin[at]

    for b in range(batch):
        queries, keys, values = (p(hidden[b]) for p in (layer.q_proj, layer.k_proj, layer.v_proj))
        for h in range(TINY.attention_heads):
            q, kv = slice(h * size, (h + 1) * size), slice(h // group * size, (h // group + 1) * size)
            for t in range(length):
                scores = torch.stack(
                    [turned(queries[t, q], t) @ turned(keys[s, kv], s) for s in range(t + 1)]
                )
                out[b, t, q] = (scores / math.sqrt(size)).softmax(0) @ values[: t + 1, kv]
    return layer.o_proj(out)  # type: ignore[no-any-return]


def test_attention_equals_its_definition() -> None:
    layer, hidden = Attention(TINY), torch.randn(2, 5, 16, generator=generator())
    for weight in layer.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator(weight.numel()))
    with torch.no_grad():
        fast = layer(hidden, rotary(TINY, 5, hidden.device))
        torch.testing.assert_close(fast, slow_attention(layer, hidden), rtol=1e-5, atol=1e-5)


def test_rotation_keeps_length_and_depends_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, TINY.head_size, generator=generator())
    by = rotary(TINY, 8, q.device)
    queries, keys = rotate(q.expand(1, 1, 8, -1), by), rotate(k.expand(1, 1, 8, -1), by)
    torch.testing.assert_close(queries.norm(dim=-1), q.norm().expand(1, 1, 8))
    products = (queries @ keys.transpose(-1, -2))[0, 0]
    for distance in range(-7, 8):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_norm_gives_root_mean_square_one_in_the_type_it_was_given() -> None:
    norm, hidden = RMSNorm(64, eps=0.0), 1e-4 * torch.randn(3, 64, generator=generator())
    torch.testing.assert_close(norm(hidden).square().mean(-1), torch.ones(3))
    assert norm.bfloat16()(hidden.bfloat16()).dtype == torch.bfloat16


def test_dropout_is_there_in_training_alone() -> None:
    block = Block(dataclasses.replace(TINY, dropout=0.5))
    hidden = torch.randn(1, 4, 16, generator=generator())
    positions = rotary(TINY, 4, hidden.device)
    assert not torch.equal(block(hidden, positions), block(hidden, positions))
    block.eval()
    assert torch.equal(block(hidden, positions), block(hidden, positions))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 20}, r"^model\.hidden_size: 20 is no multiple of twice attention_heads"),
        ({"kv_heads": 3}, r"^model\.attention_heads: 4 is no multiple of kv_heads"),
        ({"heads": 0}, r"^model\.heads: 0 is too small"),
        ({"kv_heads": 0}, r"^model\.kv_heads: 0 is too small"),
        ({"norm_eps": -1.0}, r"^model\.norm_eps"),
        ({"rope_theta": 0.0}, r"^model\.rope_theta: 0.0 is too small"),
        ({"dropout": 1.0}, r"^model\.dropout"),
    ],
)
def test_shapes_that_do_not_fit_name_their_field(change: dict[str, float], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        dataclasses.replace(TINY, **change)  # type: ignore[arg-type]


def test_text_the_model_cannot_take_is_refused() -> None:
    TINY.require(vocab_size=16, sequence_length=8)
    with pytest.raises(SettingsError, match=r"^model\.vocab_size: 16 is less than the tokenizer's 17"):
        TINY.require(vocab_size=17, sequence_length=8)
    with pytest.raises(SettingsError, match=r"^data\.sequence_length: 9 is more than the model's 8"):
        TINY.require(vocab_size=16, sequence_length=9)


def test_the_fingerprint_is_that_of_the_shape() -> None:
    assert TINY.fingerprint == dataclasses.replace(TINY).fingerprint
    assert TINY.fingerprint != dataclasses.replace(TINY, rope_theta=5e5).fingerprint
