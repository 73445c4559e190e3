"""Ranks of a test: processes of their own that join as those of torchrun do, and what they do there.

They are forked off a server that has imported everything, so a test with them takes less than a second more.
"""

import multiprocessing as mp
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jobs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import start_processes

from uploader.errors import NotDurable, SettingsError
from uploader.layout import RunDirectory
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.checkpoint.uploader_process import Uploading
from wmtp.ranks import Ranks
from wmtp.settings import Flags, Resolved, load_settings
from wmtp.training.distributed import RankLost, as_long_as_rank_0, join, join_errors, rank_0_first
from wmtp.training.job import run_job
from wmtp.training.progress import Progress
from wmtp.training.setup import Setup, build
from wmtp.training.stopping import StopRequest
from wmtp.training.trackers import Trackers
from wmtp.training.tracking import Entry, Outcome
from wmtp.training.trainer import Position, Trainer

IMPORTED_ONCE = ["torch._dynamo", "torch._inductor", "torch.testing", "wmtp.training.job"]

Work = Callable[[Ranks], None]


def run(world_size: int, *works: Work) -> None:
    """Let each of so many ranks do all of this, one after the other; raises what any of them raised."""
    mp.get_context("forkserver").set_forkserver_preload(IMPORTED_ONCE)
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    start_processes(_one, (world_size, store.port, works), nprocs=world_size, start_method="forkserver")


def _one(rank: int, world_size: int, port: int, works: tuple[Work, ...]) -> None:
    os.environ |= {
        "RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
        "WORLD_SIZE": f"{world_size}", "LOCAL_WORLD_SIZE": f"{world_size}",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }  # fmt: skip
    torch.set_num_threads(1)
    with join(os.environ, "cpu") as ranks:
        for work in works:
            work(ranks)


def whole(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all weights, put together from the parts of all ranks."""
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return {name: (w.full_tensor() if isinstance(w, DTensor) else w).clone() for name, w in weights.items()}


@dataclass
class Saves:
    """Instead of a checkpointer: notes what is saved, is busy where it is told, and does what it is told.

    Attributes:
        busy_at: steps while which the last save is still being written.
        at_fence: what happens between a step's reduction and its end, by step.
    """

    path: Path
    busy_at: tuple[int, ...] = ()
    at_fence: dict[int, Callable[[], object]] = field(default_factory=dict)
    made: list[tuple[int, bool, bool]] = field(default_factory=list)
    step: int = 1
    skipped: int = 0
    saved: tuple[()] = ()

    def __post_init__(self) -> None:
        self.directory = RunDirectory(self.path)
        self.started = SimpleNamespace(step=0, run=SimpleNamespace(generation=1))

    @property
    def busy(self) -> bool:
        return self.step in self.busy_at

    def save(self, step: int, *, metrics: Any, force: bool = False, busy: bool | None = None) -> bool:
        self.made.append((step, force, bool(busy)))
        self.step = step + 1
        return True

    def fence(self) -> None:
        self.at_fence.get(self.step, lambda: None)()

    def wait(self) -> None:
        pass

    def news(self) -> Iterator[str]:
        return iter(())


class Lines:
    """A tracker that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def write(self, entries: Any) -> None:
        self.lines += [dict(entry.metrics) for entry in entries if isinstance(entry, Entry)]

    def close(self, outcome: Outcome) -> None:
        pass


@dataclass
class Run:
    """What came of some steps."""

    setup: Setup
    lines: list[dict[str, Any]]
    made: list[tuple[int, bool, bool]]
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]
    stop: StopRequest


def settings_of(directory: Path, *overrides: str, run_name: str = "run") -> Resolved:
    flags = Flags(run_name=run_name)
    exact = ["model.dropout=0", "train.max_steps=4", "data.batch_size=4"]
    return load_settings(None, "recipe.yaml", [*jobs.FIXED, *exact, *overrides], flags, {}, directory)


def train(
    directory: Path,
    overrides: tuple[str, ...],
    ranks: Ranks | None = None,
    *,
    change: Callable[[Setup], None] = lambda setup: None,
    **saves: Any,
) -> Run:
    """Run the loop among ``ranks``, or alone; nothing is written to disk."""
    settings = settings_of(directory, *overrides)
    setup = build(settings, ranks)
    change(setup)
    lines, made = Lines(), Saves(directory / "checkpoints/run", **saves)
    progress = Progress(setup.max_steps, quiet=True)
    told: Any = made
    with Trackers(lines, say=lambda line: None) as trackers:  # what it says is no matter here
        trainer = Trainer(settings, setup, Position(), told, trackers, progress)
        with StopRequest(alone=setup.ranks.world_size == 1) as stop:
            trainer.train(stop)
    averages = {} if setup.ema.model is None else whole(setup.ema.model)
    return Run(setup, lines.lines, made.made, whole(setup.model), averages, stop)


def close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def same_lines(one: list[dict[str, Any]], other: list[dict[str, Any]], rtol: float = 1e-6) -> None:
    assert [line.keys() for line in one] == [line.keys() for line in other]
    for here, there in zip(one, other, strict=True):
        for name in here:
            wide = [torch.tensor(line[name], dtype=torch.float64) for line in (here, there)]
            torch.testing.assert_close(*wide, rtol=rtol, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def like_one_process(
    ranks: Ranks, directory: Path, overrides: tuple[str, ...], atol: float = 1e-6, rtol: float = 1e-6
) -> None:
    """All ranks together do what one alone does, up to rounding."""
    several, one = train(directory, overrides, ranks), train(directory, overrides)
    assert len(one.lines) == 4
    same_lines(several.lines, one.lines, rtol)
    close(several.weights, one.weights, atol)
    close(several.averages, one.averages, atol)
    assert several.made == one.made
    sharded = [w for w in several.setup.model.parameters() if isinstance(w, DTensor)]
    assert len(sharded) == len(several.weights), "every weight is sharded"
    assert ranks.from_all(several.lines) == [several.lines] * ranks.world_size, "equal bit for bit on all"


def keep_the_same(ranks: Ranks, directory: Path, overrides: tuple[str, ...]) -> None:
    """Which targets are kept is decided over the whole step: the very same as by one process."""
    kept: list[Tensor] = []

    def watch(setup: Setup) -> None:
        objective: Any = setup.objective
        weigh = objective.weigh

        def noted(scores: Tensor, valid: Tensor) -> Tensor:
            kept.append(weigh(scores, valid))
            return kept[-1]

        objective.weigh = noted

    train(directory, overrides, ranks, change=watch)
    train(directory, overrides, change=watch)
    several, one = kept[:4], kept[4:]
    assert len(several) == len(one) == 4
    for here, there in zip(several, one, strict=True):
        assert torch.equal(here, there) and 0 < here.sum() < here.numel()


def stop_together(ranks: Ranks, directory: Path, at: int, ends: int) -> None:
    """A signal at one rank, after the reduction of the step ``at``, ends all after the step ``ends``."""
    asked = {at: lambda: os.kill(os.getpid(), signal.SIGTERM)} if ranks.rank == 1 else {}
    run = train(directory, (), ranks, at_fence=asked)
    assert run.stop.signal is signal.SIGTERM and run.stop.exit_code == 143
    assert len(run.lines) == ends
    assert [step for step, forced, _ in run.made if forced] == [ends]


def skip_together(ranks: Ranks, directory: Path) -> None:
    run = train(directory, (), ranks, busy_at=(2,) if ranks.rank == 1 else ())
    assert [busy for _, forced, busy in run.made if not forced] == [False, True, False, False]


def refuse_together(ranks: Ranks, directory: Path) -> None:
    """A loss that is not finite on one rank makes a step bad on all."""

    def poison(setup: Setup) -> None:
        objective: Any = setup.objective
        backward = objective.backward

        def poisoned(batches: Any, step: int) -> Any:
            measures = backward(batches, step)
            if step == 1 and ranks.rank == 1:
                measures["loss"] = measures["loss"] * float("nan")
            return measures

        objective.backward = poisoned

    run = train(directory, ("train.max_steps=2",), ranks, change=poison)
    assert run.lines[1]["bad_steps"] == 1 and run.lines[1]["loss"] != run.lines[1]["loss"]
    once = train(directory, ("train.max_steps=1", "optim.warmup_steps=0"), ranks)
    again = train(directory, ("train.max_steps=2", "optim.warmup_steps=0"), ranks, change=poison)
    assert once.lines[0]["lr"] == again.lines[0]["lr"]
    close(again.weights, once.weights, atol=0)


def measure_alike(ranks: Ranks, directory: Path) -> None:
    """Held-out batches of which some ranks have no sample; each average is over all of them."""
    overrides = ("optim.ema_decay=0.5", "data.validation_fraction=0.2", "train.validation.samples=5")
    several, one = build(settings_of(directory, *overrides), ranks), build(settings_of(directory, *overrides))
    assert len(one.held_out) > 5 == 4 + 1, "the last batch has one sample"
    found, expected = several.validation.measure(), one.validation.measure()
    same_lines([found], [expected], rtol=1e-6)
    assert ranks.from_all(found) == [found] * ranks.world_size


def accumulate_in_bfloat16(ranks: Ranks, directory: Path) -> None:
    overrides = ("devices.dtype=bfloat16", "devices.activation_checkpointing=true")
    several, one = train(directory, overrides, ranks), train(directory, overrides)
    exact = train(directory, (), ranks)
    same_lines(several.lines[:1], one.lines[:1], rtol=1e-2)
    same_lines(several.lines[:1], exact.lines[:1], rtol=2e-2)
    assert several.lines != exact.lines
    assert {weight.dtype for weight in several.weights.values()} == {torch.float32}


def recompute(ranks: Ranks, directory: Path) -> None:
    kept = train(directory, (), ranks)
    again = train(directory, ("devices.activation_checkpointing=true",), ranks)
    assert kept.lines == again.lines
    close(kept.weights, again.weights, atol=0)


def ema_begins_as_the_weights(ranks: Ranks, directory: Path) -> None:
    """Averages of sharded weights are sharded as those are."""
    setup = build(settings_of(directory, "optim.ema_decay=0.5"), ranks)
    weights = whole(setup.model)
    setup.ema.load_state_dict({"weights": {}})
    assert setup.ema.model is not None
    close(whole(setup.ema.model), weights, atol=0)


def hear_rank_0_first(ranks: Ranks, directory: Path) -> None:
    with rank_0_first(ranks):
        before = sorted(path.name for path in directory.glob("was-here-*"))
        (directory / f"was-here-{ranks.rank}").touch()
    assert (before == []) == ranks.is_first
    assert all(ranks.from_all(ranks.is_first or "was-here-0" in before))


def leave_with_rank_0(ranks: Ranks, directory: Path) -> None:
    """Its failure is told by rank 0; the others end with the same code, and silently."""
    kind = NotDurable if ranks.is_first else SystemExit
    try:
        with as_long_as_rank_0(ranks, 60):
            if ranks.is_first:
                raise NotDurable("the store is away")
    except kind as error:
        code = error.exit_code if isinstance(error, NotDurable) else error.code
        assert code == NotDurable.exit_code
    else:
        raise AssertionError("nothing was raised")
    with as_long_as_rank_0(ranks, 60):
        pass


def job(ranks: Ranks, directory: Path, name: str, overrides: tuple[str, ...]) -> None:
    """A whole job; what a rank says is kept in a file of its own."""
    settings = settings_of(directory, *overrides, run_name=name)
    with open(directory / f"{name}-{ranks.rank}.out", "w") as out, redirect_stdout(out):
        code = run_job(settings, Uploading.NONE, again="wmtp train", ranks=ranks)
    assert code == 0


def interrupted_job(ranks: Ranks, directory: Path, name: str) -> None:
    """A signal at rank 1: all leave with the code of the signal, and the step they stopped at is saved."""
    fence = Checkpointer.fence

    def asked(self: Checkpointer) -> None:
        fence(self)
        if ranks.rank == 1:
            Checkpointer.fence = fence  # type: ignore[method-assign]
            os.kill(os.getpid(), signal.SIGINT)

    Checkpointer.fence = asked  # type: ignore[method-assign]
    with open(directory / f"{name}-{ranks.rank}.out", "w") as out, redirect_stdout(out):
        settings = settings_of(directory, "train.max_steps=500", run_name=name)
        code = run_job(settings, Uploading.NONE, again="wmtp train", ranks=ranks)
    Checkpointer.fence = fence  # type: ignore[method-assign]
    assert code == 130


def fail_alone(ranks: Ranks) -> None:
    """The only rank with a mistake names itself."""
    if ranks.rank == 1:
        raise SettingsError("there is none", subject="data.train")
    ranks.sum(torch.ones(1))


def vanish(ranks: Ranks) -> None:
    """A rank is gone without a word while the others compute with it."""
    if ranks.rank == 1:
        os._exit(0)
    try:
        with join_errors(ranks):
            ranks.sum(torch.ones(1))
    except RankLost as error:
        assert "rank 0: another rank is gone (" in str(error) and "\n" not in str(error)
    else:
        raise AssertionError("nothing was raised")
    os._exit(0)


def compiled(ranks: Ranks, directory: Path) -> None:
    several = train(directory, ("devices.compile=true",), ranks)
    exact = train(directory, ())
    same_lines(several.lines, exact.lines, rtol=1e-4)
    close(several.weights, exact.weights, atol=1e-4)
