"""The training loop: fetch, forward and backward, fence, step, save."""

import time
from dataclasses import dataclass
from typing import Any

from uploader.errors import DiskError
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.data.dataset import Batch
from wmtp.settings import Resolved
from wmtp.training.objective import Measures
from wmtp.training.optimizer import clip_gradients, learning_rate, set_learning_rate
from wmtp.training.setup import Setup
from wmtp.training.step import evaluate
from wmtp.training.stopping import StopRequest
from wmtp.training.tracking import Metric, MetricsLog, Progress

EVALUATED_SAMPLES = 256
MAIN = "main"
SHOWN = ("loss", "heads", "value_loss", "kept", "lr")
"""Metrics for the terminal, in this order; the others are in the file."""


@dataclass
class Position:
    """How far a run is: the part of the training state that is neither weights nor random numbers.

    Attributes:
        step: optimizer steps done.
        samples: samples consumed, over all ranks: the position in the data.
        loss: of the last step, a mean over targets, in nats.
    """

    step: int = 0
    samples: int = 0
    loss: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "samples": self.samples, "loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.samples, self.loss = state["step"], state["samples"], state["loss"]


class Trainer:
    """Trains until ``max_steps`` or until asked to stop."""

    def __init__(
        self,
        settings: Resolved,
        setup: Setup,
        position: Position,
        checkpointer: Checkpointer,
        metrics: MetricsLog,
        progress: Progress,
    ) -> None:
        self.settings, self.setup, self.position = settings, setup, position
        self.checkpointer, self.metrics, self.progress = checkpointer, metrics, progress
        self._told, self._metrics_error = 0, ""
        self._logged_s, self._logged_step = time.perf_counter(), position.step

    def train(self, stop: StopRequest) -> None:
        """Run the loop, and save the last step.

        Raises:
            WmtpError: a snapshot failed.
        """
        position, setup = self.position, self.setup
        setup.model.train()
        while position.step < setup.max_steps and stop.signal is None:
            measures = setup.objective.backward(self._fetch(), position.step)
            measures |= self._clip()
            self._set_learning_rate()
            self.checkpointer.fence()  # what a running snapshot still copies is about to change
            for optimizer in setup.optimizers.values():
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            position.step += 1
            position.samples += setup.batch_size
            position.loss = float(measures["loss"])
            self._log(measures)
            self._save()
        if position.step and (self.settings.save_final or stop.signal is not None):
            self._save(force=True)
        self.checkpointer.wait()
        self.tell()

    def _fetch(self) -> list[Batch]:
        """The step's micro-batches."""
        size = self.settings.recipe.data.batch_size
        starts = range(self.position.samples, self.position.samples + self.setup.batch_size, size)
        return [self.setup.train.batch(start, size).to(self.setup.device) for start in starts]

    def _clip(self) -> Measures:
        """Clip what each optimizer trains, apart from the others; the norms before."""
        norms = {}
        for name, optimizer in self.setup.optimizers.items():
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            key = "grad_norm" if name == MAIN else f"{name}_grad_norm"
            norms[key] = clip_gradients(weights, self.settings.recipe.optim.clip_norm)
        return norms

    def _set_learning_rate(self) -> None:
        """Of the model: a function of the steps it was trained for. What else is trained has a fixed rate."""
        optim, first_step = self.settings.recipe.optim, self.setup.objective.first_step
        done, max_steps = self.position.step - first_step, self.setup.max_steps - first_step
        rate = 0.0
        if done >= 0:
            rate = learning_rate(
                done,
                peak=optim.learning_rate,
                warmup_steps=optim.warmup_of(max_steps),
                max_steps=max_steps,
                floor_ratio=optim.min_lr_ratio,
            )
        set_learning_rate(self.setup.optimizers[MAIN], rate)

    def _save(self, *, force: bool = False) -> None:
        step, skipped = self.position.step, self.checkpointer.skipped
        self.checkpointer.save(step, metrics={"loss": self.position.loss}, force=force)
        if self.checkpointer.skipped > skipped:
            self.progress.note(f"step_{step}  skipped: the last save is still being written")

    def _log(self, measures: Measures) -> None:
        """One line of metrics a step; one on the terminal every ``log_interval`` steps."""
        step = self.position.step
        metrics: dict[str, Metric] = {name: value.tolist() for name, value in measures.items()}
        metrics["lr"] = self.setup.optimizers[MAIN].param_groups[0]["lr"]
        self._write_metrics(step, metrics)
        self.progress.advance(step)
        if step % self.settings.config.log_interval == 0 or step == self.setup.max_steps:
            now_s = time.perf_counter()
            per_s = (step - self._logged_step) / max(now_s - self._logged_s, 1e-9)
            self._logged_s, self._logged_step = now_s, step
            shown = {name: metrics[name] for name in SHOWN if name in metrics}
            self.progress.step(step, {**shown, "steps/s": per_s})
        self.tell()

    def _write_metrics(self, step: int, metrics: dict[str, Metric]) -> None:
        """A disk that is full must not end a training run: it is told once, and tried again each step."""
        try:
            self.metrics.log(step, metrics)
            self._metrics_error = ""
        except DiskError as error:
            if str(error) != self._metrics_error:
                self.progress.note(str(error))
            self._metrics_error = str(error)

    def tell(self) -> None:
        """A line for each checkpoint that came further on its way since the last call."""
        while self._told < len(self.checkpointer.saved):
            saved = self.checkpointer.saved[self._told]
            if saved.error is not None:
                self.progress.note(f"step_{saved.step}  not saved: {saved.error}")
            elif saved.local_ms is not None and saved.copy_ms is not None:
                megabytes = saved.size_bytes / 1e6
                self.progress.note(
                    f"step_{saved.step}  local    {megabytes:.1f} MB in {saved.local_ms:.0f} ms, "
                    f"copied in {saved.copy_ms:.1f} ms, step stalled {saved.stall_ms:.2f} ms"
                )
            else:
                break
            if saved.stale:
                self.progress.note(
                    f"step_{saved.step}  WARNING: the weights are those of the save before: nothing trains, "
                    "or the checkpointer holds another model"
                )
            self._told += 1
        for line in self.checkpointer.news():
            self.progress.note(line)

    def evaluate(self) -> dict[str, Metric]:
        """Loss of each head and bits per byte on held-out data; empty where none is held out."""
        if not len(self.setup.held_out):
            return {}
        batches = self.setup.held_out.in_order(
            self.settings.recipe.data.batch_size, max_samples=EVALUATED_SAMPLES
        )
        result = evaluate(
            self.setup.model,
            (batch.to(self.setup.device) for batch in batches),
            bytes_per_token=self.setup.bytes_per_token,
            autocast_dtype=self.setup.autocast_dtype,
        )
        return {"held_out": list(result.cross_entropies), "bits_per_byte": result.bits_per_byte}
