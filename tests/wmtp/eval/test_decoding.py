"""Speculative decoding gives plain decoding's tokens, whatever the drafts are worth."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wmtp.eval.decoding import _agreed, decode_plainly, decode_speculatively
from wmtp.eval.report import measure_decoding
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.rope import RopeScaling

TINY = ModelConfig(
    vocab_size=24, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=4
)
PROMPT = torch.tensor([3, 1, 4, 1, 5])


def random_model(seed: int, **changes: Any) -> MTPModel:
    model = MTPModel.from_settings(dataclasses.replace(TINY, **changes), seed=seed).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(12)  # text that neither stands still nor hangs on the last bit
    return model


@given(seed=st.integers(0, 10_000), heads=st.integers(1, 4), count=st.integers(1, 20))
def test_the_tokens_are_those_of_plain_decoding(seed: int, heads: int, count: int) -> None:
    model = random_model(seed, heads=heads)
    plain, fast = decode_plainly(model, PROMPT, count), decode_speculatively(model, PROMPT, count)
    assert fast.tokens == plain.tokens
    assert len(plain.tokens) == plain.passes == count >= fast.passes >= -(-count // heads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_everywhere_change_nothing(dtype: torch.dtype) -> None:
    """An unembedding of which every row is there thrice: the best three logits are equal, or nearly."""
    for seed in range(20):
        model = random_model(seed).to(dtype)
        with torch.no_grad():
            model.lm_head.weight[8:16] = model.lm_head.weight[:8]
            model.lm_head.weight[16:] = model.lm_head.weight[:8] * (1 + 1e-6)
        tokens = decode_plainly(model, PROMPT, 12).tokens
        assert decode_speculatively(model, PROMPT, 12).tokens == tokens


SHAPES: dict[str, dict[str, Any]] = {
    "tied": {"tie_embeddings": True},
    "one layer in all": {"trunk_layers": 0},
    "biased, all heads their own": {"attention_bias": True, "kv_heads": 2},
    "llama3": {"rope": RopeScaling("llama3", 8.0, 8)},
    "dynamic": {"rope": RopeScaling("dynamic", 2.0), "max_sequence_length": 17},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_models_of_every_kind_up_to_the_last_token_they_read(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    trunk = MTPModel.trunk

    def watched(model: MTPModel, ids: Tensor) -> Tensor:
        nonlocal longest
        longest = max(longest, ids.shape[1])
        return trunk(model, ids)

    monkeypatch.setattr(MTPModel, "trunk", watched)
    for seed in range(5):
        model = random_model(seed, **SHAPES[shape])
        tokens = decode_plainly(model, PROMPT, 12).tokens
        assert decode_speculatively(model, PROMPT, 12).tokens == tokens
    assert longest == len(PROMPT) + 11  # the last token is given, not read


def test_the_token_that_ends_a_text_is_one_like_any_other() -> None:
    """Both go on behind it, as the packed text of training does."""
    end, found = 7, []
    for seed in range(10):
        model = random_model(seed)
        with torch.no_grad():
            model.lm_head.weight[end] *= 3
        plain = decode_plainly(model, PROMPT, 15).tokens
        assert decode_speculatively(model, PROMPT, 15).tokens == plain
        found += plain[:-1]
    assert end in found


class Counter(MTPModel):
    """A model of a language that counts: after n comes n + 1. Some of its heads are wrong at times."""

    def __init__(self, wrong: Callable[[int, int], bool]) -> None:
        super().__init__(TINY)
        self.wrong = wrong

    def trunk(self, ids: Tensor) -> Tensor:
        return ids[..., None].float()

    def head(self, k: int, hidden: Tensor) -> Tensor:
        ids = hidden[..., 0].long()
        wrong = torch.tensor([[self.wrong(k, int(one)) for one in row] for row in ids])
        target = (ids + k + 1 + wrong) % TINY.vocab_size
        return torch.nn.functional.one_hot(target, TINY.vocab_size).float()


def test_heads_that_are_right_give_all_their_tokens_in_one_pass() -> None:
    decoded = decode_speculatively(Counter(lambda k, n: False), torch.tensor([0]), 21)
    assert decoded.tokens == [n % 24 for n in range(1, 22)]
    assert decoded.passes == 1 + 20 / 4  # the first has no drafts to check
    assert decoded.accepted == decoded.offered == [5, 5, 5]


def test_a_head_that_is_wrong_ends_what_is_accepted() -> None:
    decoded = decode_speculatively(Counter(lambda k, n: k == 2), torch.tensor([0]), 21)
    assert decoded.tokens == [n % 24 for n in range(1, 22)]
    assert decoded.passes == 1 + 20 / 2
    assert decoded.accepted == [10, 0, 0]


def test_heads_that_are_never_right_cost_no_tokens() -> None:
    decoded = decode_speculatively(Counter(lambda k, n: k > 0), torch.tensor([0]), 9)
    assert (decoded.tokens, decoded.passes) == ([*range(1, 10)], 9)


def test_what_is_too_close_is_not_decided_among_drafts() -> None:
    logits = torch.eye(4)[[1, 2, 3]]
    drafts = torch.tensor([1, 2])
    assert _agreed(logits, drafts)[0].tolist() == [1, 2, 3]
    logits[1, 0] = 1 - 1e-7
    tokens, is_clear = _agreed(logits, drafts)
    assert (tokens.tolist(), is_clear) == ([1], False)
    assert _agreed(logits[1:2], drafts[:0])[0].tolist() == [2]


def test_a_report_adds_up_prompts() -> None:
    model = Counter(lambda k, n: k == 3)
    decoding = measure_decoding(model, [torch.tensor([0]), torch.tensor([5])], 10)
    assert (decoding.prompts, decoding.tokens, decoding.passes) == (2, 20, 8)
    assert decoding.tokens_per_pass == 2.5
    assert decoding.accepted == (1.0, 1.0, 0.0)
