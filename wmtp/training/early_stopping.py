"""End a run that gets no better: after so many validations without a new best."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from wmtp.settings.recipe import EarlyStopping as Section


@dataclass(frozen=True, slots=True)
class Best:
    """The best validation so far, and how many there were since.

    Attributes:
        value: of the metric; None before the first that is a finite number.
        step: whose it is.
    """

    value: float | None = None
    step: int = 0
    waited: int = 0


def judged(was: Best, value: float, step: int, *, mode: Literal["min", "max"], min_delta: float) -> Best:
    """The best once ``value`` was measured at ``step``. What is not finite is never better."""
    gain = math.inf if was.value is None else was.value - value if mode == "min" else value - was.value
    if math.isfinite(value) and gain > min_delta:
        return Best(value, step)
    return Best(was.value, was.step, was.waited + 1)


class EarlyStopping:
    """Watches the validations of a run; a part of every checkpoint.

    Patience is a setting, not a state: a run that was stopped goes on where it has more.
    """

    def __init__(self, section: Section) -> None:
        self.section, self.best = section, Best()

    def observe(self, measured: Mapping[str, float], step: int) -> None:
        """Take in a validation."""
        section, value = self.section, measured.get(self.section.metric)
        if value is not None:
            self.best = judged(self.best, value, step, mode=section.mode, min_delta=section.min_delta)

    @property
    def reason(self) -> str | None:
        """Why the run is to end; None while it is not."""
        patience, best = self.section.patience, self.best
        if patience is None or best.waited < patience:
            return None
        found = "was no finite number"
        if best.value is not None:
            found = f"has been no better than {best.value:.4g} of step {best.step}"
        return f"{self.section.metric} {found} in the last {best.waited} validation{'s' * (best.waited > 1)}"

    def state_dict(self) -> dict[str, Any]:
        return {"metric": self.section.metric, **asdict(self.best)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The best so far, unless it is that of another metric."""
        if state["metric"] == self.section.metric:
            self.best = Best(state["value"], state["step"], state["waited"])
