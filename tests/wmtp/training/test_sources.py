"""Data, tokenizers and models that settings name: brought here, and found not to fit before the start."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import tokenizers
import torch
import yaml
from tokenizers import models

from uploader.errors import CorruptError, SettingsError, WmtpError
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store import open_store
from wmtp.checkpoint.uploader_process import Uploading
from wmtp.data.dataset import NO_TARGET
from wmtp.data.tokenizer import ByteTokenizer
from wmtp.model.hf_io import save_llama
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.settings import Flags, Resolved, load_settings
from wmtp.training.job import run_job
from wmtp.training.setup import build
from wmtp.training.sources import open_tokenizer

RECIPE: dict[str, Any] = {
    "train": {"max_steps": 12},
    "data": {"train": "./text", "sequence_length": 16, "batch_size": 2},
    "model": {
        "hidden_size": 16, "intermediate_size": 24, "trunk_layers": 1,
        "heads": 2, "attention_heads": 2, "kv_heads": 1,
    },
}  # fmt: skip

Load = Callable[..., Resolved]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Settings in a directory with some text."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text/words.txt").write_text("".join(f"the {n}th of {n * n} words. " for n in range(400)))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def settings(*overrides: str) -> Resolved:
        return load_settings(None, "recipe.yaml", overrides, Flags(), {}, tmp_path)

    return settings


def make_tokenizer(path: Path, letters: str = "abcdefghijklmnopqrstuvwxyz0123456789 .") -> None:
    vocabulary = {"<eos>": 0, **{letter: at for at, letter in enumerate(letters, 1)}}
    path.mkdir(exist_ok=True)
    tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(path / "tokenizer.json"))


def make_model(path: Path, vocab_size: int, **changes: Any) -> MTPModel:
    config = ModelConfig(
        vocab_size=vocab_size, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1,
        heads=1, max_sequence_length=64,
    )  # fmt: skip
    model = MTPModel.from_settings(dataclasses.replace(config, **changes), seed=5)
    save_llama(model, path)
    return model


def test_bytes_unless_something_else_is_named(load: Load, tmp_path: Path) -> None:
    assert isinstance(open_tokenizer(load()), ByteTokenizer)
    make_tokenizer(tmp_path / "tok")
    for named in ("./tok", "./tok/tokenizer.json"):
        setup = build(load(f"data.tokenizer={named}"))
        assert setup.model.config.vocab_size == 39
        assert setup.train.packed.record.tokenizer.startswith("tokenizer.json-")
    assert setup.about["data"]["tokenizer"] == setup.train.packed.record.tokenizer  # type: ignore[index]


def test_a_base_model_brings_its_shape_weights_and_tokenizer(load: Load, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", 48, trunk_layers=3, rope_theta=5e5)
    make_tokenizer(tmp_path / "base")
    setup = build(load("paths.models.base=./base"))
    config = setup.model.config
    assert (config.trunk_layers, config.rope_theta, config.heads, config.vocab_size) == (3, 5e5, 2, 48)
    state = setup.model.state_dict()
    for name, weight in base.state_dict().items():
        assert torch.equal(state[name], weight)
        if name.startswith("heads.0."):
            assert torch.equal(state[name.replace("heads.0.", "heads.1.")], weight)
    assert setup.train.packed.record.tokenizer == open_tokenizer(load("data.tokenizer=./base")).name


def test_a_base_model_of_bytes_needs_no_tokenizer(load: Load, tmp_path: Path) -> None:
    make_model(tmp_path / "base", 264)
    assert isinstance(open_tokenizer(load("paths.models.base=./base")), ByteTokenizer)
    for name, data in ByteTokenizer().files().items():
        (tmp_path / "base" / name).write_bytes(data)
    ours = open_tokenizer(load("paths.models.base=./base", "data.tokenizer=bytes"))
    assert isinstance(ours, ByteTokenizer)


def test_a_step_that_was_trained_with_another_tokenizer_is_no_reference(load: Load, tmp_path: Path) -> None:
    state = tmp_path / "step_1/state-rank00000.json"
    state.parent.mkdir()
    state.write_text('{"about": {"vocabulary": "another"}}')
    wanted = load("train.algo=rho1-wmtp", "paths.models.ref=./step_1")
    with pytest.raises(SettingsError, match=r"paths\.models\.ref: its tokenizer is not that of the"):
        build(wanted)
    state.write_text(json.dumps({"about": {"vocabulary": ByteTokenizer().vocabulary}}))
    with pytest.raises(SettingsError, match="there is no model in"):
        build(wanted)
    state.write_text('{"about": ')
    with pytest.raises(CorruptError, match=r"state-rank00000\.json: it is damaged"):
        build(wanted)


BASE, RHO1 = "paths.models.base=./base", "train.algo=rho1-wmtp"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.tokenizer=tok"], r"data\.tokenizer: 'tok' is no tokenizer; write bytes, or a path"),
        (["data.tokenizer=./no"], r"data\.tokenizer file:///.*/no: there is no such file or directory"),
        (["data.tokenizer=./text"], r"data\.tokenizer .*/text/tokenizer\.json: No such file"),
        (
            [BASE, "data.tokenizer=bytes"],
            r"paths\.models\.base: its tokenizer is not that of the data \(39 tok",
        ),
        (
            [BASE, "data.tokenizer=./other"],
            r"paths\.models\.base: its tokenizer is not .*set data\.tokenizer",
        ),
        (["paths.models.base=./bare"], r"data\.tokenizer: the base model has no tokenizer\.json; name a"),
        (["paths.models.base=./small"], r"model\.vocab_size: 30 is less .* 39; .* set data\.tokenizer"),
        (
            [BASE, RHO1, "paths.models.ref=./other"],
            r"paths\.models\.ref: its tokenizer is not that of the data",
        ),
        ([BASE, "data.sequence_length=65"], r"data\.sequence_length: 65 is more than the model's 64"),
        (["data.format=records"], r"data\.train: there is no text in"),
        (["data.format=json"], r"data\.format .*'json' "),
        (["data.text_fields=a"], r"data\.text_fields .*unknown key; did you mean text_field\?"),
    ],
)
def test_what_does_not_fit_is_found_before_the_first_step(
    load: Load, tmp_path: Path, overrides: list[str], says: str
) -> None:
    make_model(tmp_path / "base", 48)
    make_model(tmp_path / "other", 48)
    make_model(tmp_path / "bare", 48)
    make_model(tmp_path / "small", 30)
    make_tokenizer(tmp_path / "base")
    make_tokenizer(tmp_path / "small")
    make_tokenizer(tmp_path / "other", "zyxwvutsrqponmlkjihgfedcba9876543210 .")
    with pytest.raises(SettingsError, match=says):
        build(load(*overrides))


def test_a_model_that_the_algorithm_does_not_read_is_not_looked_at(load: Load) -> None:
    assert build(load("paths.models.ref=./nowhere")).model.config.vocab_size == 264


def test_solutions_are_learnt_and_prompts_are_not(load: Load, tmp_path: Path) -> None:
    records = [{"prompt": "what is it? " * 3, "completion": f"it is {n}"} for n in range(99)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    setup = build(load("data.train=./data.jsonl"))
    labels = torch.cat([batch.labels[..., 0] for batch in setup.train.in_order(50)])
    learnt = bytes(one for one in labels[labels != NO_TARGET].tolist() if one < 256)
    assert learnt.startswith(b"it is 0it is 1it is 2")
    assert b"?" not in learnt


def test_data_and_model_from_a_store(
    load: Load, tmp_path: Path, s3_place: tuple[Location, StorageSettings]
) -> None:
    location, storage = s3_place
    make_model(tmp_path / "base", 48)
    make_tokenizer(tmp_path / "base")
    (tmp_path / "base" / "pytorch_model.bin").write_bytes(b"never fetched")

    async def upload() -> None:
        async with open_store(location, storage) as store:
            for path in [*(tmp_path / "base").iterdir(), *(tmp_path / "text").iterdir()]:
                await store.put(path.relative_to(tmp_path).as_posix(), memoryview(path.read_bytes()))

    anyio.run(upload)
    here = build(load("paths.models.base=./base"))
    sets = [f"paths.models.base={location}/base", f"paths.datasets.words={location}/text", "data.train=words"]
    settings = dataclasses.replace(load(*sets), storage=storage)
    there = build(settings)
    assert there.fingerprints == here.fingerprints
    assert torch.equal(there.model.lm_head.weight, here.model.lm_head.weight)
    assert not [*settings.cache.rglob("*.bin")]
    gone = dataclasses.replace(load(f"data.train={location}/nothing"), storage=storage)
    with pytest.raises(WmtpError, match=r"data\.train s3://.*/nothing: nothing lies there"):
        build(gone)


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "attention_bias": True, "head_dim": 4}])
def test_a_run_from_a_base_resumes_bit_for_bit(load: Load, tmp_path: Path, changes: dict[str, Any]) -> None:
    make_model(tmp_path / "base", 48, **changes)
    make_tokenizer(tmp_path / "base")
    fixed = ["paths.models.base=./base", "paths.checkpoints.save_interval=2", "optim.warmup_steps=0"]

    def run(name: str, steps: int, resume: str | None = None) -> bytes:
        flags = Flags(run_name=name, resume=resume, max_steps=steps)
        settings = load_settings(None, "recipe.yaml", [*fixed, "optim.min_lr_ratio=1"], flags, {}, tmp_path)
        with torch.random.fork_rng():
            assert run_job(settings, Uploading.NONE, again="wmtp train") == 0
        files = sorted((settings.local_dir / f"step_{steps}").glob("*.safetensors"))
        return b"".join(file.read_bytes() for file in files)

    whole, half = run("whole", 4), run("halves", 2)
    assert run("halves", 4, "latest") == whole != half
