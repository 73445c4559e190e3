"""From settings to everything that a training run works with; whatever does not fit is found here."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from uploader.errors import SettingsError
from wmtp.checkpoint.state import Stateful
from wmtp.data.dataset import Batches, split
from wmtp.data.packed import PackedTokens
from wmtp.model.mtp import MTPModel
from wmtp.ranks import Ranks
from wmtp.settings import Resolved
from wmtp.settings.validation import require_best
from wmtp.training.algorithm import Basis, build_algorithm
from wmtp.training.distributed import device_of, rank_0_first, shard
from wmtp.training.early_stopping import EarlyStopping
from wmtp.training.ema import Ema, place_for_averages
from wmtp.training.guard import Guard
from wmtp.training.models import build_model
from wmtp.training.objective import Objective, Split
from wmtp.training.optimizer import OptimizerSettings, build_optimizer
from wmtp.training.sources import open_data, open_tokenizer, require_one_vocabulary
from wmtp.training.trackers import check_trackers
from wmtp.training.validation import EMA, Validation


@dataclass
class Setup:
    """The objects of one run, built and checked.

    Attributes:
        optimizers: ``main`` trains the model; others what the algorithm trains beside it.
        extra: by name, what else has a state: ``ema``, ``guard`` and ``early_stopping`` are among it.
        ranks: who trains the model together; what follows is over all of them.
        batch_size: samples a step, over all micro-batches.
        fingerprints: of what must not change between a checkpoint and its resumption.
        about: the same in words, to name the fields that differ.
        reads: fingerprints of the models the algorithm reads, by the key that names them.
    """

    ranks: Ranks
    model: MTPModel
    objective: Objective
    optimizers: dict[str, torch.optim.Optimizer]
    extra: Mapping[str, Stateful]
    ema: Ema
    guard: Guard
    validation: Validation
    early_stopping: EarlyStopping
    train: Batches
    held_out: Batches
    bytes_per_token: float
    max_steps: int
    batch_size: int
    device: torch.device
    autocast_dtype: torch.dtype | None
    fingerprints: dict[str, str]
    about: dict[str, object]
    reads: Mapping[str, str]


def build(settings: Resolved, ranks: Ranks | None = None) -> Setup:
    """Open the data, build the model, its optimizer and the algorithm.

    Args:
        ranks: among which the model is sharded; all of them call this.

    Raises:
        SettingsError: something is missing, unknown, or does not fit together.
    """
    recipe, config, ranks = settings.recipe, settings.config, ranks or Ranks()
    device = device_of(config.devices.device, ranks.local_rank if ranks.world_size > 1 else None)
    with rank_0_first(ranks):
        check_trackers(settings)
        require_best(settings)
        _require_samples(recipe.data.batch_size, ranks.world_size)
        tokenizer = open_tokenizer(settings)
        require_one_vocabulary(settings, tokenizer)
        model = build_model(settings, vocab_size=tokenizer.vocab_size, device=device)
        packed = PackedTokens.open(open_data(settings), tokenizer, Path(settings.cache))
    averages = None if recipe.optim.ema_decay is None else place_for_averages(model)
    shard(model, ranks)
    if averages is not None:
        shard(averages, ranks)
    train, held_out = split(
        packed,
        sequence_length=recipe.data.sequence_length,
        heads=model.config.heads,
        seed=settings.seed,
        held_out_fraction=recipe.data.validation_fraction,
    )
    batch_size = recipe.data.batch_size * recipe.data.gradient_accumulation
    max_steps = _max_steps(settings, len(train), batch_size)
    autocast_dtype = _autocast_dtype(config.devices.dtype, device)
    optimizer = build_optimizer(
        model,
        OptimizerSettings(
            learning_rate=recipe.optim.learning_rate,
            betas=recipe.optim.betas,
            weight_decay=recipe.optim.weight_decay,
        ),
    )
    ema = Ema(model, averages, recipe.optim.ema_decay)
    guard, early_stopping = Guard(recipe.optim.max_bad_steps), EarlyStopping(recipe.train.early_stopping)
    validation = Validation(
        recipe.train.validation,
        {"": model} if averages is None else {"": model, EMA: averages},
        held_out,
        batch_size=recipe.data.batch_size,
        bytes_per_token=packed.bytes_per_token,
        device=device,
        autocast_dtype=autocast_dtype,
        ranks=ranks,
    )
    validation.require_text()
    split_of_a_step = Split(ranks, batch_size)
    algorithm = build_algorithm(
        Basis(settings, model, train, max_steps, device, autocast_dtype, split_of_a_step)
    )
    for block in model.blocks():
        block.recompute = config.devices.activation_checkpointing
        if config.devices.compile:
            block.compile()
    return Setup(
        ranks=ranks,
        model=model,
        objective=algorithm.objective,
        optimizers={"main": optimizer, **algorithm.optimizers},
        extra={**algorithm.extra, "ema": ema, "guard": guard, "early_stopping": early_stopping},
        ema=ema,
        guard=guard,
        validation=validation,
        early_stopping=early_stopping,
        train=train,
        held_out=held_out,
        bytes_per_token=packed.bytes_per_token,
        max_steps=max_steps,
        batch_size=batch_size,
        device=device,
        autocast_dtype=autocast_dtype,
        fingerprints={"model": model.config.fingerprint, "data": train.fingerprint},
        about={
            "model": dataclasses.asdict(model.config),
            "data": {
                **recipe.data.model_dump(mode="json", exclude={"train", "format", "text_field", "tokenizer"}),
                "tokenizer": tokenizer.name,
                "tokens": packed.fingerprint,
            },
            "seed": settings.seed,
            "vocabulary": tokenizer.vocabulary,
        },
        reads=algorithm.reads,
    )


def _require_samples(batch_size: int, world_size: int) -> None:
    """Every rank has a sample of every micro-batch: all run the same passes."""
    if batch_size < world_size:
        raise SettingsError(
            f"{batch_size} sequences a forward pass are too few for {world_size} ranks",
            subject="data.batch_size",
            hint=f"raise it to {world_size} at least, and lower data.gradient_accumulation, or start fewer",
        )


def _autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    """Matrix products in bfloat16 where that is wanted; parameters stay float32."""
    wanted = name == "bfloat16" or (name == "auto" and device.type == "cuda")
    return torch.bfloat16 if wanted else None


def _max_steps(settings: Resolved, samples: int, batch_size: int) -> int:
    if settings.max_steps is not None:
        return settings.max_steps
    return max(1, math.ceil((settings.num_epochs or 1) * samples / batch_size))
