"""What the ranks tell each other in each step: their shares of its measures, and what each alone knows.

One reduction for all of it. What a rank knows alone, that its last save is still being written or that it was
asked to stop, every rank then acts upon at the same step.
"""

import signal
from dataclasses import dataclass

import torch

from wmtp.ranks import Ranks
from wmtp.training.objective import SHARES, Measures, Numbers

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BUSY = "ranks_busy"
STOPPING = tuple(f"ranks_stopped_by_{one.name}" for one in SIGNALS)
"""Names of measures that count ranks, for ``Known.taken_from``."""


@dataclass(frozen=True)
class Known:
    """What a rank knows, or any of them.

    Attributes:
        busy: a save is still being written.
        signals: numbers of the signals that asked to stop.
    """

    busy: bool = False
    signals: tuple[int, ...] = ()

    @classmethod
    def taken_from(cls, numbers: Numbers) -> "Known":
        """What any rank knows, taken out of a step's numbers."""
        stopping = [numbers.pop(name) for name in STOPPING]
        signals = tuple(int(one) for one, count in zip(SIGNALS, stopping, strict=True) if count)
        return cls(bool(numbers.pop(BUSY)), signals)

    def measures(self) -> Measures:
        """The same to be summed over ranks."""
        flags = (self.busy, *(one in self.signals for one in SIGNALS))
        return {name: torch.tensor(flag) for name, flag in zip((BUSY, *STOPPING), flags, strict=True)}


def over_ranks(measures: Measures, known: Known, ranks: Ranks) -> Measures:
    """The step's measures, and how many ranks know what, from what each rank has of them.

    Args:
        measures: of ``SHARES`` this rank's share; others are equal on all ranks.
    """
    device = measures["loss"].device
    own = {name: one for name, one in measures.items() if name in SHARES} | known.measures()
    flat = [one.to(device, torch.float64, non_blocking=True).reshape(-1) for one in own.values()]
    total = torch.split(ranks.sum(torch.cat(flat)), [len(one) for one in flat])
    return measures | {name: one.reshape(own[name].shape) for name, one in zip(own, total, strict=True)}
