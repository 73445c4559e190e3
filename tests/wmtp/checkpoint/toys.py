"""What the checkpoint tests stand on: a small model and its loop, steps on disk and in a store."""

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from uploader import generation, manifest
from uploader.commit import commit
from uploader.flow import Flow
from uploader.generation import Branch, Claim, GenerationFile, Lineage, Owner
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.manifest import Entry
from uploader.manifest_file import ManifestFile
from uploader.settings import UploadSettings
from uploader.store.base import ObjectStore
from uploader.watch import LocalStep, read_step
from wmtp.checkpoint.disk import Disk, FileSource
from wmtp.checkpoint.writer import Description, write_checkpoint

NOW = datetime(2026, 1, 1, tzinfo=UTC)
OPTIMIZERS: dict[str, Callable[[Iterable[Any]], Optimizer]] = {
    "sgd": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9),
    "adamw": lambda parameters: AdamW(parameters, lr=0.01),
    "adamw-foreach": lambda parameters: AdamW(parameters, lr=0.01, foreach=True),
    "adamw-fused": lambda parameters: AdamW(parameters, lr=0.01, fused=True),
}


class Net(nn.Module):
    """Parameters, buffers that the forward changes, and a use of the random generator."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.drop = nn.Dropout(0.2)
        self.last = nn.Linear(width, 1)

    def forward(self, batch: Tensor) -> Tensor:
        result: Tensor = self.last(self.drop(torch.relu(self.norm(self.first(batch)))))
        return result


def make_net(seed: int = 0, width: int = 8) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def train_step(model: nn.Module, *optimizers: Optimizer, before: Callable[[], object] = lambda: None) -> None:
    """One step on a batch that the random generator of the process gives."""
    model(torch.randn(16, 4)).square().mean().backward()
    before()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, bytes]:
    """A tensor as what it is made of: equal only where every bit is."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, flat.numpy().tobytes()


def frozen(value: Any) -> Any:
    """A tree with its tensors as ``bits``, so that ``==`` compares bit for bit, with types, and NaN too."""
    match value:
        case Tensor():
            return bits(value)
        case dict():
            return {key: frozen(one) for key, one in value.items()}
        case list() | tuple():
            return type(value), [frozen(one) for one in value]
    return type(value), repr(value)


def describe(step: int, number: int = 1, *, run: str = "run") -> Description:
    return Description(
        run=run,
        step=step,
        generation=number,
        created_at=NOW + timedelta(seconds=step),
        metrics={"loss": 1.0 / (step + 1)},
        fingerprints={"model": "toy"},
    )


def sources(**data: bytes) -> list[FileSource]:
    return [FileSource(f"{name}.bin", memoryview(one)) for name, one in data.items()]


def make_step(
    directory: RunDirectory, step: int, number: int = 1, *, run: str = "run", size_bytes: int = 0
) -> LocalStep:
    """A step committed locally, by the writer itself. Its one file says which it is, and may be large."""
    files = sources(data=f"step {step} of generation {number}".encode().ljust(size_bytes))
    Disk().run(write_checkpoint(directory, files, describe(step, number, run=run)))
    return read_step(directory.step(step))


def damage(path: Path) -> None:
    """Change a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def claim(*branches: tuple[int, int | None]) -> Claim:
    """The claim of the last of these generations, each with the step after which it began."""
    lineage = Lineage(branches=[Branch(generation=number, after_step=after) for number, after in branches])
    number = branches[-1][0]
    return Claim(generation=number, lineage=lineage, owner=Owner(host="there", pid=number, user="them"))


async def upload(store: ObjectStore, owner: Claim, *steps: LocalStep, keys: RunKeys | None = None) -> None:
    """What the uploader of a claim does with these steps."""
    keys = keys or RunKeys()
    file = ManifestFile(store, steps[0].record.run, keys)
    for step in steps:
        flow = Flow(UploadSettings(part_size_bytes=8 * 1024**2, parts_in_flight=2))
        record = await commit(
            step, store, keys, flow, Journal(RunDirectory(step.path.parent)), lambda _: None
        )
        assert record is not None
        entry = Entry.of(record, keys)
        await file.update(lambda index, entry=entry: manifest.committed(index, entry, owner))  # type: ignore[misc]


async def take(store: ObjectStore, *claims: Claim, run: str = "run") -> None:
    """Take the generations, as trainers do before anything else."""
    for one in claims:
        await generation.take(store, GenerationFile(run=run, created_at=NOW, **dict(one)))


async def keys_of(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key async for info in store.list(prefix)]


async def no_wait(_: float) -> None:
    await anyio.lowlevel.checkpoint()


class Counter:
    """The smallest thing with a state of its own."""

    def __init__(self, value: int = 0) -> None:
        self.value = value

    def state_dict(self) -> Mapping[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.value = state["value"]
