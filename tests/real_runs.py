"""Whole runs as a person starts them: real processes, a real S3 server, a stranger who looks at the bucket.

A ``Lab`` is a directory with a small text, a config and a tiny recipe, from which ``wmtp train`` is started.
``Bucket`` reads the store with plain boto3 and trusts nothing of ours but the format.
"""

import configparser
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import boto3
import pytest
import yaml
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.forked import become
from uploader import checksum, layout
from uploader.location import Location
from uploader.settings import StorageSettings
from wmtp.cli import main
from wmtp.dev_s3 import DevS3
from wmtp.seaweedfs import find_process

T = TypeVar("T")
Place = tuple[Location, StorageSettings]
Mortal = tuple[DevS3, "Lab"]
References = Callable[..., dict[str, bytes]]

RUN = "tiny"
SLOW = pytest.mark.slow, pytest.mark.timeout(600)
"""Of what runs with ``-m slow`` only."""

PATIENCE_S = 240.0
"""A process that hangs fails its test after this; nothing is ever expected to take that long."""
LOOK_S = 0.005
"""How often a condition is looked at: whoever looks takes time from those it looks at."""

RECIPE: dict[str, Any] = {
    "run": {"name": RUN},
    "train": {"max_steps": 40},
    "data": {"train": "./text", "sequence_length": 32, "batch_size": 4},
    "model": {
        "hidden_size": 32, "intermediate_size": 64, "trunk_layers": 1,
        "heads": 2, "attention_heads": 2, "kv_heads": 1,
    },
}  # fmt: skip


def until(condition: Callable[[], T], what: str) -> T:
    """What ``condition`` returns as soon as that is true; a failed test if it never is."""
    ends_s = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > ends_s:
            raise AssertionError(f"this never happened: {what}")
        time.sleep(LOOK_S)
    return found


@dataclass(frozen=True)
class Finished:
    """A process that has ended, and all it said."""

    code: int
    out: str
    err: str

    def saved(self) -> list[int]:
        """The steps that a trainer committed on its disk, in order: on a busy machine it skips some."""
        lines = [line.split() for line in self.out.splitlines()]
        found = [layout.parse_step(words[0]) for words in lines if words[1:2] == ["local"]]
        return [step for step in found if step is not None]

    def require(self, code: int = 0) -> "Finished":
        """Ended with this code, and no traceback anywhere."""
        assert self.code == code, f"exit code {self.code}\n{self.out}\n{self.err}"
        assert "Traceback" not in self.out + self.err
        return self

    def require_error(self, code: int, *says: str) -> str:
        """Ended with one line on standard error that says all of this; returns the line."""
        self.require(code)
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("wmtp: error: "), self.err
        missing = [words for words in says if words not in lines[0]]
        assert not missing, f"{missing} not in: {lines[0]}"
        return lines[0]


class Running:
    """A command of ``wmtp`` as a process, its output going to files so that it never waits for a reader.

    It is forked from a server that has imported torch already: a process of its own in every respect, but it
    starts in no time.

    Args:
        main: what it runs, ``words`` being its arguments.
    """

    def __init__(
        self,
        words: list[str],
        cwd: Path,
        env: Mapping[str, str],
        name: str,
        main: Callable[[], object] = main,
    ) -> None:
        self._out, self._err = cwd / f"{name}.out", cwd / f"{name}.err"
        self._process = _forks.Process(target=become, args=(main, words, cwd, env, self._out, self._err))
        self._process.start()

    @property
    def out(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text() if self._err.exists() else ""

    @property
    def ended(self) -> bool:
        return not self._process.is_alive()

    def ends_within(self, timeout_s: float) -> bool:
        self._process.join(timeout_s)
        return self.ended

    def wait(self) -> Finished:
        self._process.join(PATIENCE_S)
        assert self._process.exitcode is not None, f"it does not end\n{self.out}"
        return Finished(self._process.exitcode, self.out, self.err)

    def kill(self) -> Finished:
        self._process.kill()
        return self.wait()

    def send(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)


_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(
    [
        "pytest",
        "torch._dynamo",
        "uploader.host",
        "uploader.store.s3",
        "wmtp.checkpoint.session",
        "wmtp.cli.places",
        "wmtp.cli.train",
        "wmtp.cli.uploader",
        "wmtp.training.job",
    ]
)


def plain_env(home: Path) -> dict[str, str]:
    """The environment of every process: nothing of AWS in it, one thread an operator."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {**plain, "OMP_NUM_THREADS": "1", "HOME": str(home)}


class Lab:
    """A working directory for runs of the tiny recipe.

    Args:
        location: base of the checkpoints; None keeps them in the directory itself.
    """

    def __init__(
        self, path: Path, location: Location | None = None, storage: StorageSettings | None = None
    ) -> None:
        self.path, self.base, self._storage = path, location, storage
        self.directory = path / "ckpt" / RUN
        self._started: list[Running] = []
        self._numbers = itertools.count()
        paths: dict[str, Any] = {"local_path": "./ckpt", "save_interval": 5, "keep_last": 3, "lease_s": 1.5}
        paths["base_path"] = str(location) if location is not None else "./ckpt"
        config: dict[str, Any] = {"paths": {"checkpoints": paths}, "tensorboard": {"enabled": False}}
        if storage is not None:
            config["storage"] = storage.model_dump(mode="json", exclude_none=True)
        (path / "configs").mkdir(parents=True)
        (path / "configs/config.yaml").write_text(yaml.safe_dump(config))
        (path / "configs/recipe.yaml").write_text(yaml.safe_dump(RECIPE))
        (path / "text").mkdir()
        (path / "text/words.txt").write_text(_text())

    def start(self, *words: str, env: Mapping[str, str] | None = None) -> Running:
        """Start ``wmtp`` with these words, and with ``env`` on top of the environment."""
        name = f"process-{next(self._numbers)}"
        running = Running(list(words), self.path, {**self.env, **(env or {})}, name)
        self._started.append(running)
        return running

    @property
    def env(self) -> dict[str, str]:
        return plain_env(self.path)

    def train(self, *flags: str) -> Finished:
        return self.start("train", *flags).wait()

    @functools.cached_property
    def bucket(self) -> "Bucket":
        """The run's prefix in the store, as a stranger sees it."""
        return self.bucket_of(RUN)

    def bucket_of(self, run: str) -> "Bucket":
        assert self.base is not None and self._storage is not None
        return Bucket(self.base.join(run), self._storage)

    def steps(self) -> list[int]:
        """The steps that are committed on this disk, in order."""
        found = [layout.parse_step(path.parent.name) for path in self.directory.glob("*/node-0000.json")]
        return sorted(step for step in found if step is not None)

    def metrics(self) -> list[dict[str, Any]]:
        """The whole lines of ``metrics.jsonl``; none where there is no such file."""
        with suppress(FileNotFoundError):
            data = (self.directory / "metrics.jsonl").read_bytes()
            return [json.loads(line) for line in data[: data.rfind(b"\n") + 1].splitlines()]
        return []

    def metrics_inode(self) -> int:
        """Changes with each start of a trainer; 0 where there is no file."""
        return _inode(self.directory / "metrics.jsonl")

    def run_file_inode(self) -> int:
        """Changes when a trainer has taken the run over."""
        return _inode(self.directory / "run.json")

    def files_of(self, step: int) -> dict[str, bytes]:
        """The files of a step on this disk but its record, which tells the time."""
        paths = (self.directory / layout.step_name(step)).iterdir()
        return {path.name: path.read_bytes() for path in paths if not layout.is_record(path.name)}

    def status(self) -> dict[str, Any]:
        """``status.json``; empty while there is none."""
        with suppress(FileNotFoundError):
            found: dict[str, Any] = json.loads((self.directory / ".uploader/status.json").read_text())
            return found
        return {}

    def uploaders(self) -> list[int]:
        """The living uploaders of the run."""
        return [pid for pid, words in _processes() if "uploader" in words and str(self.directory) in words]

    def close(self) -> None:
        """End everything that was started here and is still there."""
        for running in self._started:
            if not running.ended:
                running.kill()
        for pid in self.uploaders():
            kill(pid)


def _inode(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_ino
    return 0


def kill(pid: int) -> None:
    """SIGKILL, and wait until the process is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(pid != one for one, _ in _processes()), f"process {pid} is gone")


def end(server: DevS3) -> None:
    """Stop it at once: when it is asked to end, it takes two seconds for that."""
    if (pid := find_process(server.data / "objects")) is not None:
        kill(pid)
    server.stop()


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Every process with its command line; those that only wait to be reaped have none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                if words := (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]:
                    yield int(entry.name), words


def _text() -> str:
    rng = random.Random(0)
    syllables = ["ka", "lo", "mi", "ne", "ru", "so", "ta", "vu"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(12_000)]
    return " ".join(words)


class Bucket:
    """One run's prefix in the store, read with boto3 alone."""

    def __init__(self, location: Location, storage: StorageSettings) -> None:
        credentials = configparser.ConfigParser()
        credentials.read(str(storage.credentials_file))
        self._client = boto3.client(
            "s3",
            endpoint_url=storage.endpoint_url,
            region_name=storage.region,
            verify=storage.ca_bundle,
            config=Config(s3={"addressing_style": "path"}),
            **dict(credentials["default"]),
        )
        self._bucket, self._prefix = location.bucket, f"{location.path}/"

    def keys(self, below: str = "") -> dict[str, int]:
        """Every object below a prefix of the run with its size in bytes."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self._bucket, Prefix=self._prefix + below
        )
        objects = [one for page in pages for one in page.get("Contents", [])]
        return {one["Key"].removeprefix(self._prefix): one["Size"] for one in objects}

    def get(self, key: str) -> bytes | None:
        """An object's bytes; None where there is none."""
        try:
            body: bytes = self._client.get_object(Bucket=self._bucket, Key=self._prefix + key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] == "NoSuchKey":
                return None
            raise
        return body

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket=self._bucket, Key=self._prefix + key, Body=data)

    def uploads(self) -> list[str]:
        """The keys of unfinished multipart uploads."""
        found = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix)
        return [one["Key"] for one in found.get("Uploads", [])]

    def manifest(self) -> dict[str, Any] | None:
        data = self.get("manifest.json")
        return None if data is None else json.loads(data)

    def live_steps(self) -> list[int]:
        """The live steps of the manifest, in order."""
        manifest = self.manifest() or {"live": {}}
        return sorted(entry["step"] for entry in manifest["live"].values())

    def trouble(self, name: str, entry: Mapping[str, Any], *, deep: bool = False) -> str | None:
        """What is wrong with a step the manifest lists; None if every file is there, whole.

        Args:
            deep: also compute each checksum from the object's bytes.
        """
        encoded = self.get(entry["record"])
        if encoded is None:
            return f"{name}: no commit record"
        prefix = entry["record"].removesuffix("checkpoint.json")
        there = self.keys(prefix)
        for file in json.loads(encoded)["files"]:
            key = prefix + file["path"]
            if there.get(key) != file["size_bytes"]:
                return f"{name}: {key} is missing or has another size"
            if deep and checksum.of_bytes(self.get(key) or b"") != file["crc64nvme"]:
                return f"{name}: {key} has other bytes than its record says"
        return None

    def require_exact(self, *, but: tuple[str, ...] = ()) -> None:
        """The bucket holds what the manifest promises, byte for byte, and nothing else.

        Args:
            but: keys that begin so may be there.
        """
        manifest = self.manifest()
        assert manifest is not None
        assert manifest["deleting"] == {}
        entries = manifest["live"] | manifest["superseded"]
        assert [self.trouble(name, entry, deep=True) for name, entry in entries.items()] == [None] * len(
            entries
        )
        wanted = {"manifest.json"}
        for number in range(1, manifest["generation"] + 1):
            wanted.add(f"generations/{number:04d}.json")
        for entry in entries.values():
            prefix = entry["record"].rpartition("/")[0]
            record = json.loads(self.get(entry["record"]) or b"")
            wanted |= {entry["record"], *(f"{prefix}/{file['path']}" for file in record["files"])}
        numbers = range(1, manifest["generation"] + 1)
        beats = {f"generations/{number:04d}.heartbeat.json" for number in numbers}
        there = {key for key in self.keys() if not key.startswith(but)} - beats
        assert there == wanted, f"debris: {sorted(there - wanted)}, missing: {sorted(wanted - there)}"
        assert self.uploads() == []


@pytest.fixture
def lab(tmp_path: Path, s3_place: Place) -> Iterator[Lab]:
    """A lab whose checkpoints go to S3 over HTTP."""
    with contextlib.closing(Lab(tmp_path / "lab", *s3_place)) as opened:
        yield opened


@pytest.fixture
def tls_lab(tmp_path: Path, s3_tls_place: Place) -> Iterator[Lab]:
    """A lab whose checkpoints go to S3 over TLS."""
    with contextlib.closing(Lab(tmp_path / "tls-lab", *s3_tls_place)) as opened:
        yield opened


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Mortal]:
    """A server of one's own, to be killed, and a lab on it."""
    server = DevS3(tmp_path / "mortal-s3")
    server.start()
    server.ensure_bucket("mortal")
    lab = Lab(tmp_path / "lab", Location("mortal", "checkpoints"), server.storage())
    with contextlib.closing(lab):
        yield server, lab
    end(server)


@pytest.fixture(params=["http", pytest.param("tls", marks=pytest.mark.slow)])
def each_lab(request: pytest.FixtureRequest) -> Lab:
    """The one, and where there is time the other."""
    found: Lab = request.getfixturevalue("lab" if request.param == "http" else "tls_lab")
    return found


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> References:
    """What a run with these flags leaves if nothing happens to it: the files of its last step."""

    @functools.cache
    def run(steps: int, *flags: str) -> dict[str, bytes]:
        with contextlib.closing(Lab(tmp_path_factory.mktemp("reference") / "lab")) as lab:
            lab.train("--max-steps", str(steps), *flags).require()
            return lab.files_of(steps)

    return run
