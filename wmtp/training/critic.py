"""The critic's two stages as one run: fit a value head to a frozen trunk, then let it weigh the heads.

In stage 1 nothing but the value head has gradients, so the model's optimizer has nothing to do and no state.
Stage 2 goes on fitting it, to what the trunk now makes of the text, and trains the model by its weights. The
value's error never reaches the trunk: a return sums the rewards of a hundred tokens, and its gradient drowns
that of the heads (tried, it left head 0 at 3.13 nats instead of 2.80 after 400 steps of the small recipe).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wmtp.data.dataset import NO_TARGET, Batch
from wmtp.model.mtp import MTPModel
from wmtp.model.value import ValueHead
from wmtp.objectives.critic import gae_returns, head_weights, inside_window, value_loss
from wmtp.settings.recipe import Critic as CriticSection
from wmtp.training.objective import ALONE, Measures, Split, valid_targets, weight_measures, weighted_backward
from wmtp.training.step import trunk_states

Rewards = Callable[[Batch, Tensor], Tensor]
"""A micro-batch and its mask, bool [B, S], to rewards [B, S]."""


@dataclass
class Stages:
    """Which stage the run is in; a part of every checkpoint.

    Attributes:
        value_steps: how many steps stage 1 has. Once stage 2 has begun this is a fact, whatever the settings
            say later: the model's schedule counts from there.
    """

    value_steps: int
    stage: int = 1

    def enter(self, step: int) -> int:
        """The stage of the step that follows ``step`` finished ones; there is no way back."""
        if self.stage == 1 and step >= self.value_steps:
            self.stage, self.value_steps = 2, step
        return self.stage

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "value_steps": self.value_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stage = state["stage"]
        if self.stage == 2:
            self.value_steps = state["value_steps"]


@dataclass
class Critic:
    """Stage 1: the value head alone. Stage 2: heads weighed by the value's rise, and the value's own loss."""

    model: MTPModel
    head: ValueHead
    rewards: Rewards
    stages: Stages
    settings: CriticSection
    autocast_dtype: torch.dtype | None = None
    split: Split = ALONE

    @property
    def first_step(self) -> int:
        return self.stages.value_steps

    def backward(self, batches: Sequence[Batch], step: int) -> Measures:
        stage = self.stages.enter(step)
        coefficient = 1.0 if stage == 1 else self.settings.value_weight
        valid = valid_targets(batches, self.split)
        values, error = self._fit(batches, valid[..., 0].sum(), coefficient)
        measures = {"loss": coefficient * error, "value_loss": error, "stage": torch.tensor(stage)}
        if stage == 1:
            return measures
        trained = self._train(batches, self.split.gather(values), valid)
        return trained | measures | {"loss": trained["loss"] + measures["loss"]}

    def _fit(self, batches: Sequence[Batch], positions: Tensor, coefficient: float) -> tuple[Tensor, Tensor]:
        """Add the value head's gradients.

        Args:
            positions: scalar; how many the whole step has.

        Returns:
            This rank's values, [B, S], and its share of the mean squared error, both without gradient.
        """
        values, errors = [], []
        for batch in batches:
            mask = batch.labels[..., 0] != NO_TARGET
            value = self.head(trunk_states(self.model, batch, autocast_dtype=self.autocast_dtype))
            returns = gae_returns(
                self.rewards(batch, mask),
                value,
                mask,
                gamma=self.settings.gamma,
                gae_lambda=self.settings.gae_lambda,
            )
            error = value_loss(value, returns, mask, positions)
            (coefficient * error).backward()  # type: ignore[no-untyped-call]
            values.append(value.detach())
            errors.append(error.detach())
        return torch.cat(values), torch.stack(errors).sum()

    def _train(self, batches: Sequence[Batch], values: Tensor, valid: Tensor) -> Measures:
        """Add the model's gradients, its heads weighed by the whole step's values."""
        inside = inside_window(valid)
        weights = head_weights(
            values, inside, delta_lambda=self.settings.delta_lambda, temperature=self.settings.temperature
        )
        measures = weighted_backward(
            self.model, batches, weights, valid, self.split, autocast_dtype=self.autocast_dtype
        )
        return measures | weight_measures(weights, inside)
