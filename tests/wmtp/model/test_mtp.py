"""Trunk and heads: parameters, initialisation, causality."""

import dataclasses

import pytest
import torch

from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel

TINY = ModelConfig(
    vocab_size=16, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=3
)
IDS = torch.randint(0, 16, (2, 6), generator=torch.Generator().manual_seed(0))


def test_the_reference_has_1_25_million_parameters() -> None:
    with torch.device("meta"):
        assert MTPModel(ModelConfig()).parameter_count() == 1_248_896


def test_parameters_are_named_as_hugging_face_names_them() -> None:
    names = set(MTPModel.from_settings(TINY, seed=0).state_dict())
    layer = {f"self_attn.{which}_proj.weight" for which in "qkvo"}
    layer |= {f"mlp.{which}_proj.weight" for which in ("gate", "up", "down")}
    layer |= {"input_layernorm.weight", "post_attention_layernorm.weight"}
    owners = ["layers.0", "layers.1", "heads.0", "heads.1", "heads.2"]
    expected = {f"{owner}.{name}" for owner in owners for name in layer}
    assert names == expected | {"embed_tokens.weight", "norm.weight", "lm_head.weight"}


def test_the_seed_alone_decides_the_weights_and_global_randomness_is_untouched() -> None:
    before = torch.get_rng_state()
    first, second, other = (MTPModel.from_settings(TINY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_weights_into_the_residual_stream_begin_smaller() -> None:
    model = MTPModel.from_settings(dataclasses.replace(TINY, hidden_size=128, trunk_layers=7), seed=0)
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight))
        else:
            std = 0.02 / 4 if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
            assert weight.std().item() == pytest.approx(std, rel=0.1), name


@torch.no_grad()
def test_a_new_model_knows_nothing() -> None:
    logits = MTPModel.from_settings(TINY, seed=0)(IDS)
    assert logits.shape == (2, 6, 3, 16)
    assert logits.log_softmax(-1).add(torch.tensor(16.0).log()).abs().max() < 0.5


@torch.no_grad()
def test_no_head_sees_a_later_token() -> None:
    model = MTPModel.from_settings(TINY, seed=0)
    changed = IDS.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 16
    before, after = model(IDS), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert (before[:, 4:] - after[:, 4:]).abs().amax(dim=(0, 1, 3)).min() > 1e-3


@torch.no_grad()
def test_forward_is_trunk_then_each_head() -> None:
    model = MTPModel.from_settings(TINY, seed=0)
    hidden = model.trunk(IDS)
    assert hidden.shape == (2, 6, 16)
    for k in range(3):
        assert torch.equal(model(IDS)[:, :, k], model.head(k, hidden))
