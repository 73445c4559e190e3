"""One soak: train, kill, go on; then let it end, and verify every byte."""

import contextlib
import signal
import time
from collections import Counter
from pathlib import Path
from random import Random
from urllib.parse import urlsplit

from tests.gate import Asked, Decision, Gate, Instead
from tests.real_runs import Lab, Running, kill, until
from uploader import layout
from uploader.location import Location
from wmtp.dev_s3 import DevS3
from wmtp.seaweedfs import find_process

FLAGS = ("--set", "paths.checkpoints.save_interval=10", "--set", "data.gradient_accumulation=3")
FAULTS = 0.03
"""The share of requests that fail, half of them after their effect."""
ENDLESS = "1000000"
STOPPED = 128 + signal.SIGTERM


class Soak:
    """A server, a gate in front of it, a lab behind, and a trainer that is started again whenever it dies.

    Args:
        path: an empty directory.
    """

    def __init__(self, path: Path, rng: Random) -> None:
        self._path, self._rng = path, rng
        self._server = DevS3(path / "s3")
        self._calm = False
        self.counts: Counter[str] = Counter()

    def run(self, seconds: float) -> int:
        """Soak for so long, then verify; 1 where something is wrong."""
        self._server.start()
        self._server.ensure_bucket("soak")
        behind = urlsplit(self._server.storage().endpoint_url or "")
        with Gate(behind.hostname or "", behind.port or 0).open() as gate:
            gate.decide = self._decide
            storage = self._server.storage().model_copy(update={"endpoint_url": gate.url})
            lab = Lab(self._path / "lab", Location("soak", "checkpoints"), storage)
            try:
                with contextlib.closing(lab):
                    self._disturb(lab, gate, time.monotonic() + seconds)
                    return self._verify(lab)
            finally:
                self._server.stop()

    def _decide(self, _: Asked) -> Decision:
        """SlowDown before the effect, or an answer that is none after it."""
        if self._calm or self._rng.random() >= FAULTS:
            return "pass"
        self.counts["faults"] += 1
        return Instead(503, passes=False) if self._rng.random() < 0.5 else Instead(500)

    def _disturb(self, lab: Lab, gate: Gate, ends_s: float) -> None:
        """Something dies every few seconds; the trainer goes on from its newest checkpoint each time."""
        trainer = self._train(lab)
        while time.monotonic() < ends_s:
            time.sleep(self._rng.uniform(1.0, 8.0))
            gate.asked.clear()
            match self._rng.choice(("trainer", "uploader", "uploader", "server", "everything")):
                case "trainer":
                    self._kill_trainer(trainer)
                case "uploader":
                    self._kill_uploaders(lab)
                case "server":
                    self._kill_server()
                case _:
                    self._kill_trainer(trainer)
                    self._kill_uploaders(lab)
                    self._kill_server()
            if trainer.ended:
                trainer = self._train(lab)
        self._calm = True
        until(lambda: trainer.ended or self._goes_on(lab), "training goes on when all is calm")
        trainer.send(signal.SIGTERM)
        ended = trainer.wait()
        if ended.code != STOPPED:
            raise AssertionError(f"the trainer ended with {ended.code}\n{ended.out}\n{ended.err}")

    def _train(self, lab: Lab) -> Running:
        self.counts["starts"] += 1
        before = lab.metrics_inode()
        running = lab.start("train", "--resume", "auto", "--max-steps", ENDLESS, *FLAGS)
        until(lambda: running.ended or lab.metrics_inode() != before, "the trainer has begun")
        return running

    def _goes_on(self, lab: Lab) -> bool:
        return lab.status().get("state") in ("waiting", "uploading") and bool(lab.metrics())

    def _kill_trainer(self, trainer: Running) -> None:
        trainer.kill()
        self.counts["trainers killed"] += 1

    def _kill_uploaders(self, lab: Lab) -> None:
        for pid in lab.uploaders():
            kill(pid)
            self.counts["uploaders killed"] += 1

    def _kill_server(self) -> None:
        if (pid := find_process(self._server.data / "objects")) is not None:
            kill(pid)
            self.counts["servers killed"] += 1
            time.sleep(self._rng.uniform(0.0, 3.0))
        self._server.start()

    def _verify(self, lab: Lab) -> int:
        """Everything that the run left, here and in the store, down to the last byte."""
        run = str(lab.directory)
        verified = lab.start("checkpoints", "verify", run, "--all", "--deep").wait()
        print(verified.out)
        # What a dead process began and nobody wrote down would go when it is stale, in a week.
        print(lab.start("checkpoints", "uploads", run, "--abort", "--yes").wait().require().out)
        newest = lab.metrics()[-1]["step"]
        live = lab.bucket.live_steps()
        for what, number in [*self.counts.items(), ("steps", newest), ("durable steps", len(live))]:
            print(f"{what}: {number}")
        lab.bucket.require_exact(but=(layout.PROBE_PREFIX,))  # of probes that died; an hour, and it goes
        right = verified.code == 0 and bool(live) and live[-1] == newest and live == lab.steps()
        print("everything holds" if right else f"durable {live}, here {lab.steps()}, trained to {newest}")
        return int(not right)
