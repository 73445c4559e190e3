"""What trainers write, what retention keeps, and what a manifest says: in a few lines of our own."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Key: TypeAlias = tuple[int, int]
"""A step and the generation that wrote it."""

NAMES = ("model-rank00000-0001.safetensors", "optim-rank00000-0001.safetensors", "state-rank00000.json")


def content(key: Key, name: str) -> bytes:
    """What a file of a step holds: other bytes for each; the first file has parts, the second has none."""
    text = f"{name} of step {key[0]} of generation {key[1]}\n".encode()
    return text * (1 + (key[0] // 10 + key[1]) % 6) if name == NAMES[0] else text[: 40 + key[0] % 20]


def metrics(step: int) -> dict[str, float]:
    """What a step is judged by."""
    return {"loss": float(step * 7 % 30)}


@dataclass(frozen=True)
class Keeping:
    """A retention policy, and what it keeps, in a few lines of our own."""

    last: int
    every: int | None
    best: bool

    def keep(self, keys: Iterable[Key]) -> set[Key]:
        newest_first = sorted(keys, reverse=True)
        kept = set(newest_first[: self.last])
        kept |= {key for key in newest_first if self.every and key[0] % self.every == 0}
        if self.best and newest_first:
            kept.add(min(newest_first, key=lambda key: (metrics(key[0])["loss"], -key[0])))
        return kept


@dataclass(frozen=True)
class Index:
    """A manifest as JSON tells it: the commit record's key of each step, by its state."""

    generation: int = 0
    live: Mapping[Key, str] = field(default_factory=dict)
    superseded: Mapping[Key, str] = field(default_factory=dict)
    deleting: Mapping[Key, str] = field(default_factory=dict)
    superseded_by: Mapping[Key, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, data: bytes) -> "Index":
        read = json.loads(data)
        states = {
            state: {(one["step"], one["generation"]): one["record"] for one in read[state].values()}
            for state in ("live", "superseded", "deleting")
        }
        by = {(one["step"], one["generation"]): one["superseded_by"] for one in read["superseded"].values()}
        return cls(read["generation"], superseded_by=by, **states)

    @property
    def newest(self) -> int:
        return max((step for step, _ in self.live), default=-1)
