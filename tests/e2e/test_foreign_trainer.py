"""``wmtp uploader`` beside a trainer that knows nothing of us: a stranger's process, a real S3 server.

The trainer is told through a pipe when to go on, and writes one checkpoint of each style in two halves. All
the while something else in its directory changes: the uploader looks far more often than it would by itself.
"""

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real_runs import Lab, Running, until

from uploader.location import Location

pytestmark = pytest.mark.e2e

TRAINER = """
import io, json, os, pathlib, struct, sys, threading, zipfile

run = pathlib.Path(sys.argv[1])

def stir():
    while not over.wait(0.2):
        os.utime(run)

over = threading.Event()
threading.Thread(target=stir, daemon=True).start()
data = os.urandom(3_000_000)
header = json.dumps({"w": {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}}).encode()
safetensors = struct.pack("<Q", len(header)) + header + data
buffer = io.BytesIO()
with zipfile.ZipFile(buffer, "w") as archive:
    archive.writestr("archive/data.pkl", b"no pickle")
    archive.writestr("archive/data/0", data)
saved = buffer.getvalue()

STATE = ("trainer_state.json", b'{"global_step": 4}')
FILES = {  # in the order in which each trainer writes them
    "checkpoint_step_1.pt": [saved],
    "step_2.safetensors": [safetensors],
    "epoch=0-step=3.ckpt": [saved],
    "checkpoint-4": [("model.safetensors", safetensors), ("optimizer.pt", saved), STATE],
    "step-5": [("__0_0.distcp", saved), ("__1_0.distcp", saved), (".metadata", b"index")],
    "global_step6": [("mp_rank_00_model_states.pt", saved), ("zero_pp_rank_0_optim_states.pt", saved)],
}

def write(name, wanted):
    files = FILES[name]
    if not isinstance(files[0], tuple):
        path, files = run, [(name, files[0])]
    else:
        path = run / name
        path.mkdir()
    for file, content in files[:-1]:
        (path / file).write_bytes(content)
    file, content = files[-1]
    with open(path / file, "wb", buffering=0) as opened:
        if name != "step-5":  # DCP moves its index into view at once
            opened.write(content[: len(content) // 2])
        else:
            os.rename(path / file, path / ".metadata.tmp")
        yield
        opened.write(content if name == "step-5" else content[len(content) // 2 :])
    if name == "step-5":
        os.rename(path / ".metadata.tmp", path / file)
    yield

writers = {}
for line in sys.stdin:
    name = line.strip()
    writers.setdefault(name, write(name, name))
    next(writers[name])
    print(name, flush=True)
"""
STYLES = {
    "checkpoint_step_1.pt": 1, "step_2.safetensors": 2, "epoch=0-step=3.ckpt": 3,
    "checkpoint-4": 4, "step-5": 5, "global_step6": 6,
}  # fmt: skip


class Stranger:
    """The trainer: each ``go_on`` writes one half of a checkpoint, and returns when it is written."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        self._process = subprocess.Popen(
            [sys.executable, "-c", TRAINER, str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def go_on(self, name: str) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{name}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == f"{name}\n"

    def files(self) -> dict[str, bytes]:
        """All that it wrote."""
        paths = [
            path for path in self.directory.rglob("*") if ".uploader" not in path.parts and path.is_file()
        ]
        return {str(path.relative_to(self.directory)): path.read_bytes() for path in paths}

    def close(self) -> None:
        with self._process:
            self._process.kill()


@pytest.fixture
def stranger(lab: Lab) -> Iterator[Stranger]:
    with contextlib.closing(Stranger(lab.path / "out" / "their-run")) as started:
        yield started


def base(lab: Lab) -> Location:
    assert lab.base is not None
    return lab.base


def uploader(lab: Lab, path: Path, *words: str, quiet_s: str = "1") -> Running:
    return lab.start("uploader", "--watch", str(path), "--to", str(base(lab)), "--quiet-s", quiet_s, *words)


@pytest.mark.parametrize("below", [".", ".."], ids=["a run", "a parent of runs"])
def test_each_style_is_uploaded_whole_and_never_half(lab: Lab, stranger: Stranger, below: str) -> None:
    bucket = lab.bucket_of("their-run")
    watching = uploader(lab, stranger.directory / below, quiet_s="0.2")
    for name in STYLES:
        stranger.go_on(name)
    for name in STYLES:
        until(lambda name=name: f"{name}: not complete: " in watching.err, f"it looked at {name}")
    assert bucket.keys("step_") == {}

    for name in STYLES:
        stranger.go_on(name)
    until(lambda: bucket.live_steps() == [*STYLES.values()], "all are durable")

    wrote = stranger.files()
    watching.send(signal.SIGINT)
    assert watching.wait().code == 130
    bucket.require_exact()
    for name, step in STYLES.items():
        expected = {path: data for path, data in wrote.items() if path.split("/")[0] == name}
        for path, data in expected.items():
            assert bucket.get(f"step_{step}/g0/{path.removeprefix(f'{name}/')}") == data
    assert stranger.files() == wrote


def test_once_uploads_what_is_complete_and_names_the_rest(lab: Lab, stranger: Stranger) -> None:
    for name in ("checkpoint-4", "checkpoint_step_1.pt"):
        stranger.go_on(name)
    stranger.go_on("checkpoint_step_1.pt")

    done = uploader(lab, stranger.directory, "--once").wait().require(3)

    line = done.err.splitlines()[-1]
    assert line.startswith("wmtp: error: ")
    assert "checkpoint-4 (trainer_state.json: it is not a JSON object, or not all of it)" in line
    assert lab.bucket_of("their-run").live_steps() == [1]
    stranger.go_on("checkpoint-4")
    uploader(lab, stranger.directory, "--once").wait().require()
    assert lab.bucket_of("their-run").live_steps() == [1, 4]
    lab.bucket_of("their-run").require_exact()


def test_only_as_many_stay_in_the_store_as_were_asked_for(lab: Lab, stranger: Stranger) -> None:
    for name in STYLES:
        stranger.go_on(name)
        stranger.go_on(name)
    wrote = stranger.files()
    uploader(lab, stranger.directory, "--once", "--keep-last", "2").wait().require()
    assert lab.bucket_of("their-run").live_steps() == [5, 6]
    lab.bucket_of("their-run").require_exact()
    assert stranger.files() == wrote
