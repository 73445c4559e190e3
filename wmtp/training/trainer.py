"""The training loop: fetch, forward and backward, fence, step, save."""

from dataclasses import dataclass
from typing import Any

from uploader import layout
from uploader.errors import WmtpError
from uploader.record import Metrics
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.data.dataset import Batch
from wmtp.ranks import cut
from wmtp.settings import Resolved
from wmtp.training.agreement import Known, over_ranks
from wmtp.training.checkpoint_log import CheckpointLog
from wmtp.training.guard import not_finite
from wmtp.training.objective import Measures, Numbers, on_host
from wmtp.training.optimizer import clip_gradients, learning_rate, set_learning_rate
from wmtp.training.progress import Progress
from wmtp.training.setup import Setup
from wmtp.training.stopping import StopRequest
from wmtp.training.trackers import Trackers
from wmtp.training.tracking import Metric
from wmtp.training.validation import as_numbers

MAIN = "main"
SHOWN = ("loss", "heads", "value_loss", "kept", "lr")
"""Metrics for the terminal, in this order; the others are in the file."""
HELD_OUT_SHOWN = (("held_out", "bits_per_byte"), ("ema_held_out", "ema_bits_per_byte"))
"""Those of a validation, each group on a line of its own."""


@dataclass
class Position:
    """How far a run is: the part of the training state that is neither weights nor random numbers.

    Attributes:
        step: optimizer steps done.
        samples: samples consumed, over all ranks: the position in the data.
        loss: of the last good step, a mean over targets, in nats.
    """

    step: int = 0
    samples: int = 0
    loss: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "samples": self.samples, "loss": self.loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step, self.samples, self.loss = state["step"], state["samples"], state["loss"]


class Trainer:
    """Trains until ``max_steps``, until nothing gets better, or until asked to stop."""

    def __init__(
        self,
        settings: Resolved,
        setup: Setup,
        position: Position,
        checkpointer: Checkpointer,
        trackers: Trackers,
        progress: Progress,
    ) -> None:
        self.settings, self.setup, self.position = settings, setup, position
        self.checkpointer, self.trackers, self.progress = checkpointer, trackers, progress
        self._checkpoints = CheckpointLog(checkpointer, settings.location, trackers, progress)
        self._validated: tuple[int, dict[str, Metric]] = 0, {}
        self._others_busy = False

    def train(self, stop: StopRequest) -> None:
        """Run the loop, and save the last step.

        Raises:
            WmtpError: a snapshot failed, or loss or gradients were not finite for too many steps in a row.
        """
        position, setup = self.position, self.setup
        setup.model.train()
        while position.step < setup.max_steps and self.stopped_early is None and stop.signal is None:
            measures = setup.objective.backward(self._fetch(), position.step)
            numbers = self._agree(measures, stop)
            self._set_learning_rate()
            self.checkpointer.fence()  # what a running snapshot still copies is about to change
            if setup.guard.admits(numbers):
                self._update(numbers)
            for optimizer in setup.optimizers.values():
                optimizer.zero_grad(set_to_none=True)
            position.step += 1
            position.samples += setup.batch_size
            self._log({**numbers, **self._validate()})
            self._refuse_bad(numbers)
            self._save()
        self._agree_to_stop(stop)
        early = self.stopped_early is not None
        if position.step and (self.settings.save_final or early or stop.signal is not None):
            self._save(force=True)
        self.checkpointer.wait()
        self.tell()

    @property
    def stopped_early(self) -> str | None:
        """Why there are no more steps, although there could be; None where that isn't so."""
        return self.setup.early_stopping.reason

    def _fetch(self) -> list[Batch]:
        """This rank's micro-batches of the step."""
        setup, accumulation = self.setup, self.settings.recipe.data.gradient_accumulation
        first, end = setup.ranks.bounds(setup.batch_size)
        first_position = self.position.samples + first
        return [
            setup.train.batch(first_position + start, stop - start).to(setup.device)
            for start, stop in cut(end - first, accumulation)
        ]

    def _agree(self, measures: Measures, stop: StopRequest) -> Numbers:
        """The step's numbers, equal on all ranks, and with them who is busy and who was asked to stop.

        Here the host waits for a device, once a step: the decisions hang on the numbers.
        """
        ranks = self.setup.ranks
        if ranks.world_size == 1:
            return on_host(measures | self._clip())
        own = Known(self.checkpointer.busy, () if stop.noted is None else (stop.noted,))
        numbers = on_host(over_ranks(measures, own, ranks) | self._clip())
        known = Known.taken_from(numbers)
        self._others_busy = known.busy
        stop.agree((0, *known.signals))
        return numbers

    def _agree_to_stop(self, stop: StopRequest) -> None:
        """After the last step nothing rides on a reduction: what came since the last one is said in words."""
        ranks = self.setup.ranks
        if ranks.world_size > 1 and stop.signal is None:
            stop.agree(ranks.from_all(stop.noted or 0))

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

    def _update(self, numbers: Numbers) -> None:
        """Let the gradients change what they are of; behind the fence."""
        for optimizer in self.setup.optimizers.values():
            optimizer.step()
        self.setup.ema.update()
        self.position.loss = as_numbers(numbers)["loss"]

    def _refuse_bad(self, numbers: Numbers) -> None:
        """Tell of a step that changed nothing, and end the run at the last of too many.

        Raises:
            WmtpError: names the step, what was not finite, and where to go on from. That step is not saved.
        """
        guard, step = self.setup.guard, self.position.step
        if not guard.in_a_row:
            return
        what = " and ".join(f"{name} is {value}" for name, value in not_finite(numbers).items())
        if not guard.gives_up:
            in_a_row = f"{guard.in_a_row} in a row, {guard.most} end the run"
            self.progress.note(f"step {step}  WARNING: {what}: its gradients are thrown away ({in_a_row})")
            return
        raise WmtpError(
            f"{what}, and optim.max_bad_steps is {guard.most}",
            doing="training",
            subject=f"step {step}",
            hint=f"{self._last_good()}; lower optim.learning_rate or look at the data, and resume",
        )

    def _last_good(self) -> str:
        """The newest checkpoint; of a bad step there is none."""
        self.checkpointer.wait()
        self.tell()
        started = self.checkpointer.started
        steps = [saved.step for saved in self.checkpointer.saved if saved.error is None]
        step = steps[-1] if steps else started.step if started is not None else 0
        return f"the last good checkpoint is {layout.step_name(step)}" if step else "no step was saved yet"

    def _validate(self) -> dict[str, Metric]:
        """What held-out text says of the model, where that is due. It is no part of a step's time."""
        validation, step = self.setup.validation, self.position.step
        if not validation.is_due(step):
            return {}
        with self.progress.paused():
            found = validation.measure()
        self._validated = step, found
        self.setup.early_stopping.observe(as_numbers(found), step)
        return found

    def evaluate(self) -> dict[str, Metric]:
        """What held-out text says of the model now; empty where none is held out."""
        step, found = self._validated
        return found if step == self.position.step else self.setup.validation.measure()

    def _save(self, *, force: bool = False) -> None:
        """Save the step if it is due. A bad one only where it is the last: it would push a good one out."""
        step = self.position.step
        if self.setup.guard.in_a_row and not force:
            if step % self.settings.save_interval == 0:
                self.progress.note(f"step_{step}  put off: it is a bad step, and the weights may be why")
            return
        validated, found = self._validated
        measured = as_numbers(found) if validated == step else {}
        metrics: Metrics = {"loss": self.position.loss, **measured}
        self.checkpointer.save(step, metrics=metrics, force=force, busy=self._others_busy)
        self.tell()

    def _log(self, metrics: dict[str, Metric]) -> None:
        """One line of metrics a step; the terminal is told less."""
        step = self.position.step
        metrics["lr"] = self.setup.optimizers[MAIN].param_groups[0]["lr"]
        if self.setup.guard.total:
            metrics["bad_steps"] = self.setup.guard.total
        self.trackers.log(step, metrics)
        self.progress.step(step, {name: metrics[name] for name in SHOWN if name in metrics})
        for names in HELD_OUT_SHOWN:
            if names[0] in metrics:
                self.progress.line(step, {name: metrics[name] for name in names})

    def tell(self) -> None:
        """Tell of each checkpoint that came further on its way since the last call."""
        self._checkpoints.look(self.position.step)
