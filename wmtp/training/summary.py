"""What a run did, and what to try next."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from uploader.status import Status
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.training.tracking import Metric
from wmtp.training.trainer import Position


def summary(
    position: Position,
    began_step: int,
    checkpointer: Checkpointer,
    status: Status | None,
    held_out: Mapping[str, Metric],
) -> Iterator[str]:
    """Lines on loss, checkpoints and stall; for a run that was finished before, just that."""
    if position.step == began_step:
        yield f"the run is finished at step {position.step}: there is nothing left to train"
        return
    made = [saved for saved in checkpointer.saved if saved.error is None]
    stall_ms = sum(saved.stall_ms for saved in checkpointer.saved)
    yield ""
    yield f"finished     step {position.step}, loss {position.loss:.4f} (nats a target)"
    heads = held_out.get("held_out")
    if isinstance(heads, list):
        each = "/".join(f"{value:.3f}" for value in heads)
        yield f"held out     {each} nats a head, {held_out['bits_per_byte']:.3f} bits a byte"
    yield f"checkpoints  {len(made)} made, {checkpointer.skipped} skipped, stalled {stall_ms:.2f} ms in all"
    if status is not None:
        yield (
            f"store        {status.durable_total} made durable, {status.pruned_remote_total} pruned, "
            f"latest step_{status.newest_durable_step} in {status.destination}"
        )


def next_commands(again: str, position: Position, began_step: int, directory: Path) -> Iterator[str]:
    """The commands that go on from here."""
    program = again.split(" train ")[0]
    yield "try next"
    yield f"  {again} --max-steps {2 * position.step}"
    if position.step == began_step:
        yield f"  {again.replace(' --resume latest', ' --fresh')}"
    yield f"  {program} status {directory}"
