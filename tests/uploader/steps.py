"""What the uploader's tests stand on: local steps, claims, stores that crash, services without waiting."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

import anyio.lowlevel

from uploader import generation, layout
from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.errors import StoreDenied
from uploader.generation import Branch, Claim, GenerationFile, Lineage, Owner
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Manifest
from uploader.manifest_file import ManifestFile
from uploader.record import CommitRecord, FileRecord, Metrics, NodeRecord
from uploader.retention import Retention
from uploader.retry import RetryPolicy
from uploader.run import RunFile
from uploader.service import Clocks, RunService
from uploader.settings import UploadSettings
from uploader.status import Status, StatusFile
from uploader.store.memory import Fault, MemoryStore, Operation
from uploader.watch import LocalStep, read_step

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = {"model-rank00000-0001.safetensors": b"weights" * 100, "state-rank00000.json": b"{}"}
IN_PARTS = {**SMALL, "optim-rank00000-0001.safetensors": b"o" * (BLOCK_SIZE_BYTES + 5), "empty.bin": b""}


def node_record(
    step: int,
    number: int = 1,
    *,
    files: Mapping[str, bytes] = SMALL,
    run: str = "run",
    node: int = 0,
    nodes: int = 1,
    metrics: Metrics | None = None,
) -> NodeRecord:
    """What a node says of a step of generation ``number``."""
    return NodeRecord(
        run=run,
        step=step,
        generation=number,
        world_size=nodes,
        created_at=NOW + timedelta(seconds=step),
        files=[FileRecord.of_bytes(name, data) for name, data in files.items()],
        metrics=metrics or {},
        node=node,
        nodes=nodes,
        ranks=[node],
    )


def make_step(
    directory: RunDirectory,
    step: int,
    number: int = 1,
    *,
    files: Mapping[str, bytes] = SMALL,
    run: str = "run",
    node: int = 0,
    nodes: int = 1,
    metrics: Metrics | None = None,
) -> LocalStep:
    """A committed local step, the way a trainer leaves it."""
    record = node_record(step, number, files=files, run=run, node=node, nodes=nodes, metrics=metrics)
    temporary, target = directory.temporary(step, number), directory.step(step)
    temporary.mkdir(parents=True)
    for name, data in files.items():
        (temporary / name).write_bytes(data)
    (temporary / layout.node_record(node)).write_bytes(record.encode())
    temporary.rename(target)
    return read_step(target, node=node)


def lineage(*branches: tuple[int, int | None]) -> Lineage:
    return Lineage(branches=[Branch(generation=number, after_step=after) for number, after in branches])


def claim(*branches: tuple[int, int | None]) -> Claim:
    """The claim of the last of these generations, each with the step after which it began."""
    number = branches[-1][0]
    owner = Owner(host=f"host{number}", pid=number, user="me")
    return Claim(generation=number, lineage=lineage(*branches), owner=owner)


FIRST = claim((1, None))


def generation_file(one: Claim) -> GenerationFile:
    return GenerationFile(run="run", created_at=NOW, **dict(one))


def run_file(
    one: Claim = FIRST,
    *,
    destination: str = "file:///elsewhere/run",
    retention: Retention | None = None,
    upload: UploadSettings | None = None,
    node: int = 0,
    nodes: int = 1,
) -> RunFile:
    return RunFile(
        run="run",
        destination=destination,
        retention=retention or Retention(),
        upload=upload or UploadSettings(),
        node=node,
        nodes=nodes,
        **dict(one),
    )


async def taken(store: MemoryStore, *claims: Claim) -> None:
    """Take the generations, as trainers do before anything else."""
    for one in claims:
        await generation.take(store, generation_file(one))


@dataclass
class Crash:
    """The process dies at operation ``at`` (from 0): no request of it reaches the store any more."""

    at: int
    when: Literal["before", "after"] = "before"
    seen: int = 0
    struck: bool = False

    def __call__(self, operation: Operation) -> Fault | None:
        at, self.seen = self.seen, self.seen + 1
        if at < self.at:
            return None
        self.struck = True
        when = self.when if at == self.at else "before"
        return Fault(StoreDenied("the process died", subject=operation.key), when)


async def no_wait(_: float) -> None:
    await anyio.lowlevel.checkpoint()


@dataclass
class Time:
    """A clock that stands still until told."""

    s: float = 1000.0
    clocks: Clocks = field(init=False)

    def __post_init__(self) -> None:
        retry = RetryPolicy(sleep=no_wait, clock=lambda: self.s)
        self.clocks = Clocks(lambda: NOW + timedelta(seconds=self.s), lambda: self.s, retry)


def make_service(
    directory: RunDirectory, store: MemoryStore, run: RunFile | None = None, time: Time | None = None
) -> RunService:
    """A fresh uploader of the directory, as after a start of its process."""
    run, time = run or run_file(), time or Time()
    directory.uploader_directory.mkdir(parents=True, exist_ok=True)
    first = Status(run=run.run, destination=run.destination, pid=1, updated_at=NOW)
    return RunService(directory, run, store, StatusFile(directory, time.clocks.now, first), time.clocks)


async def keys(store: MemoryStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def uploads(store: MemoryStore) -> list[str]:
    return [upload.key async for upload in store.list_uploads()]


async def assert_whole(store: MemoryStore) -> Manifest | None:
    """Nothing half visible: each record's files are there, and each entry that may be read has its record."""
    there = {info.key: info async for info in store.list()}
    for key in there:
        if layout.parse_commit_record_key(key) is not None:
            record = CommitRecord.model_validate_json((await store.get(key))[0])
            for file in record.files:
                stored = there[key.removesuffix(layout.COMMIT_RECORD_NAME) + file.path]
                assert (stored.size_bytes, stored.crc64nvme) == (file.size_bytes, file.crc64nvme)
    index = await ManifestFile(store, "run", RunKeys()).read()
    if index is not None:
        assert {one.record for one in [*index.live.values(), *index.superseded.values()]} <= there.keys()
    return index


def objects_of(*steps: LocalStep) -> set[str]:
    """The keys that these steps have when they are committed."""
    names: set[str] = set()
    for one in steps:
        prefix = RunKeys().step_prefix(one.step, one.generation)
        names |= {prefix + file.path for file in one.record.files}
        names |= {prefix + layout.node_record(one.record.node), prefix + layout.COMMIT_RECORD_NAME}
    return names
