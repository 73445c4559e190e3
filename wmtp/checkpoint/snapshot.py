"""Copy the training state to host memory while the next step computes.

``capture`` runs on the training thread and takes at that instant everything that could change before the
fence: small tensors, buffers, and all that is no tensor. ``copy`` runs on the writer thread and takes the
large parameters and optimizer states, which nothing changes before ``optimizer.step()``; the fence in front
of that waits for it. So all of a snapshot is of one moment.

The host memory is one anonymous mapping, laid out as the files will be: the writer writes it as it is.
"""

import mmap
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor, nn

from uploader import layout
from wmtp.checkpoint.shards import Shard, TensorSpec, plan_shards

IMMEDIATE_BYTES = 16 * 1024
"""Tensors smaller than this are copied on the training thread: together they take microseconds."""

PAGE_BYTES = 4096

Groups: TypeAlias = Mapping[str, Mapping[str, Tensor]]
Specs: TypeAlias = dict[str, list[TensorSpec]]


@dataclass(frozen=True, slots=True)
class FileImage:
    """The bytes of one file in the arena, from ``start``; followed by padding to a whole page."""

    file_name: str
    start: int
    size_bytes: int


class Arena:
    """Host memory for one snapshot: the images of all its files, and each tensor as a view into them."""

    def __init__(self, shards: list[Shard]) -> None:
        self.images: list[FileImage] = []
        at = 0
        for shard in shards:
            self.images.append(FileImage(shard.file_name, at, shard.size_bytes))
            at += shard.size_bytes + (-shard.size_bytes % PAGE_BYTES)
        self._memory = mmap.mmap(-1, max(at, PAGE_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.views: dict[str, Tensor] = {}
        for shard, image in zip(shards, self.images, strict=True):
            self._memory[image.start : image.start + len(shard.header)] = shard.header
            for spec, position in shard.tensors:
                self.views[spec.name] = self._view(spec, image.start + position)

    def _view(self, spec: TensorSpec, position: int) -> Tensor:
        if not spec.size_bytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        raw = torch.frombuffer(self._memory, dtype=torch.uint8, count=spec.size_bytes, offset=position)
        return raw.view(spec.dtype).view(spec.shape)

    def warm_up(self) -> None:
        """Touch every page, so that the first copy is no slower than the rest."""
        torch.frombuffer(self._memory, dtype=torch.uint8)[::PAGE_BYTES] |= 0

    def bytes_of(self, image: FileImage, *, padded: bool = False) -> memoryview:
        """The file's bytes; ``padded`` to whole pages for direct writes."""
        size_bytes = image.size_bytes + (-image.size_bytes % PAGE_BYTES if padded else 0)
        return memoryview(self._memory)[image.start : image.start + size_bytes]


class Snapshot:
    """The last captured state of one rank. Reused: one buffer set, as large as the state."""

    def __init__(self, rank: int, shard_size_bytes: int) -> None:
        self._rank, self._shard_size_bytes = rank, shard_size_bytes
        self._specs: Specs = {}
        self._lock = threading.Lock()  # the writer thread may lay out what a first save needs
        self._deferred: tuple[list[Tensor], list[Tensor]] = ([], [])
        self.arena = Arena([])

    def prepare(self, specs: Specs) -> None:
        """Lay out the arena for these tensors and touch it, unless it is laid out for them already."""
        with self._lock:
            if specs != self._specs:
                shards = []
                for kind, wanted in specs.items():
                    file_name = partial(_FILE_NAMES[kind], self._rank)
                    shards += plan_shards(wanted, file_name, self._shard_size_bytes)
                self.arena, self._specs = Arena(shards), specs
                self.arena.warm_up()

    @torch.no_grad()
    def capture(self, groups: Groups, buffers: set[str]) -> None:
        """Take what may change before the fence now, and note the rest for ``copy``.

        Args:
            groups: tensors by name for each kind of file: ``model``, ``optim``, ``extra``.
            buffers: names in ``model`` that the forward pass may change: taken now, whatever their size.
        """
        self.prepare(specs_of(groups))
        now: tuple[list[Tensor], list[Tensor]] = ([], [])
        later: tuple[list[Tensor], list[Tensor]] = ([], [])
        for kind, tensors in groups.items():
            for name, source in tensors.items():
                immediate = source.nbytes < IMMEDIATE_BYTES or (kind == "model" and name in buffers)
                targets, sources = now if immediate else later
                targets.append(self.arena.views[name])
                sources.append(source)
        if now[0]:
            torch._foreach_copy_(*now)
        self._deferred = later

    @torch.no_grad()
    def copy(self) -> None:
        """Copy what ``capture`` left. One call for all of it: it gives up the interpreter's lock once."""
        targets, sources = self._deferred
        if targets:
            torch._foreach_copy_(targets, sources)
        self._deferred = ([], [])


_FILE_NAMES = {
    "model": layout.model_shard,
    "optim": layout.optim_shard,
    "extra": layout.extra_shard,
}


def specs_of(groups: Groups) -> Specs:
    """What the layout depends on: names, types and shapes."""
    return {
        kind: [TensorSpec(name, one.dtype, tuple(one.shape)) for name, one in tensors.items()]
        for kind, tensors in groups.items()
    }


def changeable_buffers(model: nn.Module) -> set[str]:
    """The names of the model's buffers: a forward pass may change them."""
    return {name for name, _ in model.named_buffers()}
