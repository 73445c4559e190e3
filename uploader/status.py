"""``status.json``: what the uploader of a run is doing, for people and for the trainer.

Rewritten atomically at every change, never fsynced: after a crash it is written anew.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from uploader import below
from uploader.errors import WmtpError
from uploader.flow import FlowState
from uploader.layout import RunDirectory, step_name
from uploader.record import NodeRecord, decode
from uploader.seal import Sealed, sealed
from uploader.settings import SCHEMA_VERSION, Strict
from uploader.store.capabilities import Capabilities

log = logging.getLogger("uploader")

State = Literal["waiting", "uploading", "retrying", "drained", "stopped", "failed"]


class Upload(Strict):
    """The step being uploaded.

    Attributes:
        parts_limit: how many parts may be in flight now; the store's refusals lower it.
        bandwidth_bytes_per_s: as last measured; None before that.
        bandwidth_limit_bytes_per_s: the bound of ``max_bandwidth`` and of pacing; None where there is none.
        pacing: the share of the wire left to uploads for the trainer's sake; None without step times.
    """

    step: int
    generation: int
    done_bytes: int = 0
    size_bytes: int
    parts_limit: int | None = None
    bandwidth_bytes_per_s: float | None = None
    bandwidth_limit_bytes_per_s: float | None = None
    pacing: float | None = None


class Durable(Strict):
    """A step that this uploader committed, and how long that took from the upload's first request."""

    step: int
    generation: int
    size_bytes: int
    upload_s: float
    at: AwareDatetime


class Status(Sealed):
    """The state of one run's uploader.

    Attributes:
        store: what the store can do, as the probe before the first write found it; None before that.
        durability_lag_steps: newest local step minus newest durable one.
        recent: the last steps that became durable, oldest first.
        error: what is wrong now, in one line; None while nothing is.
        failed_steps: by ``step_N@gG``: steps that can't be uploaded, each with its reason.
        undeletable: by ``step_N@gG``: steps that the store refuses to prune, each with its reason.
    """

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    destination: str
    pid: int
    generation: int = 0
    state: State = "waiting"
    store: Capabilities | None = None
    newest_local_step: int | None = None
    newest_durable_step: int | None = None
    durability_lag_steps: int | None = None
    upload: Upload | None = None
    recent: list[Durable] = []
    durable_total: int = 0
    skipped_total: int = 0
    pruned_remote_total: int = 0
    pruned_local_total: int = 0
    retries_total: int = 0
    error: str | None = None
    failed_steps: dict[str, str] = {}
    undeletable: dict[str, str] = {}
    updated_at: AwareDatetime


RECENT = 32


class StatusFile:
    """The one writer of a run's ``status.json``; each method is something that happened."""

    def __init__(self, directory: RunDirectory, now: Callable[[], datetime], first: Status) -> None:
        self._path, self._now, self.status = directory.status_file, now, first
        self.show()

    def show(self, **changes: object) -> None:
        """Change fields and write the file.

        A disk that is full must not stop the uploads that will free it: the log tells instead.
        """
        self.status = self.status.model_copy(update={**changes, "updated_at": self._now()})
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        try:
            with open(temporary, "wb", opener=below.private) as file:
                file.write(sealed(self.status.model_dump_json(indent=1).encode()))
            os.replace(temporary, self._path)
        except OSError as error:
            log.warning("%s can't be written: %s", self._path, os.strerror(error.errno or 0))

    def located(self, newest_local: int | None, newest_durable: int | None) -> None:
        """Where the disk and the store stand."""
        both = newest_local is not None and newest_durable is not None
        lag = max(0, (newest_local or 0) - (newest_durable or 0)) if both else None
        if (newest_local, newest_durable) != (self.status.newest_local_step, self.status.newest_durable_step):
            self.show(
                newest_local_step=newest_local, newest_durable_step=newest_durable, durability_lag_steps=lag
            )

    def knows(self, store: Capabilities) -> None:
        """The store was asked what it can do."""
        log.info("%s: %s", self.status.destination, store)
        self.show(store=store)

    def uploading(self, record: NodeRecord) -> None:
        """An upload began."""
        upload = Upload(step=record.step, generation=record.generation, size_bytes=record.size_bytes)
        self.show(state="uploading", upload=upload)

    def progressed(self, size_bytes: int, flow: FlowState | None = None) -> None:
        """The store took some more bytes of the step being uploaded, under these bounds."""
        if self.status.upload is not None:
            bounds = {} if flow is None else asdict(flow)
            done_bytes = self.status.upload.done_bytes + size_bytes
            upload = self.status.upload.model_copy(update={"done_bytes": done_bytes, **bounds})
            self.show(state="uploading", upload=upload, error=None)

    def retrying(self, error: WmtpError, attempt: int, wait_s: float) -> None:
        """A request failed and will be repeated."""
        log.warning("%s; attempt %d, again in %.1f s", error, attempt, wait_s)
        self.show(state="retrying", error=str(error), retries_total=self.status.retries_total + 1)

    def durable(self, record: NodeRecord, upload_s: float) -> None:
        """A step was committed and is in the manifest."""
        one = Durable(
            step=record.step,
            generation=record.generation,
            size_bytes=record.size_bytes,
            upload_s=upload_s,
            at=self._now(),
        )
        log.info("%s: durable, %.1f MB in %.2f s", step_name(one.step), one.size_bytes / 1e6, upload_s)
        recent = [*self.status.recent, one][-RECENT:]
        self.show(recent=recent, durable_total=self.status.durable_total + 1, upload=None, error=None)

    def skipped(self, record: NodeRecord) -> None:
        """A step will not be uploaded: retention would prune it on arrival."""
        log.info("%s: skipped, newer ones are kept instead", step_name(record.step))
        self.show(skipped_total=self.status.skipped_total + 1)

    def left_out(self, name: str, why: str) -> None:
        """A step will not be uploaded, for another reason than retention."""
        log.warning("%s: %s", name.partition("@")[0], why)
        self.show(skipped_total=self.status.skipped_total + 1)

    def step_failed(self, name: str, error: WmtpError) -> None:
        """A step is corrupt on the local disk."""
        log.error("%s: %s", name, error)
        self.show(upload=None, failed_steps={**self.status.failed_steps, name: str(error)})

    def failed(self, error: WmtpError) -> None:
        """Something that does not heal by itself."""
        log.error("%s", error)
        self.show(state="failed", upload=None, error=str(error))

    def pruned(self, steps: list[int], *, where: Literal["remote", "local"]) -> None:
        """Retention let steps go."""
        log.info("pruned %s: %s", where, ", ".join(map(step_name, steps)))
        field = f"pruned_{where}_total"
        self.show(**{field: getattr(self.status, field) + len(steps)})


def read_status(path: Path) -> Status | None:
    """The status in a file; None where no uploader has run.

    Raises:
        CorruptError: it can't be read.
    """
    try:
        return decode(Status, below.read_small(path), subject=str(path), hint="start the uploader again")
    except FileNotFoundError:
        return None
