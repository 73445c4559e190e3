"""One contender in a process of its own: blocks of steps with a save beside blocks without.

Each block with a save lasts until nothing of it goes on any more; the block after it has as many steps and no
save. What the save cost is the difference, so it counts whatever happens in the background, and a drift of
the machine counts little. Last comes a save that is not timed, for its memory to be watched from outside.
"""

import json
import os
import sys
import time
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.contenders import Contender, Context
from benchmarks.peers import CONTENDERS
from benchmarks.workload import Mode, Workload, build

WATCH = "watch memory"
"""Printed when the memory is to be watched."""

MOST_STEPS = 2000

WARM_UP_S_PER_GB = 3.0
"""Between the first step and the first save: much less than any run leaves, enough to prepare memory."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one window does.

    Attributes:
        steps: the least number of steps in a block.
        step_s: length of a step of the simulated accelerator.
        memory: end with a save whose memory is watched.
    """

    contender: str
    mode: Mode
    size_gb: float
    saves: int
    steps: int
    step_s: float
    directory: str
    sink_url: str
    server_url: str | None = None
    memory: bool = True


@dataclass
class Block:
    """Some steps, with a save in front or without.

    Attributes:
        began_s: when, on the clock of the window.
        steps_s: how long each step took; the first one contains the save.
        blocked_s: for how long the loop was in the contender's code.
        cpu_s: CPU seconds of the trainer and its descendants.
        times: where the training thread's time went, step by step.
    """

    began_s: float
    saves: bool
    steps_s: list[float]
    times: list[machine.ThreadTime] = field(default_factory=list)
    blocked_s: float = 0.0
    cpu_s: float = 0.0


class Loop:
    """The training loop of one window."""

    def __init__(self, workload: Workload, contender: Contender) -> None:
        self._workload, self._contender = workload, contender
        self._saved = 0
        self._began_s = time.perf_counter()

    def block(self, steps: int, *, save: bool) -> Block:
        """At least ``steps`` steps; with a save, until the contender is idle."""
        block = Block(time.perf_counter() - self._began_s, save, [])
        cpu_before_s = machine.cpu_s(os.getpid())
        while len(block.steps_s) < steps or (save and not self._contender.idle()):
            assert len(block.steps_s) < max(MOST_STEPS, steps), "the save does not end"
            self._step(block, save=save and not block.steps_s)
        block.cpu_s = machine.cpu_s(os.getpid()) - cpu_before_s
        self._contender.tidy()
        return block

    def run_for(self, least_s: float) -> None:
        """Steps without a save for a while."""
        until_s = time.perf_counter() + least_s
        while time.perf_counter() < until_s:
            self.block(1, save=False)

    def _step(self, block: Block, *, save: bool) -> None:
        before, began_s = machine.ThreadTime.now(), time.perf_counter()
        if save:
            self._saved += 1
            self._contender.save(self._saved)
            block.blocked_s += time.perf_counter() - began_s
        self._workload.forward_backward()
        fenced_s = time.perf_counter()
        self._contender.fence()
        block.blocked_s += time.perf_counter() - fenced_s
        self._workload.optimizer.step()
        self._workload.settle()
        block.steps_s.append(time.perf_counter() - began_s)
        block.times.append(machine.ThreadTime.now().since(before))


def run(order: Order) -> dict[str, Any]:
    """Do what the order says and return what was measured, in JSON."""
    directory = Path(order.directory)
    directory.mkdir(parents=True, exist_ok=True)
    workload = build(order.mode, order.size_gb, order.step_s)
    context = Context(directory, workload, order.sink_url, order.server_url)
    contender = CONTENDERS[order.contender](context)
    loop = Loop(workload, contender)
    loop.block(2, save=False)  # the optimizer gets its state
    contender.warm_up()
    loop.run_for(WARM_UP_S_PER_GB * order.size_gb)
    size_bytes = workload.size_bytes
    first = loop.block(order.steps, save=True)
    blocks = [loop.block(order.steps, save=False)]
    for _ in range(order.saves):
        blocks.append(loop.block(order.steps, save=True))
        blocks.append(loop.block(len(blocks[-1].steps_s), save=False))
    local_ms, copy_ms = contender.local_ms[1 : 1 + order.saves], contender.copy_ms[1 : 1 + order.saves]
    if order.memory:
        print(WATCH, flush=True)
        loop.block(order.steps, save=True)
    contender.close()
    return {
        "contender": order.contender,
        "size_bytes": size_bytes,
        "first": asdict(first),
        "blocks": [asdict(one) for one in blocks],
        "local_ms": local_ms,
        "copy_ms": copy_ms,
    }


def main() -> None:
    """``python -m benchmarks.window ORDER RESULT``: an order in JSON, a file to write."""
    warnings.filterwarnings("ignore")
    order = Order(**json.loads(sys.argv[1]))
    result = run(order)
    Path(sys.argv[2]).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # a process group of one may hang at exit, and the peers' helpers end with their parent


if __name__ == "__main__":
    main()
