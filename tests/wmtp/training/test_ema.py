"""Averages of the weights: the recurrence, and what a checkpoint makes of them."""

from pathlib import Path

import pytest
import torch
from jobs import Train
from torch import Tensor

from uploader.errors import CorruptError, SettingsError
from uploader.location import Location
from uploader.settings import StorageSettings
from wmtp.checkpoint.state import flatten
from wmtp.eval.opened import open_checkpoint
from wmtp.model.hf_io import load_llama, save_llama
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.value import ValueHead
from wmtp.training.ema import Ema, place_for_averages

TINY = ModelConfig(
    vocab_size=16, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, tie_embeddings=True
)
EMA = "optim.ema_decay=0.75"


def weights(model: MTPModel) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in model.named_parameters()}


def averaging(model: MTPModel, decay: float) -> Ema:
    return Ema(model, place_for_averages(model), decay)


@torch.no_grad()
def change(model: MTPModel, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight += torch.randn(weight.shape, generator=draw)


def test_each_step_leaves_decay_of_the_average_and_takes_the_rest_from_the_weights() -> None:
    model = MTPModel.from_settings(TINY, seed=0)
    ema = averaging(model, 0.75)
    model.value_head = ValueHead.from_settings(16, seed=0)  # comes later, and is no part of it
    expected = weights(model)
    assert ema.model is not None
    for seed in range(3):
        change(model, seed)
        ema.update()
        now = weights(model)
        expected = {name: 0.75 * was + 0.25 * now[name] for name, was in expected.items()}
    averages = weights(ema.model)
    assert averages.keys() == {name for name in expected if not name.startswith("value_head")}
    for name, average in averages.items():
        torch.testing.assert_close(average, expected[name], rtol=1e-6, atol=1e-6, msg=name)
    assert ema.model.lm_head.weight is ema.model.embed_tokens.weight
    assert not ema.model.training and not any(weight.requires_grad for weight in ema.model.parameters())


def test_averages_are_loaded_as_they_were_saved_or_begin_as_the_weights() -> None:
    model = MTPModel.from_settings(TINY, seed=0)
    ema, other, anew = (averaging(model, 0.5) for _ in range(3))
    off = Ema(model, None, None)
    change(model, 1)
    ema.update()
    state = {"weights": {name: one.clone() for name, one in ema.state_dict()["weights"].items()}}
    other.load_state_dict(state)
    anew.load_state_dict(off.state_dict())
    off.load_state_dict(state)
    assert ema.model is not None and other.model is not None and anew.model is not None and off.model is None
    assert all(torch.equal(one, weights(ema.model)[name]) for name, one in weights(other.model).items())
    assert all(torch.equal(one, weights(model)[name]) for name, one in weights(anew.model).items())
    assert (ema.news, other.news) == ("", "")
    assert "begin as its weights" in anew.news and "left behind" in off.news
    with pytest.raises(CorruptError, match="averaged weights: they are not those of the model"):
        other.load_state_dict({"weights": {"norm.weight": torch.ones(16)}})


def test_each_save_finds_the_same_tensors_so_that_nothing_is_laid_out_anew() -> None:
    ema = averaging(MTPModel.from_settings(TINY, seed=0), 0.5)
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    flatten(ema.state_dict(), "extra.ema", first)
    flatten(ema.state_dict(), "extra.ema", second)
    assert first.keys() == second.keys() != set()
    assert all(second[name] is one for name, one in first.items())


def opened(run: Path, step: int, *, averaged: bool) -> MTPModel:
    location = Location("", str(run / f"step_{step}"))
    return open_checkpoint(location, StorageSettings(), run, print, averaged=averaged).model


def test_a_checkpoint_holds_the_average_of_exactly_the_steps_up_to_it(
    train: Train, no_skipped_saves: None, tmp_path: Path
) -> None:
    train("run", EMA, "train.max_steps=5", "paths.checkpoints.save_interval=1")
    run = tmp_path / "checkpoints/run"
    for step in range(2, 6):
        before = weights(opened(run, step - 1, averaged=True))
        now = weights(opened(run, step, averaged=False))
        for name, average in weights(opened(run, step, averaged=True)).items():
            expected = before[name].lerp(now[name], 0.25)
            torch.testing.assert_close(average, expected, rtol=0, atol=1e-7, msg=f"{name} of step {step}")
            assert not torch.equal(average, now[name])


def test_averages_are_written_like_every_other_tensor(train: Train, tmp_path: Path) -> None:
    train("run", EMA, "train.max_steps=1")
    names = sorted(path.name for path in (tmp_path / "checkpoints/run/step_1").glob("extra-*"))
    assert names == ["extra-rank00000-0001.safetensors"]


def test_averages_change_nothing_that_is_trained(train: Train) -> None:
    assert train("with", EMA) == train("without")


def test_averages_may_begin_and_end_at_a_resume(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("without")
    train("with", EMA, resume="./checkpoints/without/step_6")
    out = capsys.readouterr().out
    assert "changed since the checkpoint: optim.ema_decay None -> 0.75" in out
    assert "optim.ema_decay: the checkpoint has no averaged weights, they begin as its weights" in out
    opened(tmp_path / "checkpoints/with", 12, averaged=True)
    train("ended", resume="./checkpoints/with/step_12", code=0)
    assert "the checkpoint's averaged weights are left behind" in capsys.readouterr().out


def test_a_checkpoint_without_averages_says_so(train: Train, tmp_path: Path) -> None:
    train("run", "train.max_steps=1")
    with pytest.raises(SettingsError, match=r"step_1: it holds no averaged weights; .*optim\.ema_decay"):
        opened(tmp_path / "checkpoints/run", 1, averaged=True)


def test_averages_can_be_exported(train: Train, tmp_path: Path) -> None:
    train("run", EMA, "train.max_steps=3")
    model = opened(tmp_path / "checkpoints/run", 3, averaged=True)
    save_llama(model, tmp_path / "hf")
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(load_llama(tmp_path / "hf")(ids), model.head(0, model.trunk(ids)))
