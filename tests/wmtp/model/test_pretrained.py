"""Models that training reads: a step of a run and a Hugging Face directory give one and the same model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from uploader.errors import CorruptError, SettingsError
from wmtp.model.hf_io import save_llama
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.pretrained import open_pretrained
from wmtp.model.reward import load_reward

TINY = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=2
)
IDS = torch.randint(0, 32, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def exported(tmp_path: Path) -> tuple[MTPModel, Path]:
    model = MTPModel.from_settings(TINY, seed=1)
    save_llama(model, tmp_path / "hf")
    return model, tmp_path / "hf"


def test_a_hugging_face_directory_gives_next_token_logits(exported: tuple[MTPModel, Path]) -> None:
    model, path = exported
    found = open_pretrained(path, field="paths.models.ref")
    torch.testing.assert_close(found.logits(IDS), model(IDS)[:, :, 0])
    assert not any(weight.requires_grad for weight in found.model.parameters())
    assert not found.model.training


def test_the_fingerprint_is_that_of_the_weights(exported: tuple[MTPModel, Path], tmp_path: Path) -> None:
    model, path = exported
    save_llama(model, tmp_path / "again")
    one, again = (open_pretrained(each, field="f").fingerprint for each in (path, tmp_path / "again"))
    with torch.no_grad():
        model.norm.weight[0] += 1
    save_llama(model, tmp_path / "other")
    assert one == again != open_pretrained(tmp_path / "other", field="f").fingerprint


@pytest.fixture
def reward(exported: tuple[MTPModel, Path]) -> tuple[MTPModel, Tensor, Path]:
    """The decoder, the score's weights, and the directory of a reward model."""
    model, path = exported
    weights = load_file(path / "model.safetensors")
    score = torch.randn(1, 16, generator=torch.Generator().manual_seed(2))
    kept = {name: one for name, one in weights.items() if not name.startswith(("lm_head", "extra_heads"))}
    save_file(kept | {"score.weight": score}, path / "model.safetensors")
    edit(
        path,
        architectures=["LlamaForSequenceClassification"],
        id2label={"0": "LABEL_0"},
        n_future_tokens=None,
    )
    return model, score, path


def edit(path: Path, **fields: object) -> None:
    config = json.loads((path / "config.json").read_bytes())
    (path / "config.json").write_text(json.dumps(config | fields))


def test_a_reward_model_scores_the_text_up_to_each_position(reward: tuple[MTPModel, Tensor, Path]) -> None:
    model, score, path = reward
    found = load_reward(path, field="paths.models.rm")
    hidden = model.heads[0].eval()(model.trunk(IDS), positions(model))
    expected = (model.norm(hidden) * score).sum(dim=-1)
    torch.testing.assert_close(found(IDS), expected)
    changed = IDS.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 32
    torch.testing.assert_close(found(changed)[:, :4], expected[:, :4])
    assert not any(weight.requires_grad for weight in found.parameters())


def positions(model: MTPModel) -> tuple[Tensor, Tensor]:
    from wmtp.model.llama import rotary

    return rotary(model.config, IDS.shape[1], IDS.device)


@torch.no_grad()
def test_scores_are_those_of_transformers(tmp_path: Path) -> None:
    """Which scores a text at its last token."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_labels=1, initializer_range=0.2, pad_token_id=31,
    )  # fmt: skip
    theirs = LlamaForSequenceClassification(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_reward(tmp_path, field="paths.models.rm")
    ids = IDS.clamp(max=30)
    for length in (1, 4, 7):
        torch.testing.assert_close(ours(ids[:, :length])[:, -1], theirs(ids[:, :length]).logits[:, 0])


def test_a_language_model_is_no_reward_model(exported: tuple[MTPModel, Path]) -> None:
    with pytest.raises(
        SettingsError, match=r"paths\.models\.rm .*is no reward model.*set paths\.models\.ref"
    ):
        load_reward(exported[1], field="paths.models.rm")


def test_a_model_with_several_scores_is_refused(reward: tuple[MTPModel, Tensor, Path]) -> None:
    edit(reward[2], id2label={"0": "bad", "1": "good"})
    with pytest.raises(SettingsError, match="several scores"):
        load_reward(reward[2], field="paths.models.rm")


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_config_does_not_describe_are_refused(
    reward: tuple[MTPModel, Tensor, Path], change: str
) -> None:
    path = reward[2] / "model.safetensors"
    weights = load_file(path)
    if change == "missing":
        del weights["score.weight"]
    elif change == "unknown":
        weights["model.layers.9.mlp.up_proj.weight"] = torch.zeros(1)
    else:
        weights["score.weight"] = torch.zeros(2, 16)
    save_file(weights, path)
    with pytest.raises(CorruptError, match=r"score|layers\.9"):
        load_reward(reward[2], field="paths.models.rm")


@pytest.mark.parametrize("kept", [0, 4, 100])
def test_torn_weights_of_either_kind_are_named(
    exported: tuple[MTPModel, Path], reward: tuple[MTPModel, Tensor, Path], tmp_path: Path, kept: int
) -> None:
    save_llama(exported[0], tmp_path / "whole")
    for path in (tmp_path / "whole", reward[2]):
        weights = path / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(CorruptError, match=r"reading .*model\.safetensors"):
        open_pretrained(tmp_path / "whole", field="paths.models.ref")
    with pytest.raises(CorruptError, match=r"reading .*model\.safetensors"):
        load_reward(reward[2], field="paths.models.rm")


@pytest.mark.parametrize(("name", "says"), [("nowhere", "there is no directory"), ("empty", "no model in")])
def test_what_is_no_model_is_refused_by_its_key(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingsError, match=says) as caught:
        open_pretrained(tmp_path / name, field="paths.models.ref")
    assert caught.value.subject == "paths.models.ref"
