"""The processes that train one model together, and what they agree on. One alone is that, too.

Two ways of talking. Decisions go as JSON through the store that ``torch.distributed`` began with: no tensor,
no pickle, no device, and each wait has a deadline that names who is late. A step's numbers go by collectives.
"""

import itertools
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from uploader.errors import RankLate

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

_talks = itertools.count(1)
"""Of this process: what one talk left in the store is no answer in the next."""

LAST_WORD_S = 30.0
TIMEOUT_S = 1800.0
"""How long others are waited for: as long as ``torch.distributed`` does."""

SHORTEST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.1
"""From one look for an answer to the next. The store could wait itself, but then no signal reaches Python."""

_HINT = "its own messages say why"


@dataclass
class Ranks:
    """This process's place among those of the run.

    Attributes:
        local_rank: which of this machine's devices is this rank's.
        store: through which they talk; None for one alone.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    store: "Store | None" = None
    timeout_s: float = TIMEOUT_S
    _said: int = field(default=0, repr=False)

    @classmethod
    def current(cls) -> Self:
        """As ``torch.distributed`` has been initialised; alone where it hasn't.

        Each call begins a talk of its own, so all ranks make as many calls, in the same order.
        """
        if not (dist.is_available() and dist.is_initialized()):
            return cls()
        store = dist.PrefixStore(  # type: ignore[attr-defined]
            f"wmtp/{next(_talks)}", dist.distributed_c10d._get_default_store()
        )
        return cls(dist.get_rank(), dist.get_world_size(), store=store)

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which decides, owns the run directory's lock and talks to people."""
        return self.rank == 0

    def from_first(self, value: Any = None, *, timeout_s: float | None = None) -> Any:
        """What rank 0 says, in JSON; what others give is not looked at.

        Raises:
            RankLate: rank 0 said nothing for so long.
        """
        if self.store is None:
            return value
        self._said += 1
        key = f"{self._said}"
        if self.is_first:
            self.store.set(key, json.dumps(value))
            return json.loads(json.dumps(value))
        return self._hear(key, 0, timeout_s)

    def last_word(self, value: Any = None, *, timeout_s: float | None = None) -> Any:
        """As ``from_first``, before processes end: rank 0 stays until all have heard it.

        Without torchrun the store is in rank 0's process, and ends with it.
        """
        said = self.from_first(value, timeout_s=timeout_s)
        self.acknowledge()
        return said

    def acknowledge(self) -> None:
        """The others have heard the last word; rank 0 sees that they have."""
        if self.store is None:
            return
        self._said += 1
        if not self.is_first:
            self.store.set(f"{self._said}/{self.rank}", "null")
            return
        with suppress(RankLate):  # one that is gone already hears nothing more
            for rank in range(1, self.world_size):
                self._hear(f"{self._said}/{rank}", rank, LAST_WORD_S)

    def from_all(self, value: Any, *, timeout_s: float | None = None) -> list[Any]:
        """What each rank says, in JSON, in the order of ranks. Everybody waits for everybody.

        Raises:
            RankLate: a rank said nothing for so long; all of the others raise this, and it names that one.
        """
        if self.store is None:
            return [value]
        self._said += 1
        key = f"{self._said}"
        self.store.set(f"{key}/{self.rank}", json.dumps(value))
        if not self.is_first:
            waits_s = self.timeout_s if timeout_s is None else timeout_s
            answer = self._hear(key, 0, waits_s + 10)
        else:
            answer = self._collect(key, timeout_s)
            self.store.set(key, json.dumps(answer))
        if "late" in answer:
            raise RankLate(answer["late"], doing="waiting", subject="the other ranks", hint=_HINT)
        return list(answer["said"])

    def _collect(self, key: str, timeout_s: float | None) -> dict[str, Any]:
        try:
            return {"said": [self._hear(f"{key}/{rank}", rank, timeout_s) for rank in range(self.world_size)]}
        except RankLate as error:
            return {"late": error.problem}

    def _hear(self, key: str, rank: int, timeout_s: float | None) -> Any:
        assert self.store is not None  # noqa: S101
        waits_s = self.timeout_s if timeout_s is None else timeout_s
        deadline_s, pause_s = time.monotonic() + waits_s, SHORTEST_PAUSE_S
        problem = f"rank {rank} said nothing for {waits_s:.0f} s"
        try:
            while time.monotonic() < deadline_s:
                if self.store.check([key]):
                    return json.loads(self.store.get(key))
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        except dist.DistNetworkError:
            problem = "the connection is lost"
        raise RankLate(problem, doing="waiting for", subject=f"rank {rank}", hint=_HINT)

    def sum(self, numbers: Tensor) -> Tensor:
        """The sum over all ranks, of the same shape on each; every rank gets the same bits."""
        if self.world_size == 1:
            return numbers
        total = numbers.clone()
        dist.all_reduce(total)
        return total

    def gather(self, part: Tensor, samples: int) -> Tensor:
        """The samples [B, …] of all ranks in their order, from this rank's part of them (see ``bounds``).

        Args:
            samples: B, over all ranks.
        """
        if self.world_size == 1:
            return part
        sizes = [end - start for start, end in cut(samples, self.world_size)]
        padded = part.new_zeros((max(sizes), *part.shape[1:]))
        padded[: len(part)] = part
        all_padded = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(all_padded, padded)
        return torch.cat([one[:size] for one, size in zip(all_padded, sizes, strict=True)])

    def part(self, whole: Tensor) -> Tensor:
        """This rank's samples of all, [B, …]: what it gave to ``gather``."""
        start, end = self.bounds(len(whole))
        return whole[start:end]

    def bounds(self, samples: int) -> tuple[int, int]:
        """Where this rank's samples begin and end among so many."""
        return cut(samples, self.world_size)[self.rank]


def cut(samples: int, parts: int) -> list[tuple[int, int]]:
    """Where each part of the samples begins and ends, in their order; sizes differ by one at most."""
    borders = [samples * part // parts for part in range(parts + 1)]
    return list(pairwise(borders))
