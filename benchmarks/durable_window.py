"""One way to make checkpoints durable, in a process of its own: ``durable_window ORDER RESULT``, both JSON.

Simulated training goes on while save after save becomes durable, one at a time. The moment is the sink's:
when it stored the manifest whose ``latest`` is the step. It is asked fifty times a second, and tells the
moment to the microsecond. Nothing is pruned, so only a commit moves the manifest.
"""

import http.client
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import anyio

from benchmarks.durable_report import APART, IN_TURN, PIPELINED
from benchmarks.null_bucket import MODIFIED
from benchmarks.workload import Workload, build
from uploader.events import ShardSaved
from uploader.host import serve_run
from uploader.layout import MANIFEST_KEY
from uploader.retention import Retention
from uploader.settings import StorageSettings
from uploader.status import read_status
from wmtp.checkpoint.checkpointer import Checkpointer, Options
from wmtp.checkpoint.disk import Announce, Answer, Disk, Operation
from wmtp.checkpoint.saver import SHARD_SIZE_BYTES
from wmtp.checkpoint.uploader_process import Uploading

BUCKET, RUN = "bench", "run"
POLL_S = 0.02
SAVE_TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one window does: ``saves`` saves after one that is not counted."""

    way: str
    size_gb: float
    saves: int
    step_s: float
    shard_size_bytes: int | None
    directory: str
    sink_url: str


class Quiet(Disk):
    """A disk that announces committed steps only: no file is sent before all are written."""

    def perform(self, operation: Operation) -> Answer:
        if isinstance(operation, Announce) and isinstance(operation.event, ShardSaved):
            return None
        return super().perform(operation)


class Training:
    """A simulated training run with its checkpoints.

    Args:
        uploading: whether an uploader works beside it.
    """

    def __init__(self, order: Order, *, uploading: Uploading, disk: Disk | None = None) -> None:
        storage = StorageSettings(endpoint_url=order.sink_url, region="us-east-1", addressing_style="path")
        options = Options(
            storage=storage,
            retention=Retention(keep_last=1 + order.saves),
            uploading=uploading,
            shard_size_bytes=order.shard_size_bytes or SHARD_SIZE_BYTES,
            disk=disk,
            say=lambda line: None,
        )
        self.workload: Workload = build("accelerator", order.size_gb, order.step_s)
        self.checkpointer = Checkpointer(
            Path(order.directory) / RUN,
            model=self.workload.model,
            optimizer=self.workload.optimizer,
            to=f"s3://{BUCKET}",
            options=options,
        )
        self.checkpointer.restore(None)
        self.step = 0

    def save(self) -> float:
        """Begin a save; the moment it was asked for, in seconds since the epoch."""
        self.step += 1
        began_s = time.time()
        assert self.checkpointer.save(self.step), "the save before should have ended"
        return began_s

    def train_until(self, done: Callable[[], bool]) -> None:
        """Steps until something is so."""
        deadline_s = time.monotonic() + SAVE_TIMEOUT_S
        while not done():
            assert time.monotonic() < deadline_s, "it does not end"
            self.workload.forward_backward()
            self.checkpointer.fence()
            self.workload.optimizer.step()

    def written(self) -> bool:
        """Whether the last save is on the local disk."""
        saved = self.checkpointer.saved[-1]
        assert saved.error is None, saved.error
        return saved.local_ms is not None

    @property
    def local_ms(self) -> float:
        """From the last save until it was committed on the local disk."""
        written_ms = self.checkpointer.saved[-1].local_ms
        assert written_ms is not None
        return written_ms

    def rested(self) -> bool:
        """Whether the uploader has nothing left to do."""
        status = read_status(self.checkpointer.directory.status_file)
        if status is None or status.state != "waiting":
            return False
        return (status.newest_durable_step or 0) == self.step

    def upload_ms(self) -> float:
        """How long the last upload took, from its first request to the manifest, as its uploader says."""
        status = read_status(self.checkpointer.directory.status_file)
        assert status is not None and status.recent[-1].step == self.step, status
        return status.recent[-1].upload_s * 1e3


class Manifest(threading.Thread):
    """Watches for the manifest to name a step.

    Attributes:
        durable_at_s: when the sink stored it, in seconds since the epoch; None while it has not.
    """

    def __init__(self, sink_url: str, step: int) -> None:
        super().__init__(name="manifest", daemon=True)
        self.durable_at_s: float | None = None
        self._step, self._place = step, urlsplit(sink_url).netloc
        self.start()

    def has_moved(self) -> bool:
        """Whether the step is durable."""
        return self.durable_at_s is not None

    def run(self) -> None:
        connection = http.client.HTTPConnection(self._place, timeout=SAVE_TIMEOUT_S)
        while self.durable_at_s is None:
            time.sleep(POLL_S)
            connection.request("GET", f"/{BUCKET}/{RUN}/{MANIFEST_KEY}")
            answer = connection.getresponse()
            data = answer.read()
            if answer.status == 200 and json.loads(data)["latest"] == self._step:
                self.durable_at_s = float(answer.headers[MODIFIED])
        connection.close()


def _until_durable(order: Order, disk: Disk | None) -> list[dict[str, float]]:
    """Each save until it is durable, with an uploader that is there already."""
    training = Training(order, uploading=Uploading.WAIT, disk=disk)
    taken = []
    for _ in range(1 + order.saves):
        training.train_until(training.rested)
        began_s = training.save()
        manifest = Manifest(order.sink_url, training.step)
        training.train_until(manifest.has_moved)
        training.train_until(training.written)
        assert manifest.durable_at_s is not None
        durable_ms = (manifest.durable_at_s - began_s) * 1e3
        taken.append({"durable_ms": durable_ms, "local_ms": training.local_ms})
    training.train_until(training.rested)
    training.checkpointer.close()
    return taken


def pipelined(order: Order) -> list[dict[str, float]]:
    """Ours: each file is announced, and sent, as soon as it is written."""
    return _until_durable(order, None)


def write_then_upload(order: Order) -> list[dict[str, float]]:
    """Ours, but only the whole checkpoint is announced."""
    return _until_durable(order, Quiet())


def apart(order: Order) -> list[dict[str, float]]:
    """The floor: writing with no uploader there, and then uploading with nothing being written."""
    training = Training(order, uploading=Uploading.NONE)
    taken = []
    for _ in range(1 + order.saves):
        training.save()
        training.train_until(training.written)
        upload = partial(serve_run, training.checkpointer.directory.path, once=True)
        anyio.run(upload)
        taken.append({"write_ms": training.local_ms, "upload_ms": training.upload_ms()})
    training.checkpointer.close()
    return taken


WAYS: dict[str, Callable[[Order], list[dict[str, float]]]] = {
    PIPELINED: pipelined,
    IN_TURN: write_then_upload,
    APART: apart,
}


def main() -> None:
    """Do what the order says."""
    warnings.filterwarnings("ignore")
    order = Order(**json.loads(sys.argv[1]))
    saves = WAYS[order.way](order)[1:]
    Path(sys.argv[2]).write_text(json.dumps({"way": order.way, "saves": saves}))
    os._exit(0)


if __name__ == "__main__":
    main()
