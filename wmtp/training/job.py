"""One run from its settings to its summary: build, take over, train, wait until it is durable."""

import contextlib
import dataclasses
import logging
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uploader.errors import StartRefused
from uploader.layout import RunDirectory
from uploader.record import NodeRecord
from uploader.retention import Retention
from uploader.run import RunFile
from uploader.settings import UploadSettings
from uploader.status import Status
from wmtp.checkpoint.checkpointer import Checkpointer
from wmtp.checkpoint.load import apply, read_checkpoint
from wmtp.checkpoint.resume import Started
from wmtp.checkpoint.session import take_over, trainer_lock
from wmtp.checkpoint.state import RandomState, Stateful
from wmtp.checkpoint.uploader_process import UploaderProcess
from wmtp.checkpoint.writer import Description
from wmtp.settings import Resolved
from wmtp.store_access import reachable
from wmtp.training.setup import build
from wmtp.training.stopping import StopRequest
from wmtp.training.summary import next_commands, summary
from wmtp.training.tracking import MetricsLog, Progress
from wmtp.training.trainer import Position, Trainer


class Uploading(Enum):
    """What becomes of the checkpoints after they are on this disk."""

    WAIT = "start an uploader and wait for it at the end"
    DETACHED = "start an uploader and leave it at the end"
    NONE = "a sidecar uploads"


def run_job(settings: Resolved, uploading: Uploading, *, again: str, verbose: bool = False) -> int:
    """Train as the settings say.

    Args:
        again: the command that resumes this run, for the summary.

    Returns:
        The exit code: 0, or 130 or 143 where a signal stopped it at the end of a step.

    Raises:
        WmtpError: it could not start, or its last checkpoint is not saved or not durable.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.ERROR, format="%(levelname)s %(name)s: %(message)s"
    )
    directory = RunDirectory(settings.local_dir)
    with (
        trainer_lock(directory),
        reachable(settings.storage, settings.dev_s3, settings.location.bucket) as (storage, inherited),
    ):
        settings = dataclasses.replace(settings, storage=storage)
        return _Job(settings, uploading, directory, inherited, again).run()


class _Job:
    """A run while this process has it."""

    def __init__(
        self,
        settings: Resolved,
        uploading: Uploading,
        directory: RunDirectory,
        inherited: tuple[int, ...],
        again: str,
    ) -> None:
        self.settings, self.uploading, self.directory = settings, uploading, directory
        self.inherited, self.again = inherited, again
        self.setup = build(settings)
        self.position = Position()
        self.extra: dict[str, Stateful] = {"position": self.position, "random": RandomState()}
        self.optimizers = {"main": self.setup.optimizer}
        self.about: dict[str, Any] = {
            **self.setup.about,
            "optim": settings.recipe.optim.model_dump(mode="json"),
        }

    def run(self) -> int:
        """The story of a run."""
        seed_everything(self.settings.seed)
        started = self._take_over()
        uploader = UploaderProcess(self.directory, started.run.generation, inherited=self.inherited)
        if self.uploading is not Uploading.NONE:
            uploader.ensure()
        with (
            StopRequest() as stop,
            Progress(self.setup.max_steps) as progress,
            contextlib.closing(self._metrics(started)) as metrics,
            self._checkpointer(started) as checkpointer,
        ):
            self._announce(started, progress.note)
            trainer = Trainer(
                self.settings, self.setup, self.position, checkpointer, metrics, progress, uploader.news
            )
            began_step = self.position.step
            trainer.train(stop)
            checkpointer.finish(self.position.step)
            trainer.tell()
            stop.no_more_steps()
            if stop.signal is not None:
                progress.note(f"stopped by {stop.signal.name} after step {self.position.step}")
            status = self._wait(uploader, checkpointer, progress.note)
            if stop.signal is None:
                held_out = trainer.evaluate() if self.position.step > began_step else {}
                for line in summary(self.position, began_step, checkpointer, status, held_out):
                    say(line)
                for line in next_commands(self.again, self.position, began_step, self.directory.path):
                    say(line)
        return stop.exit_code

    def _take_over(self) -> Started:
        checkpoints = self.settings.config.paths.checkpoints
        run = RunFile(
            run=self.settings.run_name,
            destination=str(self.settings.location),
            storage=self.settings.storage,
            upload=UploadSettings(delete_grace_s=checkpoints.delete_grace_s),
            retention=Retention(keep_last=self.settings.keep_last),
        )
        return take_over(
            self.directory,
            run,
            self.settings.resume,
            self._load,
            say,
            fresh=self.settings.fresh,
            store_timeout_s=checkpoints.store_timeout_s,
        )

    def _load(self, path: Path, record: NodeRecord) -> None:
        """Load a verified checkpoint, if it is one of this model, data and seed."""
        loaded = read_checkpoint(path, record)
        was = loaded.tree.get("about", {})
        refuse_differences(was, self.about, path)
        wanted = [dict(group) for group in self.setup.optimizer.param_groups]
        apply(loaded, self.setup.model, self.optimizers, self.extra)
        for group, own in zip(self.setup.optimizer.param_groups, wanted, strict=True):
            group.update({name: own[name] for name in ("betas", "eps", "weight_decay")})
        for name, before, now in differences(was.get("optim", {}), self.about["optim"]):
            say(f"changed since the checkpoint: optim.{name} {before} -> {now}")

    def _metrics(self, started: Started) -> MetricsLog:
        return MetricsLog(self.directory.path / "metrics.jsonl", resume_step=started.step)

    def _checkpointer(self, started: Started) -> Checkpointer:
        what = Description(
            run=self.settings.run_name,
            step=started.step,
            generation=started.run.generation,
            created_at=datetime.now(UTC),
            metrics={},
            fingerprints=self.setup.fingerprints,
        )
        return Checkpointer(
            self.directory,
            what,
            model=self.setup.model,
            optimizers=self.optimizers,
            extra=self.extra,
            about=self.about,
            resumed_from=started.step or None,
            shard_size_bytes=self.settings.config.paths.checkpoints.shard_size_bytes,
        )

    def _announce(self, started: Started, note: Callable[[str], None]) -> None:
        for reason in started.skipped:
            note(f"passed over: {reason}")
        parameters = sum(weight.numel() for weight in self.setup.model.parameters())
        where = f"resumed from {started.source}" if started.source else "from scratch"
        note(
            f"run {self.settings.run_name}, generation {started.run.generation}: {parameters / 1e6:.2f} M "
            f"parameters on {self.setup.device}, {where}; checkpoints go to {self.settings.location}"
        )

    def _wait(
        self, uploader: UploaderProcess, checkpointer: Checkpointer, note: Callable[[str], None]
    ) -> Status | None:
        """Until the last checkpoint is durable; this process may be all that keeps the uploader alive."""
        if self.uploading is not Uploading.WAIT:
            return uploader.status()
        timeout_s = self.settings.config.paths.checkpoints.durable_timeout_s
        try:
            return uploader.wait_until_drained(checkpointer.last_step, timeout_s=timeout_s, say=note)
        except KeyboardInterrupt:
            note(f"not waiting any longer; the uploader goes on (wmtp status {self.directory.path})")
            raise


def say(line: str) -> None:
    """Before and after training there is no progress bar to write above."""
    print(line, flush=True)


def seed_everything(seed: int) -> None:
    """Start every random generator of this process from the run's seed."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The fields that differ, each with both values."""
    names = sorted({*was, *now})
    return [(name, was.get(name), now.get(name)) for name in names if was.get(name) != now.get(name)]


def refuse_differences(was: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """A run goes on exactly, or not at all.

    Raises:
        StartRefused: model, data or seed are not those of the checkpoint; names the fields.
    """
    found = [
        f"{section}.{name} is {here!r}, in the checkpoint {there!r}"
        for section in ("model", "data")
        for name, there, here in differences(was.get(section, {}), now[section])
    ]
    if was.get("seed") != now["seed"]:
        found.append(f"seed is {now['seed']}, in the checkpoint {was.get('seed')}")
    if found:
        raise StartRefused(
            "; ".join(found),
            doing="resuming from",
            subject=str(path),
            hint="set them back, or start another run with --run-name",
        )
