"""One run from its settings to its summary: build, take over, train, wait until it is durable."""

import dataclasses
import json
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uploader.settings import StorageSettings
from uploader.status import Status
from wmtp.checkpoint.checkpointer import Checkpointer, Options
from wmtp.checkpoint.resume import Started
from wmtp.checkpoint.state import Tree
from wmtp.checkpoint.uploader_process import Uploading
from wmtp.ranks import Ranks
from wmtp.settings import Resolved
from wmtp.store_access import reachable
from wmtp.training.continuity import differences, refuse_differences
from wmtp.training.distributed import PREPARING_S, as_long_as_rank_0
from wmtp.training.mlflow_run import TrackedRun
from wmtp.training.progress import Progress
from wmtp.training.setup import build
from wmtp.training.stopping import StopRequest
from wmtp.training.summary import next_commands, summary
from wmtp.training.trackers import Trackers, open_trackers
from wmtp.training.tracking import Nowhere, Outcome
from wmtp.training.trainer import Position, Trainer


def run_job(
    settings: Resolved,
    uploading: Uploading,
    *,
    again: str,
    take_over: bool = False,
    verbose: bool = False,
    ranks: Ranks | None = None,
) -> int:
    """Train as the settings say.

    Args:
        again: the command that resumes this run, for the summary.
        take_over: take the run from a trainer that lives on another machine.
        ranks: who trains together; all of them call this, and rank 0 talks to people.

    Returns:
        The exit code: 0, or 130 or 143 where a signal stopped it at the end of a step, or at once.

    Raises:
        WmtpError: it could not start, or its last checkpoint is not saved or not durable.
    """
    ranks = ranks or Ranks()
    _log_to_people(ranks, verbose=verbose)
    with _reachable(settings, ranks) as (storage, inherited):
        settings = dataclasses.replace(settings, storage=storage)
        return _Job(settings, ranks, uploading, inherited, again, take_over).run()


def _log_to_people(ranks: Ranks, *, verbose: bool) -> None:
    whose = "" if ranks.is_first else f"rank {ranks.rank}: "
    form = f"{whose}%(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO if verbose else logging.ERROR, format=form)
    # What goes wrong with a checkpoint is told by this command, above rank 0's progress bar.
    told = logging.CRITICAL if ranks.is_first else logging.ERROR
    logging.getLogger("wmtp.checkpoint").setLevel(logging.INFO if verbose else told)


@contextmanager
def _reachable(settings: Resolved, ranks: Ranks) -> Iterator[tuple[StorageSettings, tuple[int, ...]]]:
    """The store. A server that has to be started is rank 0's, who tells the others."""
    if not ranks.is_first:
        yield StorageSettings.model_validate(ranks.from_first(timeout_s=PREPARING_S)), ()
        return
    with reachable(settings.storage, settings.dev_s3, settings.location.bucket) as (storage, inherited):
        ranks.from_first(storage.model_dump(mode="json"))
        yield storage, inherited


ENDING_S = 600.0
"""How long the others wait for rank 0 to close what it alone has: trackers, the uploader's status."""

_OWN = ("lr", "betas", "eps", "weight_decay")
"""Of an optimizer, what the settings say; the model's rate is set anew before each step."""


class _Job:
    """A run while this process has it."""

    def __init__(
        self,
        settings: Resolved,
        ranks: Ranks,
        uploading: Uploading,
        inherited: tuple[int, ...],
        again: str,
        take_over: bool,
    ) -> None:
        self.settings, self.ranks, self.again = settings, ranks, again
        self.say = say if ranks.is_first else unsaid
        self.setup = build(settings, ranks)
        self.position = Position()
        self.tracked = TrackedRun(str(settings.location))
        about = {**self.setup.about, "may_change": self._may_change()}
        self.about: dict[str, Any] = json.loads(json.dumps(about))  # as it will be read again
        self.options = self._options(uploading, inherited, take_over)

    def run(self) -> int:
        """The run, and its end where a signal ends even the waiting; the exit code."""
        stop = StopRequest(alone=self.ranks.world_size == 1)
        try:
            code = self._run(stop)
            return int(self.ranks.last_word(code, timeout_s=ENDING_S))
        except KeyboardInterrupt:
            if stop.signal is None:
                raise
            self.say(f"interrupted: the checkpoints in {self.settings.local_dir} are safe on this disk")
            return stop.exit_code

    def _run(self, stop: StopRequest) -> int:
        """The story of a run."""
        settings, setup, position = self.settings, self.setup, self.position
        seed_everything((settings.seed + self.ranks.rank) % 2**32)
        with (
            Checkpointer(
                settings.local_dir,
                model=setup.model,
                optimizer=setup.optimizers,
                extra={"position": position, "tracking": self.tracked, **setup.extra},
                every=settings.save_interval,
                to=settings.base,
                options=self.options,
            ) as checkpointer,
            stop,
        ):
            started = self._resume(checkpointer)
            began_step = position.step
            with self._trackers(started) as trackers:
                with self._progress() as progress:
                    trainer = Trainer(settings, setup, position, checkpointer, trackers, progress)
                    trainer.train(stop)
                stop.no_more_steps()
                if stop.signal is not None:
                    trackers.outcome = Outcome.KILLED
                    self.say(f"stopped by {stop.signal.name} after step {position.step}")
                status = self._finish(checkpointer, trainer)
        if stop.signal is None:
            held_out = trainer.evaluate() if position.step > began_step else {}
            for line in summary(position, began_step, checkpointer, status, held_out, setup):
                self.say(line)
            for line in next_commands(self.again, position, began_step, settings.local_dir, setup):
                self.say(line)
        return stop.exit_code

    def _finish(self, checkpointer: Checkpointer, trainer: Trainer) -> Status | None:
        """Every rank's last save, and rank 0's wait until the checkpoint is durable."""
        durable_s = self.settings.config.paths.checkpoints.durable_timeout_s
        with as_long_as_rank_0(self.ranks, durable_s + ENDING_S):
            try:
                return checkpointer.finish()
            finally:
                trainer.tell()

    def _trackers(self, started: Started) -> Trackers:
        if self.ranks.is_first:
            return open_trackers(self.settings, self.tracked, started, self.say)
        return Trackers(Nowhere(), say=self.say)

    def _progress(self) -> Progress:
        return Progress(
            self.setup.max_steps,
            quiet=not self.ranks.is_first,
            began_step=self.position.step,
            every=self.settings.config.log_interval,
            tokens_per_step=self.setup.batch_size * self.settings.recipe.data.sequence_length,
        )

    def _options(self, uploading: Uploading, inherited: tuple[int, ...], take_over: bool) -> Options:
        paths = self.settings.config.paths.checkpoints
        return Options(
            storage=self.settings.storage,
            retention=self.settings.retention,
            local_retention=self.settings.local_retention,
            upload=self.settings.upload,
            uploading=uploading,
            shard_size_bytes=paths.shard_size_bytes,
            nice=paths.background_nice,
            durable_timeout_s=paths.durable_timeout_s,
            store_timeout_s=paths.store_timeout_s,
            lease_s=paths.lease_s,
            take_over=take_over,
            inherited=inherited,
            about=self.about,
            fingerprints=self.setup.fingerprints,
            check=self._check,
            say=self.say,
            ranks=self.ranks,
        )

    def _check(self, path: Path, was: Tree) -> None:
        """A checkpoint of another model, data or seed is refused; a changed schedule is told."""
        refuse_differences(was, self.about, path)
        could_change = {"ranks": 1, **was.get("may_change", {})}  # where it names none there was one
        for name, before, now in differences(could_change, self.about["may_change"]):
            self.say(f"changed since the checkpoint: {name} {before} -> {now}")

    def _may_change(self) -> dict[str, Any]:
        """What a resumed run may do otherwise than before; kept in each checkpoint."""
        recipe = self.settings.recipe
        sections = {
            "devices": self.settings.config.devices,
            "train.validation": recipe.train.validation,
            "train.early_stopping": recipe.train.early_stopping,
            "optim": recipe.optim,
            "loss": recipe.loss,
        }
        return {
            "ranks": self.ranks.world_size,
            "train.algo": recipe.train.algo,
            **self.setup.reads,
            **{
                f"{key}.{name}": value
                for key, section in sections.items()
                for name, value in section.model_dump(mode="json").items()
            },
            "max_steps": self.setup.max_steps,
            "save_interval": self.settings.save_interval,
            "retention": str(self.settings.retention),
        }

    def _resume(self, checkpointer: Checkpointer) -> Started:
        """Where ``--resume`` says; the settings' own rates, betas and decay hold, not the checkpoint's."""
        wanted = [{name: group[name] for name in _OWN} for group in self._groups()]
        checkpointer.restore(self.settings.resume, fresh=self.settings.fresh)
        for group, own in zip(self._groups(), wanted, strict=True):
            group.update(own)
        started = checkpointer.started
        assert started is not None  # noqa: S101
        for reason in started.skipped:
            self.say(f"passed over: {reason}")
        if self.setup.ema.news:
            self.say(self.setup.ema.news)
        parameters = sum(weight.numel() for weight in self.setup.model.parameters())
        where = f"resumed from {started.source}" if started.source else "from scratch"
        self.say(
            f"run {self.settings.run_name}, generation {started.run.generation}: {parameters / 1e6:.2f} M "
            f"parameters on {self._where()}, {where}"
        )
        self.say(f"checkpoints go to {self.settings.location}")
        return started

    def _where(self) -> str:
        device, world_size = self.setup.device, self.ranks.world_size
        return str(device) if world_size == 1 else f"{world_size} ranks of {device.type}"

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.setup.optimizers.values() for group in optimizer.param_groups]


def say(line: str) -> None:
    """Before and after training there is no progress bar to write above."""
    print(line, flush=True)


def unsaid(line: str) -> None:
    """What rank 0 says already."""


def seed_everything(seed: int) -> None:
    """Start every random generator of this process from the run's seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
