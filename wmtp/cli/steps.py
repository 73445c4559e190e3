"""One step of a run as the disk and the manifest together tell of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from uploader import layout
from uploader.generation import Claim
from uploader.manifest import Entry, Manifest
from uploader.record import Metrics, NodeRecord
from uploader.watch import LocalStep


@dataclass(frozen=True)
class Seen:
    """A checkpoint of another trainer on this disk, which has no record of ours.

    Attributes:
        path: a file or a directory.
    """

    step: int
    path: Path
    size_bytes: int
    created_at: datetime
    metrics: Metrics


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        generation: None where the only copy has a record that can't be read.
        local: the copy on this disk.
        entry: its entry in the manifest.
        live: whether it leads to now.
        pruning: its objects in the store may be gone already.
        damaged: what is wrong with the copy on this disk, as far as a look at its files' sizes tells.
        seen: the copy on this disk, where another trainer wrote it.
    """

    step: int
    generation: int | None
    local: LocalStep | None = None
    entry: Entry | None = None
    live: bool = True
    pruning: bool = False
    damaged: str | None = None
    seen: Seen | None = None

    @property
    def path(self) -> Path | None:
        """Where the copy on this disk is."""
        return self.local.path if self.local else self.seen.path if self.seen else None

    @property
    def pinned(self) -> bool:
        return self.durable and self.entry is not None and self.entry.pinned

    @property
    def name(self) -> str:
        return layout.step_name(self.step) if self.live else self.full_name

    @property
    def full_name(self) -> str:
        return layout.step_name(self.step) + ("" if self.generation is None else f"@g{self.generation}")

    @property
    def durable(self) -> bool:
        return self.entry is not None and not self.pruning

    @property
    def intact(self) -> bool:
        return self.durable or (self.path is not None and self.damaged is None)

    @property
    def states(self) -> list[str]:
        states = {
            "local": self.path is not None and self.damaged is None,
            "corrupt": self.damaged is not None,
            "durable": self.durable,
            "pinned": self.pinned,
            "superseded": not self.live and not self.pruning,
            "pruning": self.pruning,
        }
        return [name for name, holds in states.items() if holds]

    @property
    def source(self) -> Entry | NodeRecord | Seen | None:
        """What tells size, time and metrics."""
        return self.entry or (self.local.record if self.local else self.seen)

    @property
    def created_at(self) -> datetime | None:
        return self.source.created_at if self.source else None

    @property
    def size_bytes(self) -> int | None:
        return self.source.size_bytes if self.source else None

    @property
    def metrics(self) -> Metrics:
        return self.source.metrics if self.source else {}

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "step": self.step,
            "generation": self.generation,
            "states": self.states,
            "size_bytes": self.size_bytes,
            "created_at": self.created_at.isoformat() if self.created_at else None,
            "metrics": self.metrics,
        }


def merged(
    index: Manifest, local: Iterable[LocalStep], damaged: Mapping[str, str], claim: Claim
) -> list[Step]:
    """The steps of the manifest and of the disk, one for each step of each generation, newest first. Pure.

    Args:
        damaged: what is wrong on this disk, by ``step_N@gG``; by ``step_N`` if its record can't be read.
        claim: who decides whether a step that the manifest does not list is live.
    """
    here = {step.name: step for step in local}
    entries = [*index.live.values(), *index.superseded.values(), *index.deleting.values()]
    listed = {entry.name: entry for entry in entries}
    live = {entry.name for entry in index.live.values()}
    live |= {
        one.name
        for one in here.values()
        if one.name not in listed and claim.is_live(one.step, one.generation)
    }
    steps = []
    for name, one in (listed | here).items():
        unread = damaged.get(layout.step_name(one.step)) if name in live else None
        steps.append(
            Step(
                step=one.step,
                generation=one.generation,
                local=here.get(name),
                entry=listed.get(name),
                live=name in live,
                pruning=name in index.deleting,
                damaged=damaged.get(name, unread),
            )
        )
    known = {step.step for step in steps if step.live}
    for name, problem in damaged.items():
        number = layout.parse_step(name)
        if number is not None and number not in known:
            steps.append(Step(number, None, damaged=problem))
    return sorted(steps, key=lambda step: (step.step, step.generation or 0), reverse=True)


def with_seen(steps: Iterable[Step], seen: Iterable[Seen]) -> list[Step]:
    """The steps with what another trainer's checkpoints add, newest first. Pure.

    A checkpoint is the copy of the live step that has its number, if there is one.
    """
    by_step = {one.step: one for one in seen}
    found = [
        replace(step, seen=by_step.pop(step.step))
        if step.live and step.local is None and step.step in by_step
        else step
        for step in steps
    ]
    found += [Step(one.step, None, seen=one) for one in by_step.values()]
    return sorted(found, key=lambda step: (step.step, step.generation or 0), reverse=True)
