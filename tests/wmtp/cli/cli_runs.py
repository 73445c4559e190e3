"""What the tests of the commands stand on: small runs on disk, uploaded by the real uploader."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
from typer.testing import CliRunner, Result

from uploader import generation, layout
from uploader.generation import Branch, GenerationFile, Lineage, Owner
from uploader.host import serve_run
from uploader.layout import RunDirectory
from uploader.location import Location
from uploader.manifest import Manifest
from uploader.record import FileRecord, Metrics, NodeRecord
from uploader.retention import Retention
from uploader.run import RunFile
from uploader.settings import StorageSettings
from uploader.store import open_store
from wmtp.cli import make_app

NOW = datetime(2026, 1, 1, tzinfo=UTC)
FILES = {"model-rank00000-0001.safetensors": b"weights" * 100, "state-rank00000.json": b"{}"}
MODEL = "model-rank00000-0001.safetensors"
STEP_FIELDS = {"name", "step", "generation", "states", "size_bytes", "created_at", "metrics"}
RUN_FIELDS = {"run", "directory", "store", "errors"}
RETENTION = Retention(keep_last=10)


def wmtp(*arguments: object) -> Result:
    """Run a command in this process. Whatever it meets, a person sees no traceback."""
    result = CliRunner().invoke(make_app(), [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def start_wmtp(*arguments: object) -> "subprocess.Popen[str]":
    """A command as a process of its own, which can get signals."""
    return subprocess.Popen(
        [sys.executable, "-m", "wmtp", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def as_json(result: Result) -> Any:
    """The one line of JSON that a command printed."""
    (line,) = result.stdout.splitlines()
    return json.loads(line)


def states(run: object) -> dict[str, list[str]]:
    listed = as_json(wmtp("checkpoints", "ls", run, "--json"))
    return {step["name"]: step["states"] for step in listed["steps"]}


def one_error(result: Result, *words: str) -> str:
    """The one line of error that a command printed, which says all these words."""
    (line,) = result.stderr.splitlines()
    assert line.startswith("wmtp: error: ")
    for word in words:
        assert word in line
    return line


@dataclass
class Run:
    """A run directory, its store, and the generation that writes to it."""

    path: Path
    location: Location
    storage: StorageSettings
    number: int = 0
    lineage: Lineage = field(default_factory=Lineage)

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.path)

    @property
    def store(self) -> Path:
        """The directory that is the store."""
        return self.location.directory

    def start(self, after_step: int | None = None) -> None:
        """Take the next generation, as a trainer does, fresh or after a step."""
        self.number += 1
        kept = [] if after_step is None else self.lineage.branches
        branch = Branch(generation=self.number, after_step=after_step)
        self.lineage = Lineage(branches=[*kept, branch])
        owner = Owner(host="host", pid=self.number, user="me")
        claim: dict[str, Any] = {"generation": self.number, "lineage": self.lineage, "owner": owner}
        file = GenerationFile(run=self.path.name, created_at=NOW, **claim)

        async def take() -> None:
            async with open_store(self.location, self.storage) as store:
                await generation.take(store, file)

        anyio.run(take)
        self.path.mkdir(parents=True, exist_ok=True)
        run_file = RunFile(
            run=self.path.name,
            destination=str(self.location),
            storage=self.storage,
            retention=RETENTION,
            **claim,
        )
        run_file.write(self.directory)

    def save(self, step: int, files: Mapping[str, bytes] = FILES, metrics: Metrics | None = None) -> Path:
        """Commit a step on this disk; one of its number that is there is superseded and goes."""
        return save_step(self.path, step, self.number, files, metrics)

    def upload(self) -> None:
        """Make what waits durable."""
        anyio.run(lambda: serve_run(self.path, once=True))

    def mark_deleting(self, step: int) -> None:
        """Begin to prune a stored step, as an uploader that dies there does."""
        path = self.store / layout.MANIFEST_KEY
        index = Manifest.model_validate_json(path.read_bytes())
        entry = index.live.pop(layout.step_name(step))
        index.deleting[entry.name] = entry
        path.write_bytes(index.encode())

    def use_dead_endpoint(self, credentials_file: Path | None = None) -> None:
        """Have ``run.json`` name an S3 server that nobody runs."""
        storage = StorageSettings(
            endpoint_url="http://127.0.0.1:1",
            region="us-east-1",
            credentials_file=None if credentials_file is None else str(credentials_file),
        )
        run_file = RunFile.read(self.directory)
        assert run_file is not None
        changes = {"destination": "s3://bucket/demo", "storage": storage}
        run_file.model_copy(update=changes).write(self.directory)

    def use_stopped_server(self, parent: Path) -> Path:
        """Have ``run.json`` name a development server that does not run; returns its data directory."""
        data = parent / ".dev-s3"
        data.mkdir()
        (data / "supervisor.lock").touch()
        (data / "credentials").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        self.use_dead_endpoint(data / "credentials")
        return data

    def forget_here(self, step: int) -> None:
        """Lose the copy on this disk."""
        directory = self.directory.step(step)
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()


def save_step(
    run: Path,
    step: int,
    number: int = 0,
    files: Mapping[str, bytes] = FILES,
    metrics: Metrics | None = None,
) -> Path:
    record = NodeRecord(
        run=run.name,
        step=step,
        generation=number,
        world_size=1,
        created_at=NOW + timedelta(seconds=step),
        files=[FileRecord.of_bytes(name, data) for name, data in files.items()],
        metrics={"loss": 2.5} if metrics is None else metrics,
        fingerprints={"model": "abc"},
        node=0,
        nodes=1,
        ranks=[0],
    )
    path = RunDirectory(run).step(step)
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    (path / layout.node_record(0)).write_bytes(record.encode())
    return path


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
