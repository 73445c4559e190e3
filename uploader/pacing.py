"""How much of the wire an upload may take while a trainer's steps must not get slower.

A step is slow if it takes more than 1 % longer than the 95th percentile of the steps during which nothing was
sent. One step in twenty is so by itself; where more are than chance explains, p95 has risen, and the share of
the wire is halved. Otherwise it grows again. It never falls below ``FLOOR``: durability is only delayed.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from uploader.steptimes import StepTime, read_steps

PERCENTILE = 0.95
RISE = 1.01
FLOOR = 0.05
ENOUGH = 8
"""Steps to judge by."""
IDLE_STEPS = 128
GROWTH = 1.25
GONE_STEPS = 20
"""After as many step times without a step the trainer has ended, or does something else."""


def p95(durations_s: Sequence[float]) -> float:
    """The 95th percentile (nearest rank) of one duration or more."""
    ordered = sorted(durations_s)
    return ordered[math.ceil(PERCENTILE * len(ordered)) - 1]


def has_risen(idle_s: Sequence[float], busy_s: Sequence[float]) -> bool:
    """Whether p95 of the busy steps is more than 1 % above that of the idle ones, and not by chance.

    Of n busy steps 0.05 n may be slow; two standard deviations more are still chance.
    """
    limit_s = p95(idle_s) * RISE
    slow = sum(step_s > limit_s for step_s in busy_s)
    expected = (1 - PERCENTILE) * len(busy_s)
    return slow > expected + 2 * math.sqrt(expected * PERCENTILE)


class Pacer:
    """The share of the wire for one trainer's sake. Steps are told to it, oldest first; it reads no clock.

    Attributes:
        share: of what the wire gave while nothing was held back; from ``FLOOR`` to 1.
    """

    def __init__(self) -> None:
        self.share = 1.0
        self._idle_s: deque[float] = deque(maxlen=IDLE_STEPS)
        self._since_s = float("-inf")

    def began(self, now_s: float, steps: Iterable[StepTime]) -> None:
        """An upload begins: whatever steps there were since the last one had the machine to themselves."""
        self._idle_s.extend(step.took_s for step in steps if self._since_s <= step.began_s)
        self._since_s = now_s

    def ended(self, now_s: float) -> None:
        """Nothing is sent any more."""
        self._since_s = now_s

    def look(self, now_s: float, steps: Sequence[StepTime]) -> float:
        """The share from now on, by the steps since the upload began or the share last changed."""
        if len(self._idle_s) < ENOUGH:
            return self.share
        if not steps or now_s - steps[-1].ended_s > GONE_STEPS * p95(self._idle_s):
            self.share = 1.0
            return self.share
        busy_s = [step.took_s for step in steps if self._since_s <= step.began_s]
        if len(busy_s) >= ENOUGH:
            risen = has_risen(self._idle_s, busy_s)
            self.share = max(FLOOR, self.share / 2) if risen else min(1.0, self.share * GROWTH)
            self._since_s = now_s
        return self.share


class Trainer:
    """The trainer of one run, by what its ranks here publish."""

    def __init__(self, rings: Sequence[Path]) -> None:
        self._rings, self.pacer = rings, Pacer()

    @property
    def is_publishing(self) -> bool:
        return any(ring.exists() for ring in self._rings)

    def steps(self) -> list[StepTime]:
        """The latest steps, oldest first. Ranks step together: the first that publishes speaks for all."""
        return next((steps for ring in self._rings if (steps := read_steps(ring))), [])
