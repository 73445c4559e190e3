"""From settings to everything that a training run works with; whatever does not fit is found here."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from uploader.errors import SettingsError
from wmtp.data.corpus import open_corpus
from wmtp.data.dataset import Batches, split
from wmtp.data.packed import PackedTokens
from wmtp.data.tokenizer import ByteTokenizer
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.settings import Resolved
from wmtp.training.optimizer import OptimizerSettings, build_optimizer


@dataclass
class Setup:
    """The objects of one run, built and checked.

    Attributes:
        batch_size: samples a step, over all micro-batches.
        fingerprints: of what must not change between a checkpoint and its resumption.
        about: the same in words, to name the fields that differ.
    """

    model: MTPModel
    optimizer: torch.optim.Optimizer
    train: Batches
    held_out: Batches
    bytes_per_token: float
    max_steps: int
    batch_size: int
    device: torch.device
    autocast_dtype: torch.dtype | None
    fingerprints: dict[str, str]
    about: dict[str, object]


def build(settings: Resolved) -> Setup:
    """Open the data, build the model and its optimizer.

    Raises:
        SettingsError: something is missing, unknown, or does not fit together.
    """
    recipe, config = settings.recipe, settings.config
    _check_supported(settings)
    device = _device(config.devices.device)
    tokenizer = ByteTokenizer()
    model_settings = recipe.model
    model_config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=model_settings.hidden_size,
        intermediate_size=model_settings.intermediate_size,
        trunk_layers=model_settings.trunk_layers,
        heads=model_settings.heads,
        attention_heads=model_settings.attention_heads,
        kv_heads=model_settings.kv_heads,
        rope_theta=model_settings.rope_theta,
        dropout=model_settings.dropout,
    )
    model_config.require(vocab_size=tokenizer.vocab_size, sequence_length=recipe.data.sequence_length)
    corpus = open_corpus(_dataset(settings), field="data.train")
    packed = PackedTokens.open(corpus, tokenizer, Path(settings.cache))
    train, held_out = split(
        packed,
        sequence_length=recipe.data.sequence_length,
        heads=model_config.heads,
        seed=settings.seed,
        held_out_fraction=recipe.data.validation_fraction,
    )
    batch_size = recipe.data.batch_size * recipe.data.gradient_accumulation
    model = MTPModel.from_settings(model_config, seed=settings.seed, device=device)
    optimizer = build_optimizer(
        model,
        OptimizerSettings(
            learning_rate=recipe.optim.learning_rate,
            betas=recipe.optim.betas,
            weight_decay=recipe.optim.weight_decay,
        ),
    )
    if config.devices.compile:
        for block in [*model.layers, *model.heads]:
            block.compile()
    return Setup(
        model=model,
        optimizer=optimizer,
        train=train,
        held_out=held_out,
        bytes_per_token=packed.bytes_per_token,
        max_steps=_max_steps(settings, len(train), batch_size),
        batch_size=batch_size,
        device=device,
        autocast_dtype=_autocast_dtype(config.devices.dtype, device),
        fingerprints={"model": model_config.fingerprint, "data": train.fingerprint},
        about={
            "model": model_settings.model_dump(mode="json"),
            "data": recipe.data.model_dump(mode="json", exclude={"train"}) | {"tokens": packed.fingerprint},
            "seed": settings.seed,
        },
    )


def _check_supported(settings: Resolved) -> None:
    if settings.recipe.train.algo != "baseline-mtp":
        raise SettingsError(
            f"{settings.recipe.train.algo} can't be trained by this version yet",
            subject="train.algo",
            hint="use baseline-mtp",
        )
    if settings.config.mlflow.enabled:
        raise SettingsError(
            "this version does not write to MLflow yet",
            subject="mlflow.enabled",
            hint="set it to false: metrics are in metrics.jsonl of the run directory",
        )


def _dataset(settings: Resolved) -> str:
    if settings.dataset is None:
        return "stdlib"
    if settings.dataset.is_s3:
        raise SettingsError(
            f"{settings.dataset} can't be read by this version yet",
            subject="data.train",
            hint="copy it to a local directory and name that",
        )
    return settings.dataset.path


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SettingsError("there is no CUDA device", subject="devices.device", hint="use auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Matrix products in bfloat16 where that is wanted; parameters stay float32."""
    wanted = name == "bfloat16" or (name == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted else None


def _max_steps(settings: Resolved, samples: int, batch_size: int) -> int:
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, math.ceil((settings.num_epochs or 1) * samples / batch_size))
