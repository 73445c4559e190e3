"""From ``train.algo`` to an objective, with the models it reads and whatever it trains beside the model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from uploader.errors import SettingsError
from wmtp.checkpoint.state import Stateful
from wmtp.data.dataset import Batch, Batches
from wmtp.model.mtp import MTPModel
from wmtp.model.reward import RewardModel
from wmtp.model.value import ValueHead
from wmtp.objectives.critic import final_rewards, likelihood_rewards
from wmtp.objectives.rho1 import kept_weights, softmax_weights
from wmtp.settings import Resolved
from wmtp.training.critic import Critic, Rewards, Stages
from wmtp.training.distributed import shard
from wmtp.training.models import REFERENCE, REWARD, open_reference, open_reward
from wmtp.training.objective import ALONE, Baseline, Objective, Rho1, Scores, Split, Weigh
from wmtp.training.optimizer import OptimizerSettings, build_optimizer
from wmtp.training.reference_scores import ReferenceScores
from wmtp.training.step import precision


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm adds to a run.

    Attributes:
        optimizers: by name, of what it trains beside the model.
        extra: by name, what else of it has a state.
        reads: the fingerprint of the model it reads, by the key that names that.
    """

    objective: Objective
    optimizers: Mapping[str, torch.optim.Optimizer] = field(default_factory=dict)
    extra: Mapping[str, Stateful] = field(default_factory=dict)
    reads: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Basis:
    """What every algorithm is built from."""

    settings: Resolved
    model: MTPModel
    train: Batches
    max_steps: int
    device: torch.device
    autocast_dtype: torch.dtype | None
    split: Split = ALONE


def build_algorithm(basis: Basis) -> Algorithm:
    """The algorithm that ``train.algo`` names.

    Raises:
        SettingsError: a model it needs is not there, or doesn't fit the one that is trained.
        CorruptError: that model's files are damaged.
    """
    algo = basis.settings.recipe.train.algo
    if algo == "baseline-mtp":
        return Algorithm(Baseline(basis.model, basis.autocast_dtype, basis.split))
    return _critic(basis) if algo == "critic-wmtp" else _rho1(basis)


def _rho1(basis: Basis) -> Algorithm:
    scores, reads = _reference(basis)
    objective = Rho1(basis.model, scores, _weigh(basis.settings), basis.autocast_dtype, basis.split)
    return Algorithm(objective, reads=reads)


def _reference(basis: Basis) -> tuple[ReferenceScores, Mapping[str, str]]:
    reference = open_reference(basis.settings, basis.model.config, device=basis.device)
    directory = basis.settings.cache / "reference"
    scores = ReferenceScores.open(reference, basis.train, directory, autocast_dtype=basis.autocast_dtype)
    return scores, {REFERENCE: reference.fingerprint}


def _weigh(settings: Resolved) -> Weigh:
    """``rho1-wmtp`` weighs unless ``selection_mode`` says otherwise; the other names say it themselves."""
    section, named = settings.recipe.loss.rho1, settings.recipe.train.algo.removeprefix("rho1-")
    if "tokenskip" in (named, section.selection_mode):
        return partial(kept_weights, keep_ratio=section.keep_ratio)
    return partial(softmax_weights, temperature=section.temperature, clip=section.clip)


def _critic(basis: Basis) -> Algorithm:
    section, optim, model = basis.settings.recipe.loss.critic, basis.settings.recipe.optim, basis.model
    stages = Stages(_stage1_steps(basis))
    rewards, reads = _rewards(basis)
    seed = basis.settings.seed
    head = ValueHead.from_settings(model.config.hidden_size, seed=seed, device=basis.device)
    shard(head, basis.split.ranks)
    model.value_head = head
    optimizer = build_optimizer(
        head,
        OptimizerSettings(learning_rate=section.value_learning_rate, betas=optim.betas, weight_decay=0.0),
    )
    objective = Critic(model, head, rewards, stages, section, basis.autocast_dtype, basis.split)
    return Algorithm(objective, {"value": optimizer}, {"critic": stages}, reads)


def _stage1_steps(basis: Basis) -> int:
    """Stage 2 must have steps, and more of them than warm up its learning rate."""
    recipe, max_steps = basis.settings.recipe, basis.max_steps
    steps = recipe.loss.critic.stage1_of(max_steps)
    if steps + recipe.optim.warmup_of(max_steps - steps) >= max_steps:
        raise SettingsError(
            f"{steps} steps of stage 1 and the warm-up leave none of {max_steps} for stage 2",
            subject="loss.critic.stage1_steps",
            hint="lower it, or train for more steps",
        )
    return steps


def _rewards(basis: Basis) -> tuple[Rewards, Mapping[str, str]]:
    """The reward model's scores or, where there is none, how likely the reference finds each token."""
    if "rm" in basis.settings.models:
        reward = open_reward(basis.settings, basis.model.config, device=basis.device)
        return partial(_final, reward, basis.autocast_dtype), {REWARD: reward.fingerprint}
    scores, reads = _reference(basis)
    return partial(_likely, scores), reads


def _likely(scores: Scores, batch: Batch, mask: Tensor) -> Tensor:
    return likelihood_rewards(scores(batch)[..., 0], mask)


@torch.no_grad()
def _final(reward: RewardModel, autocast_dtype: torch.dtype | None, batch: Batch, mask: Tensor) -> Tensor:
    with precision(batch.ids, autocast_dtype):
        return final_rewards(reward(batch.ids), mask)
