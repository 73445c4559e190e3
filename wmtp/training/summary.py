"""What a run did, and what to try next."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from uploader.status import Status
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.settings.validation import PATIENCE
from wmtp.training.setup import Setup
from wmtp.training.tracking import Metric
from wmtp.training.trainer import Position
from wmtp.training.validation import EMA


def summary(
    position: Position,
    began_step: int,
    checkpointer: Checkpointer,
    status: Status | None,
    held_out: Mapping[str, Metric],
    setup: Setup,
) -> Iterator[str]:
    """Lines on loss, checkpoints and stall; for a run that was finished before, just that."""
    stopped, bad = setup.early_stopping.reason, setup.guard.total
    if position.step == began_step:
        why = "" if stopped is None else f", for {stopped}"
        yield f"the run is finished at step {position.step}{why}: there is nothing left to train"
        return
    made = [saved for saved in checkpointer.saved if saved.error is None]
    stall_ms = sum(saved.stall_ms for saved in checkpointer.saved)
    yield ""
    loss = "none that is finite" if position.loss is None else f"{position.loss:.4f} (nats a target)"
    yield f"finished     step {position.step}, loss {loss}"
    if stopped:
        yield f"stopped      early: {stopped}"
    if bad:
        yield f"bad steps    {bad}, whose loss or gradients were not finite: they changed nothing"
    yield from _measured(held_out)
    yield f"checkpoints  {len(made)} made, {checkpointer.skipped} skipped, stalled {stall_ms:.2f} ms in all"
    if status is not None:
        yield (
            f"store        {status.durable_total} made durable, {status.pruned_remote_total} pruned, "
            f"latest step_{status.newest_durable_step} in {status.destination}"
        )


def _measured(held_out: Mapping[str, Metric]) -> Iterator[str]:
    """What held-out text says of the weights, and of their averages where there are any."""
    for name, prefix in (("held out", ""), ("averaged", EMA)):
        heads = held_out.get(f"{prefix}held_out")
        if isinstance(heads, list):
            each = "/".join(f"{value:.3f}" for value in heads)
            bits = held_out[f"{prefix}bits_per_byte"]
            yield f"{name}     {each} nats a head, {bits:.3f} bits a byte"


def next_commands(
    again: str, position: Position, began_step: int, directory: Path, setup: Setup
) -> Iterator[str]:
    """The commands that go on from here."""
    program = again.split(" train ")[0].split(" -m ")[-1]  # torchrun starts trainers, no other command
    steps = f" --max-steps {2 * position.step}" if position.step >= setup.max_steps else ""
    if setup.early_stopping.reason is not None:
        steps += f" --set {PATIENCE}={2 * setup.early_stopping.best.waited}"
    yield "try next"
    yield f"  {again}{steps}"
    if position.step == began_step:
        yield f"  {again.replace(' --resume latest', ' --fresh')}"
    yield f"  {program} status {directory}"
