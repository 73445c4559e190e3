"""Steps whose loss or gradients are not finite change nothing; too many in a row end the run.

One such step is an accident of its batch. What it would leave behind stays: weights, moments and averages
that are not numbers any more. So the decision is made before ``optimizer.step()``: there, and nowhere else in
a step, the host waits for a device to have computed what it was given.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wmtp.training.tracking import Metric

NORM = "grad_norm"


def not_finite(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Which of the loss and the norms of the gradients are no finite numbers, and what they are instead."""
    watched = {name: value for name, value in metrics.items() if name == "loss" or name.endswith(NORM)}
    return {
        name: value
        for name, value in watched.items()
        if isinstance(value, float) and not math.isfinite(value)
    }


@dataclass
class Guard:
    """Counts bad steps; a part of every checkpoint.

    Attributes:
        most: so many in a row end the run.
        in_a_row: up to the last step; 0 where that was a good one.
        total: since the run began.
    """

    most: int
    in_a_row: int = 0
    total: int = 0

    def admits(self, metrics: Mapping[str, Metric]) -> bool:
        """Count the step; whether its gradients may be used."""
        is_good = not not_finite(metrics)
        self.in_a_row = 0 if is_good else self.in_a_row + 1
        self.total += not is_good
        return is_good

    @property
    def gives_up(self) -> bool:
        """Whether there were too many."""
        return self.in_a_row >= self.most

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self.in_a_row, "total": self.total}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.in_a_row, self.total = state["in_a_row"], state["total"]
