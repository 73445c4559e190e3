"""Hugging Face directories: our logits are those of ``transformers``, both ways."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from uploader.errors import CorruptError, DiskError, SettingsError, WmtpError
from wmtp.model.hf_config import read_config
from wmtp.model.hf_io import load_llama, load_mtp, save_llama
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel

TINY: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32,
}  # fmt: skip
ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 500_000.0},
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10_000.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 500.0,
    },
    "yarn": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10_000.0,
        "beta_fast": 4.0, "beta_slow": 1.0,
    },
    "yarn, its temperature given": {
        "rope_type": "yarn", "factor": 4.0, "attention_factor": 0.7, "truncate": False, "rope_theta": 1e4,
        "original_max_position_embeddings": 8,
    },
    "yarn, as DeepSeek": {
        "rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.3, "rope_theta": 1e4,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "one key and value head": {"num_key_value_heads": 1},
    "as many key and value heads": {"num_key_value_heads": None},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 16},
    "narrow heads": {"head_dim": 4},
    "other epsilon": {"rms_norm_eps": 1e-2},
    "one layer": {"num_hidden_layers": 1},
}


def foreign(directory: Path, dtype: torch.dtype = torch.float32, **changes: Any) -> LlamaForCausalLM:
    """A random model as ``transformers`` saves it, with weights large enough to make a difference."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**TINY, "initializer_range": 0.2, **changes}))
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            torch.nn.init.normal_(weight, mean=float("norm" in name), std=0.2)
    model.to(dtype).save_pretrained(directory)
    return LlamaForCausalLM.from_pretrained(directory, dtype=dtype).eval()  # ``to`` also rounds its angles


def ids(length: int = 24) -> torch.Tensor:
    return torch.randint(0, TINY["vocab_size"], (2, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_logits(theirs: LlamaForCausalLM, directory: Path, length: int = 24) -> None:
    expected = theirs(ids(length)).logits
    torch.testing.assert_close(load_llama(directory)(ids(length)), expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 0.3


@pytest.mark.parametrize("rope", ROPES)
def test_logits_with_every_rope(tmp_path: Path, rope: str) -> None:
    assert_same_logits(foreign(tmp_path, rope_parameters=ROPES[rope]), tmp_path)


@pytest.mark.parametrize("rope", ROPES)
def test_logits_of_texts_longer_than_the_model(tmp_path: Path, rope: str) -> None:
    assert_same_logits(foreign(tmp_path, rope_parameters=ROPES[rope]), tmp_path, length=80)


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_of_every_shape(tmp_path: Path, shape: str) -> None:
    assert_same_logits(foreign(tmp_path, **SHAPES[shape]), tmp_path)


def test_ropes_differ(tmp_path: Path) -> None:
    """That the comparisons above could fail."""
    logits = []
    for number, rope in enumerate(ROPES.values()):
        foreign(tmp_path / str(number), rope_parameters=rope)
        logits.append(load_llama(tmp_path / str(number))(ids(80)))
    for number, one in enumerate(logits):
        assert all((one - other).abs().max() > 1e-2 for other in logits[:number])


@torch.no_grad()
def test_bfloat16(tmp_path: Path) -> None:
    theirs = foreign(tmp_path, torch.bfloat16)
    ours = load_llama(tmp_path)
    assert {weight.dtype for weight in ours.parameters()} == {torch.bfloat16}
    expected, found = theirs(ids()).logits, ours(ids())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    wide = load_llama(tmp_path, dtype=torch.float32)(ids())
    torch.testing.assert_close(wide, theirs.float()(ids()).logits, rtol=1e-4, atol=1e-4)


def test_several_files_with_an_index(tmp_path: Path) -> None:
    theirs = foreign(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    assert len([*(tmp_path / "cut").glob("model-*.safetensors")]) > 2
    assert_same_logits(theirs, tmp_path / "cut")


def test_the_fields_of_transformers_4(tmp_path: Path) -> None:
    theirs = foreign(tmp_path, rope_parameters=ROPES["llama3"])
    tree = json.loads((tmp_path / "config.json").read_text())
    rope = tree.pop("rope_parameters")
    tree |= {"rope_theta": rope.pop("rope_theta"), "torch_dtype": tree.pop("dtype"), "_name_or_path": "x"}
    rope["type"] = rope.pop("rope_type")
    (tmp_path / "config.json").write_text(json.dumps({**tree, "rope_scaling": rope}))
    assert_same_logits(theirs, tmp_path)


def test_a_loaded_reference_is_frozen_and_ready(tmp_path: Path) -> None:
    foreign(tmp_path)
    model = load_llama(tmp_path)
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())


@torch.no_grad()
def test_the_last_layer_becomes_head_0_and_the_others_begin_as_it(tmp_path: Path) -> None:
    theirs = foreign(tmp_path)
    config = dataclasses.replace(read_config(tmp_path), heads=3)
    assert (config.trunk_layers, config.heads) == (2, 3)
    model = load_mtp(tmp_path, config)
    logits = model(ids())
    for k in range(3):
        torch.testing.assert_close(logits[:, :, k], theirs(ids()).logits, rtol=1e-4, atol=1e-4)
    assert all(weight.requires_grad and weight.dtype == torch.float32 for weight in model.parameters())
    model.heads[1].mlp.up_proj.weight.zero_()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(model(ids())[:, :, 0], logits[:, :, 0])  # copies, not the same weights


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"attention_bias": True, "head_dim": 16}])
@pytest.mark.parametrize("shard_size_bytes", [10**9, 20_000])
@torch.no_grad()
def test_what_we_save_both_read(tmp_path: Path, changes: dict[str, Any], shard_size_bytes: int) -> None:
    config = ModelConfig(
        vocab_size=48, hidden_size=32, intermediate_size=40, heads=3, max_sequence_length=64, **changes
    )  # fmt: skip
    ours = MTPModel.from_settings(config, seed=3)
    save_llama(ours, tmp_path / "hf", shard_size_bytes=shard_size_bytes)
    assert read_config(tmp_path / "hf") == config
    logits = ours(ids())
    assert torch.equal(load_mtp(tmp_path / "hf", config)(ids()), logits)
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf")
    torch.testing.assert_close(theirs(ids()).logits, logits[:, :, 0], rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


@torch.no_grad()
def test_tied_weights_in_bfloat16_are_exported_as_they_are(tmp_path: Path) -> None:
    config = ModelConfig(
        vocab_size=48,
        hidden_size=32,
        intermediate_size=40,
        heads=2,
        max_sequence_length=64,
        tie_embeddings=True,
    )
    ours = MTPModel.from_settings(config, seed=3)
    save_llama(ours, tmp_path / "hf", dtype=torch.bfloat16)
    assert "lm_head.weight" not in load_file(tmp_path / "hf" / "model.safetensors")
    theirs = LlamaForCausalLM.from_pretrained(tmp_path / "hf", dtype="auto").eval()
    assert theirs.dtype == torch.bfloat16
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    found = load_mtp(tmp_path / "hf", config, dtype=None)
    assert found.lm_head.weight is found.embed_tokens.weight
    torch.testing.assert_close(theirs(ids()).logits, found(ids())[:, :, 0], rtol=0, atol=0)


@torch.no_grad()
def test_a_stored_unembedding_of_a_tied_model_does_not_matter(tmp_path: Path) -> None:
    theirs = foreign(tmp_path, tie_word_embeddings=True)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"lm_head.weight": torch.zeros(48, 32)}, tmp_path / "model.safetensors")
    assert_same_logits(theirs, tmp_path)


@torch.no_grad()
def test_an_index_of_files_with_further_heads(tmp_path: Path) -> None:
    theirs = foreign(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "cut", max_shard_size="20KB")
    index = tmp_path / "cut/model.safetensors.index.json"
    tree = json.loads(index.read_text())
    of_head_0 = {
        key: one
        for key, one in load_file(tmp_path / "whole/model.safetensors").items()
        if ".layers.2." in key
    }
    further = {key.replace("model.layers.2", "extra_heads.0"): 2 * one for key, one in of_head_0.items()}
    save_file(further, tmp_path / "cut/extra.safetensors")
    tree["weight_map"] |= dict.fromkeys(further, "extra.safetensors")
    index.write_text(json.dumps(tree))
    model = load_mtp(tmp_path / "cut", dataclasses.replace(read_config(tmp_path / "cut"), heads=3))
    state = model.state_dict()
    for key, one in of_head_0.items():
        rest = key.removeprefix("model.layers.2.")
        assert torch.equal(state[f"heads.0.{rest}"], one)
        assert torch.equal(state[f"heads.1.{rest}"], 2 * one)
        assert torch.equal(state[f"heads.2.{rest}"], one)


@pytest.mark.parametrize("rope", ROPES)
@torch.no_grad()
def test_a_round_trip_keeps_the_rope(tmp_path: Path, rope: str) -> None:
    theirs = foreign(tmp_path / "a", rope_parameters=ROPES[rope])
    config = read_config(tmp_path / "a")
    save_llama(load_mtp(tmp_path / "a", config), tmp_path / "b")
    assert read_config(tmp_path / "b") == config
    again = LlamaForCausalLM.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(again(ids(80)).logits, theirs(ids(80)).logits, rtol=1e-4, atol=1e-4)


def test_heads_are_read_back_as_many_as_are_wanted(tmp_path: Path) -> None:
    config = ModelConfig(vocab_size=48, hidden_size=32, intermediate_size=40, heads=3)
    ours = MTPModel.from_settings(config, seed=3)
    save_llama(ours, tmp_path / "hf", dtype=torch.bfloat16)
    names = {*load_file(tmp_path / "hf" / "model.safetensors")}
    assert {"extra_heads.0.mlp.up_proj.weight", "extra_heads.1.mlp.up_proj.weight"} < names
    fewer, more = (
        load_mtp(tmp_path / "hf", dataclasses.replace(config, heads=heads)).state_dict() for heads in (2, 4)
    )
    one, two, none = (f"heads.{k}.mlp.up_proj.weight" for k in (1, 2, 3))
    original = {name: weight.bfloat16().float() for name, weight in ours.state_dict().items()}
    assert torch.equal(fewer[one], original[one]) and two not in fewer
    assert torch.equal(more[two], original[two])
    assert torch.equal(more[none], original["heads.0.mlp.up_proj.weight"])


def test_nothing_is_written_over(tmp_path: Path) -> None:
    model = MTPModel.from_settings(ModelConfig(), seed=0)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine").touch()
    with pytest.raises(SettingsError, match=r"exporting to .*/hf: it is not empty"):
        save_llama(model, tmp_path / "hf")
    assert [path.name for path in tmp_path.rglob("*")] == ["hf", "mine"]
    with pytest.raises(DiskError, match="exporting to"):
        save_llama(model, tmp_path / "hf" / "mine" / "below")


REFUSED: dict[str, dict[str, Any]] = {
    "model_type": {"model_type": "mistral"},
    "architectures": {"architectures": ["LlamaForSequenceClassification"]},
    "hidden_act": {"hidden_act": "gelu"},
    "quantization_config": {"quantization_config": {"bits": 4}},
    "auto_map": {"auto_map": {"AutoModel": "evil.Model"}},
    "attention_dropout": {"attention_dropout": 0.1},
    "sliding_window": {"sliding_window": 128},
    "rope_parameters.rope_type": {"rope_parameters": {"rope_type": "longrope", "factor": 2.0}},
    "rope_parameters.partial_rotary_factor": {"rope_parameters": {"partial_rotary_factor": 0.5}},
    "rope_parameters.factor": {"rope_parameters": {"rope_type": "linear"}},
    "rope_parameters.low_freq_factor": {
        "rope_parameters": {**ROPES["llama3"], "low_freq_factor": "many"},
    },
    "rope_parameters.high_freq_factor": {"rope_parameters": {**ROPES["llama3"], "high_freq_factor": 0.5}},
    "vocab_size": {"vocab_size": "many"},
    "num_hidden_layers": {"num_hidden_layers": 0},
    "model.attention_heads": {"num_key_value_heads": 3},
    "model.head_dim": {"head_dim": 7},
}


@pytest.mark.parametrize("named", REFUSED)
def test_what_is_not_supported_is_refused_by_name_before_weights_are_looked_for(
    tmp_path: Path, named: str
) -> None:
    foreign(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tree = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**tree, **REFUSED[named]}))
    with pytest.raises(SettingsError, match=rf"config\.json {named}"):
        load_llama(tmp_path)


def test_pickled_weights_are_refused_with_a_hint(tmp_path: Path) -> None:
    foreign(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(SettingsError, match=r"pickled \(pytorch_model\.bin\).*save_pretrained"):
        load_llama(tmp_path)


@pytest.mark.parametrize(
    ("damage", "error", "says"),
    [
        ("missing", CorruptError, r"model\.layers\.1\.mlp\.up_proj\.weight .* is missing"),
        ("shape", CorruptError, r"model\.norm\.weight has the shape \[31\], by config\.json \[32\]"),
        ("unknown", SettingsError, r"score\.weight: the model has no such weight"),
        ("gap", CorruptError, r"there are 1 extra heads, but no extra_heads\.0"),
        ("dtype", SettingsError, r"model\.norm\.weight: I8 is not supported"),
        ("torn", CorruptError, r"reading .*model\.safetensors"),
        ("empty", CorruptError, r"reading .*model\.safetensors"),
        ("no config", SettingsError, r"config\.json: No such file.*must be a Hugging Face directory"),
        ("no json", SettingsError, r"config\.json: it is not JSON"),
        ("no weights", SettingsError, r"neither model\.safetensors nor model\.safetensors\.index\.json"),
        ("escape", CorruptError, r"it names '\.\./a\.safetensors', which is no safetensors file beside it"),
        ("lost shard", CorruptError, r"b\.safetensors is missing"),
    ],
)
def test_damage_is_named(tmp_path: Path, damage: str, error: type[WmtpError], says: str) -> None:
    foreign(tmp_path)
    path, index = tmp_path / "model.safetensors", tmp_path / "model.safetensors.index.json"
    weights = load_file(path)
    match damage:
        case "missing":
            del weights["model.layers.1.mlp.up_proj.weight"]
        case "shape":
            weights["model.norm.weight"] = torch.ones(31)
        case "unknown":
            weights["score.weight"] = torch.ones(1)
        case "gap":
            weights["extra_heads.1.mlp.up_proj.weight"] = torch.ones(1)
        case "dtype":
            weights["model.norm.weight"] = torch.ones(32, dtype=torch.int8)
    save_file(weights, path)
    match damage:
        case "torn":
            path.write_bytes(path.read_bytes()[:-100])
        case "empty":
            path.write_bytes(b"")
        case "no config":
            (tmp_path / "config.json").unlink()
        case "no json":
            (tmp_path / "config.json").write_text("{")
        case "no weights":
            path.unlink()
        case "escape" | "lost shard":
            path.unlink()
            name = "../a.safetensors" if damage == "escape" else "b.safetensors"
            index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with pytest.raises(error, match=says):
        load_llama(tmp_path)


def test_a_model_survives_the_directory_it_was_read_from(tmp_path: Path) -> None:
    foreign(tmp_path / "hf")
    model = load_llama(tmp_path / "hf")
    before = model(ids())
    data = (tmp_path / "hf" / "model.safetensors").read_bytes()
    (tmp_path / "hf" / "model.safetensors").write_bytes(bytes(len(data)))
    shutil.rmtree(tmp_path / "hf")
    assert torch.equal(model(ids()), before)
