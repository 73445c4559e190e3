"""Which committed steps to keep: a pure function, apart from anything that deletes.

Kept are the newest, the pinned, the last ``keep_last``, every ``keep_every``-th, the best
``keep_best.count`` by a metric, and those younger than ``keep_for_s``. Only committed steps count.
"""

from collections.abc import Iterable, Set
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from uploader.settings import Strict


class KeepBest(Strict):
    """Keep the ``count`` steps whose ``metric`` is best; steps without it don't compete."""

    metric: str
    mode: Literal["min", "max"] = "min"
    count: Annotated[int, Field(ge=1)] = 1


class Retention(Strict):
    """A policy; ``keep_last`` counts the newest steps and is at least 1. None keeps all."""

    keep_last: Annotated[int, Field(ge=1)] | None = 3
    keep_every: Annotated[int, Field(ge=1)] | None = None
    keep_best: KeepBest | None = None
    keep_for_s: Annotated[float, Field(gt=0)] | None = None


@dataclass(frozen=True, slots=True)
class Committed:
    """What retention looks at of one committed step."""

    step: int
    created_at: datetime
    metrics: dict[str, float | int | str | None]
    pinned: bool = False


def steps_to_keep(committed: Iterable[Committed], policy: Retention, *, now: datetime) -> Set[int]:
    """The steps that stay. Independent of order, and idempotent: what it keeps, it keeps again."""
    newest_first = sorted(committed, key=lambda one: one.step, reverse=True)
    keep = {one.step for one in newest_first[: policy.keep_last]}
    keep |= {one.step for one in newest_first if one.pinned}
    if policy.keep_every is not None:
        keep |= {one.step for one in newest_first if one.step % policy.keep_every == 0}
    if policy.keep_for_s is not None:
        keep |= {
            one.step for one in newest_first if (now - one.created_at).total_seconds() < policy.keep_for_s
        }
    if policy.keep_best is not None:
        keep |= _best(newest_first, policy.keep_best)
    return keep


def _best(newest_first: list[Committed], best: KeepBest) -> set[int]:
    """Ties go to the newer step; NaN never competes."""
    sign = 1 if best.mode == "min" else -1
    scored = []
    for one in newest_first:
        value = one.metrics.get(best.metric)
        if isinstance(value, int | float) and value == value:
            scored.append((sign * value, -one.step))
    return {-negative_step for _, negative_step in sorted(scored)[: best.count]}
