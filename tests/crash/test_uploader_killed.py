"""The uploader, or the store, dies by SIGKILL at any moment: nothing committed is lost, nothing half shown.

All the while a stranger reads the bucket: whatever step the manifest lists is there, whole.
"""

import os
import random
import signal
import threading
from collections.abc import Callable
from contextlib import suppress

import pytest
from real_runs import RUN, SLOW, Bucket, Lab, Mortal, kill, until

from wmtp.seaweedfs import find_process

pytestmark = pytest.mark.crash

OFTEN = ("--set", "paths.checkpoints.save_interval=4", "--set", "data.gradient_accumulation=5")


class Stranger:
    """Reads the bucket over and over until told to stop; says what it saw that must never be seen."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket, self._stop = bucket, threading.Event()
        self.looks = 0
        self.latest: list[int] = []
        self.troubles: list[str] = []

    def __enter__(self) -> "Stranger":
        self._thread = threading.Thread(target=self._read)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.is_set():
            self._look()
            self.looks += 1

    def _look(self) -> None:
        manifest = self._bucket.manifest()
        if manifest is None or manifest["latest"] is None:
            return
        self.latest.append(manifest["latest"])
        for name, entry in manifest["live"].items():
            trouble = self._bucket.trouble(name, entry)
            # A step may be pruned while it is looked at, but the manifest says so first.
            if trouble is not None and name in (self._bucket.manifest() or {"live": {}})["live"]:
                self.troubles.append(trouble)

    def require_content(self) -> None:
        assert self.troubles == []
        assert self.looks > 1 and self.latest == sorted(self.latest)


def random_moment(lab: Lab, rng: random.Random, killed: set[int]) -> Callable[[], int | None]:
    """The uploader's process at some moment of its life; None while it has not come."""
    moment, wanted = rng.choice(["started", "uploading", "durable", "pruned"]), rng.randint(1, 3)
    seen = 0

    def look() -> int | None:
        nonlocal seen
        status = lab.status()
        if not status or status["pid"] in killed:
            return None
        seen += {
            "started": True,
            "uploading": status["upload"] is not None,
            "durable": status["durable_total"] >= wanted,
            "pruned": status["pruned_remote_total"] >= wanted,
        }[moment]
        return int(status["pid"]) if seen >= wanted else None

    return look


@pytest.mark.parametrize(("kills", "steps", "seed"), [(3, 160, 1), pytest.param(10, 700, 2, marks=SLOW)])
def test_nothing_committed_is_lost_and_nothing_half_shown(
    each_lab: Lab, kills: int, steps: int, seed: int
) -> None:
    lab, rng = each_lab, random.Random(seed)
    killed: set[int] = set()
    with Stranger(lab.bucket) as stranger:
        running = lab.start("train", "--max-steps", str(steps), *OFTEN)
        for _ in range(kills):
            moment = random_moment(lab, rng, killed)
            until(lambda moment=moment: running.ended or moment(), "an uploader to kill")
            pid = moment()
            if pid is None or len(lab.metrics()) > steps - 20:
                break  # nobody restarts one for ever once the training is over
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        ended = running.wait().require()

    assert killed
    stranger.require_content()
    assert lab.status()["pid"] not in killed and lab.status()["state"] == "drained"
    assert f"latest step_{steps} in {lab.base}/{RUN}" in ended.out
    assert lab.bucket.live_steps() == lab.steps() == ended.saved()[-3:]
    lab.bucket.require_exact()


def test_an_uploader_that_always_dies_is_given_up_and_the_checkpoint_is_safe(lab: Lab) -> None:
    (lab.path / "sitecustomize.py").write_text(DYING)
    running = lab.start("train", env={"PYTHONPATH": str(lab.path)})
    said = running.wait().require_error(
        3, str(lab.directory), "dies again and again", "wmtp uploader --watch"
    )
    assert "it is safe on this disk" in said
    assert lab.steps()[-1] == 40

    once = lab.start("uploader", "--watch", str(lab.directory), "--once")
    once.wait().require()
    assert lab.bucket.live_steps() == lab.steps()


DYING = """
import os, signal, sys
if "uploader" in sys.orig_argv:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_store_that_is_killed_and_comes_back_costs_nothing(mortal: Mortal) -> None:
    server, lab = mortal
    running = lab.start("train", "--max-steps", "200", *OFTEN)
    until(lambda: lab.status().get("newest_durable_step"), "something is durable")
    before = len(lab.metrics())
    pid = find_process(server.data / "objects")
    assert pid is not None
    kill(pid)
    until(
        lambda: lab.status()["state"] == "retrying" and len(lab.metrics()) > before + 20, "training goes on"
    )
    server.start()
    ended = running.wait().require()

    assert "latest step_200" in ended.out
    assert lab.status()["retries_total"] > 0
    assert lab.bucket.live_steps() == lab.steps() == ended.saved()[-3:]
    lab.bucket.require_exact()
