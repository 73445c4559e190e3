"""The model that is trained, and those beside it that ``paths.models`` names: opened, and checked to fit."""

import dataclasses
from pathlib import Path

import torch

from uploader.errors import SettingsError
from wmtp.data.tokenizer import TOKENIZER
from wmtp.model.hf_config import read_config
from wmtp.model.hf_io import load_mtp
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.pretrained import Pretrained, open_pretrained
from wmtp.model.reward import RewardModel, load_reward
from wmtp.settings import Resolved
from wmtp.training.sources import model_directory

BASE, REFERENCE, REWARD = "paths.models.base", "paths.models.ref", "paths.models.rm"


def build_model(settings: Resolved, *, vocab_size: int, device: torch.device) -> MTPModel:
    """The model to train: of the shape and the weights of ``paths.models.base``, else a new one.

    Args:
        vocab_size: of the tokenizer.

    Raises:
        SettingsError: the base is no model, or the text doesn't fit the model.
        CorruptError: the base's files are damaged.
    """
    shape, length = settings.recipe.model, settings.recipe.data.sequence_length
    if "base" not in settings.models:
        config = ModelConfig(vocab_size=vocab_size, **shape.model_dump())
        config.require(vocab_size=vocab_size, sequence_length=length)
        return MTPModel.from_settings(config, seed=settings.seed, device=device)
    path = model_directory(settings, "base")
    found = read_config(path, field=BASE)
    config = dataclasses.replace(found, heads=shape.heads, dropout=shape.dropout)
    config.require(vocab_size=vocab_size, sequence_length=length)
    return load_mtp(path, config, device=device, field=BASE)


def open_reference(settings: Resolved, trained: ModelConfig, *, device: torch.device) -> Pretrained:
    """The model of ``paths.models.ref``. It reads a window and all but the last token its heads predict.

    Raises:
        SettingsError: there is none, or it doesn't fit the model that is trained.
        CorruptError: its files are damaged.
    """
    path = model_directory(settings, "ref")
    reference = open_pretrained(path, field=REFERENCE, device=device)
    length = settings.recipe.data.sequence_length + trained.heads - 1
    require_fit(reference.model.config, path, trained=trained, length=length, field=REFERENCE)
    return reference


def open_reward(settings: Resolved, trained: ModelConfig, *, device: torch.device) -> RewardModel:
    """The model of ``paths.models.rm``.

    Raises:
        SettingsError, CorruptError: as ``open_reference``.
    """
    path = model_directory(settings, "rm")
    reward = load_reward(path, field=REWARD, device=device)
    length = settings.recipe.data.sequence_length
    require_fit(reward.config, path, trained=trained, length=length, field=REWARD)
    return reward


def require_fit(
    config: ModelConfig, directory: Path, *, trained: ModelConfig, length: int, field: str
) -> None:
    """Before the first step: does a model read the ids of the one that is trained, and enough of them?

    Where it brings a tokenizer, that was compared with the data's, token by token; vocabularies may then
    differ in how far they are padded.

    Args:
        length: of what it has to read, in tokens.
        field: the setting that names it.

    Raises:
        SettingsError: its vocabulary is another one, or it can't read ``length`` tokens.
    """
    if config.vocab_size != trained.vocab_size and not (directory / TOKENIZER).exists():
        raise SettingsError(
            f"its vocabulary has {config.vocab_size} tokens, that of the model being trained "
            f"{trained.vocab_size}",
            subject=field,
            hint="base, reference and reward model must share one tokenizer: name a model made with that",
        )
    if config.max_sequence_length < length:
        spare = length - config.max_sequence_length
        raise SettingsError(
            f"it reads at most {config.max_sequence_length} tokens, and would have to read {length}",
            subject=field,
            hint=f"lower data.sequence_length by {spare}, or name a model with a longer context",
        )
