"""Tokens a second of our trainer, beside a plain loop: ``python -m benchmarks.training.tokens``.

One head, the same text, batch and threads. ``wmtp`` is the whole loop of ``wmtp train``: data in its order,
weights of targets, clipping, schedule, fence, and a line of metrics a step; ``wmtp, saving`` makes a
checkpoint in each block as well. ``plain loop`` is nanoGPT's loop with the same model; ``nanogpt`` has
GPT-2's layers, too, of as many weights: what norms, gates and rotary embedding cost lies between these two.

Contenders take turns in blocks of steps, each round in another order, and each block is compared with those
of its own round, so that what the machine does beside hits all alike. On a machine that does much beside,
seconds of the processor (all threads, the checkpoint's too) tell more than those of the clock.
"""

import argparse
import contextlib
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import machine
from benchmarks.report import markdown
from benchmarks.training import nanogpt
from benchmarks.turns import in_turn
from wmtp.checkpoint.checkpointer import Checkpointer, Options
from wmtp.checkpoint.uploader_process import Uploading
from wmtp.settings import Flags, Resolved, load_settings
from wmtp.training.progress import Progress
from wmtp.training.setup import Setup, build
from wmtp.training.stopping import StopRequest
from wmtp.training.trackers import Trackers
from wmtp.training.tracking import MetricsLog
from wmtp.training.trainer import Position, Trainer

HERE = Path("benchmarks/training")
NANOGPT, LOOP, OURS, SAVING = "nanogpt", "plain loop", "wmtp", "wmtp, saving"
ENOUGH = 0.9
"""The least share of the plain loop's tokens a second of the processor."""

Train = Callable[[int], None]
"""Trains for so many steps more."""


@dataclass(frozen=True)
class Spent:
    """What a block of steps took, by the clock and of the processor."""

    clock_s: float
    cpu_s: float


Round = Mapping[str, Spent]
"""What each contender's block took."""


@dataclass(frozen=True)
class Size:
    """A model and a batch.

    Attributes:
        overrides: of the recipe.
        steps: of a block.
    """

    name: str
    overrides: tuple[str, ...]
    steps: int


SIZES = (
    Size("the recipe's", (), 40),
    Size(
        "10 × as wide",
        (
            "model.hidden_size=1280", "model.intermediate_size=3840", "model.attention_heads=20",
            "model.kv_heads=10", "data.batch_size=2",
        ),
        2,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What one contender did, over all rounds.

    Attributes:
        of_loop: its tokens a second as a share of the plain loop's in the same round, the median; ``lowest``
            and ``highest`` of all rounds.
        of_nanogpt: the same beside nanoGPT.
        of_loop_cpu, of_nanogpt_cpu: the same by seconds of the processor.
    """

    name: str
    tokens_per_s: float
    of_loop: float
    lowest: float
    highest: float
    of_nanogpt: float
    of_loop_cpu: float
    of_nanogpt_cpu: float


def rows(rounds: Sequence[Round], tokens: int) -> list[Row]:
    """One row a contender.

    Args:
        tokens: of a block.
    """
    return [_row(name, rounds, tokens) for name in rounds[0]]


def _row(name: str, rounds: Sequence[Round], tokens: int) -> Row:
    def shares(other: str) -> list[float]:
        return [spent[other].clock_s / spent[name].clock_s for spent in rounds]

    def cpu_share(other: str) -> float:
        return statistics.median(spent[other].cpu_s / spent[name].cpu_s for spent in rounds)

    return Row(
        name=name,
        tokens_per_s=statistics.median(tokens / spent[name].clock_s for spent in rounds),
        of_loop=statistics.median(shares(LOOP)),
        lowest=min(shares(LOOP)),
        highest=max(shares(LOOP)),
        of_nanogpt=statistics.median(shares(NANOGPT)),
        of_loop_cpu=cpu_share(LOOP),
        of_nanogpt_cpu=cpu_share(NANOGPT),
    )


def table(size: str, found: Sequence[Row]) -> str:
    """The rows of one size, in Markdown."""
    cells = [
        [
            size, "tokens a second", "of the plain loop's", "lowest", "highest", "of nanogpt's",
            "by CPU s", "by CPU s of nanogpt's",
        ]
    ]  # fmt: skip
    for row in found:
        shares = (row.of_loop, row.lowest, row.highest, row.of_nanogpt, row.of_loop_cpu, row.of_nanogpt_cpu)
        cells.append([row.name, f"{row.tokens_per_s:,.0f}", *(f"{share:.2f}" for share in shares)])
    return markdown(cells)


def too_slow(found: Sequence[Row]) -> list[str]:
    """Those of ours that are not within a tenth of the plain loop, by seconds of the processor."""
    return [row.name for row in found if row.name in (OURS, SAVING) and row.of_loop_cpu < ENOUGH]


def measure(size: Size, rounds: int, recipe: Path | None, more: Sequence[str] = ()) -> tuple[list[Row], str]:
    """Rows of one size, and a line on what was trained."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        fixed = ("model.heads=1", "paths.checkpoints.save_final=false", *size.overrides, *more)
        settings = load_settings(None, recipe, fixed, Flags(), {}, Path.cwd())
        setup = build(settings)
        shape = setup.batch_size, settings.recipe.data.sequence_length
        gpt = _gpt(setup, shape[1])
        contenders = {
            NANOGPT: nanogpt.loop(gpt, gpt, _text(setup), shape),
            LOOP: nanogpt.loop(
                setup.model, lambda ids: setup.model.head(0, setup.model.trunk(ids)), _text(setup), shape
            ),
            OURS: _ours(settings, Path(scratch, "ours"), None, stack),
            SAVING: _ours(settings, Path(scratch, "saving"), size.steps, stack),
        }
        for train in contenders.values():
            train(max(1, size.steps // 2))  # so that each save comes in the middle of a block
        spent = []
        for number in range(rounds):
            spent.append(_round(contenders, number, size.steps))
            for saved in Path(scratch).glob("*/step_*"):
                shutil.rmtree(saved)
    parameters = (setup.model.parameter_count(), sum(weight.numel() for weight in gpt.parameters()))
    about = f"batches of {shape[0]} × {shape[1]} tokens, {rounds} rounds of {size.steps} steps; "
    about += "{:.2f} M parameters, nanogpt {:.2f} M".format(*(count / 1e6 for count in parameters))
    return rows(spent, size.steps * shape[0] * shape[1]), about


def _round(contenders: Mapping[str, Train], number: int, steps: int) -> Round:
    spent = {}
    for name in in_turn(list(contenders), number):
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        contenders[name](steps)
        spent[name] = Spent(time.perf_counter() - began_s, time.process_time() - began_cpu_s)
    return {name: spent[name] for name in contenders}


def _gpt(setup: Setup, length: int) -> nanogpt.GPT:
    config = setup.model.config
    return nanogpt.GPT(
        config.vocab_size, length, config.hidden_size, config.trunk_layers + 1, config.attention_heads
    )


def _text(setup: Setup) -> "nanogpt.npt.NDArray[nanogpt.np.integer]":
    return setup.train.packed.array[setup.train.first_token : setup.train.end_token]


def _ours(settings: Resolved, directory: Path, every: int | None, stack: contextlib.ExitStack) -> Train:
    """The trainer of ``wmtp train``; it saves at each multiple of ``every`` steps, or never."""
    setup, position = build(settings), Position()
    checkpointer = stack.enter_context(
        Checkpointer(
            directory,
            model=setup.model,
            optimizer=setup.optimizers,
            extra={"position": position, **setup.extra},
            every=every or sys.maxsize,
            options=Options(uploading=Uploading.NONE, say=lambda line: None),
        )
    )
    checkpointer.restore(None)
    log = MetricsLog(directory / "metrics.jsonl", resume_step=0)
    trackers = stack.enter_context(Trackers(log, say=lambda line: None))
    progress = stack.enter_context(
        Progress(setup.max_steps, every=settings.config.log_interval, stream=io.StringIO())
    )
    trainer = Trainer(settings, setup, position, checkpointer, trackers, progress)

    def train(steps: int) -> None:
        setup.max_steps = position.step + steps
        trainer.train(StopRequest())

    return train


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--recipe", type=Path, default=Path("configs/recipe.yaml"))
    parser.add_argument("--into", type=Path, default=HERE, help="where tokens.md goes")
    options = parser.parse_args()
    parts, slow = [f"```\n{machine.headline(machine.describe())}\n```"], []
    for size in SIZES:
        found, about = measure(size, options.rounds, options.recipe)
        parts += [about, table(size.name, found)]
        slow += [f"{size.name}: {name}" for name in too_slow(found)]
        print("\n\n".join(parts[-2:]), flush=True)
    parts.append(f"less than {ENOUGH} of the plain loop's by CPU s: {', '.join(slow) or 'none'}")
    options.into.mkdir(parents=True, exist_ok=True)
    (options.into / "tokens.md").write_text("\n\n".join(parts) + "\n")
    print(parts[-1])
    return 1 if slow else 0


if __name__ == "__main__":
    sys.exit(main())
