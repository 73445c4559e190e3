"""Which committed steps to keep, and why: a pure function, apart from anything that deletes.

Kept are the newest, the pinned, the last ``keep_last``, every ``keep_every``-th, the best ``keep_best.n`` by
a metric, and those younger than ``keep_for_s``. Only committed steps count.
"""

import math
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field

from uploader.settings import Strict


class KeepBest(Strict):
    """Keep the ``n`` steps whose ``metric`` is best; steps without a finite one don't compete."""

    metric: Annotated[str, Field(min_length=1)]
    mode: Literal["min", "max"] = "min"
    n: Annotated[int, Field(ge=1)] = 1

    def __str__(self) -> str:
        return f"{self.n} by {self.metric} ({self.mode})"


class Retention(Strict):
    """A policy; ``keep_last`` counts the newest steps and is at least 1. None keeps all."""

    keep_last: Annotated[int, Field(ge=1)] | None = 3
    keep_every: Annotated[int, Field(ge=1)] | None = None
    keep_best: KeepBest | None = None
    keep_for_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None

    def on_disk(self) -> Self:
        """What it means for the local disk where nothing else is said: the last ones, and nothing that grows.

        A store has room for every thousandth step of a year; a fast disk has not.
        """
        return type(self)(keep_last=self.keep_last or 1)

    def __str__(self) -> str:
        rules = {name: value for name, value in self if value is not None}
        return ", ".join(f"{name} {value}" for name, value in rules.items()) or "all"


@dataclass(frozen=True, slots=True)
class Committed:
    """What retention looks at of one committed step."""

    step: int
    created_at: datetime
    metrics: Mapping[str, float | int | str | None]
    pinned: bool = False


def steps_to_keep(committed: Iterable[Committed], policy: Retention, *, now: datetime) -> Set[int]:
    """The steps that stay. Independent of order, and idempotent: what it keeps, it keeps again."""
    return why_kept(committed, policy, now=now).keys()


def why_kept(
    committed: Iterable[Committed], policy: Retention, *, now: datetime
) -> Mapping[int, tuple[str, ...]]:
    """The steps that stay, newest first, each with the rules that keep it."""
    newest_first = sorted(committed, key=lambda one: one.step, reverse=True)
    last = {one.step for one in newest_first[: policy.keep_last]}
    best = _best(newest_first, policy.keep_best)
    reasons = {}
    for one in newest_first:
        rules = {
            "newest": one is newest_first[0],
            "pinned": one.pinned,
            "keep_last": one.step in last,
            "keep_every": policy.keep_every is not None and one.step % policy.keep_every == 0,
            "keep_best": one.step in best,
            "keep_for_s": policy.keep_for_s is not None and _age_s(one, now) < policy.keep_for_s,
        }
        if kept := tuple(name for name, holds in rules.items() if holds):
            reasons[one.step] = kept
    return reasons


def _age_s(one: Committed, now: datetime) -> float:
    return (now - one.created_at).total_seconds()


def _best(newest_first: list[Committed], best: KeepBest | None) -> set[int]:
    """Ties go to the newer step; what is no finite number never competes."""
    if best is None:
        return set()
    sign = 1 if best.mode == "min" else -1
    scored = [
        (sign * value, -one.step)
        for one in newest_first
        if isinstance(value := one.metrics.get(best.metric), int)
        or (isinstance(value, float) and math.isfinite(value))
    ]
    return {-negative_step for _, negative_step in sorted(scored)[: best.n]}
