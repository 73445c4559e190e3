"""Copy the training state to host memory while the next step computes.

``capture`` runs on the training thread and takes at that instant everything that could change before the
fence: buffers and counters. ``copy`` runs on a thread of its own and takes parameters and optimizer states,
which nothing changes before ``optimizer.step()``; the fence in front of that waits for it. So all of a
snapshot is of one moment.

The host memory is one anonymous mapping, laid out as the files will be: the writer writes it as it is.
"""

import mmap
import operator
import threading
from collections import Counter
from collections.abc import Callable, Set
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from uploader import layout
from uploader.errors import WmtpError
from wmtp.checkpoint.copying import Copy, CopyPlan, Landing, pin
from wmtp.checkpoint.parts import NOWHERE, Groups, Offsets
from wmtp.checkpoint.shards import Shard, TensorSpec, plan_shards, shard_limit

IMMEDIATE_BYTES = 16 * 1024
"""Extra tensors smaller than this are taken at once: they take microseconds."""

PAGE_BYTES = 4096
WARM_UP_BYTES = 64 * 1024**2

Specs: TypeAlias = dict[str, list[TensorSpec]]


@dataclass(frozen=True, slots=True)
class FileImage:
    """The bytes of one file in the arena, from ``start``; followed by padding to a whole page."""

    file_name: str
    start: int
    size_bytes: int


class Arena:
    """Host memory for one snapshot: the images of all its files, and each tensor as a view into them.

    Attributes:
        trained: the names of the files that hold what is trained, and nothing else.
        views: the tensors, by name.
        file_of: the number of the file that each is in.
    """

    def __init__(self, shards: list[Shard], *, trained: Set[str] = frozenset()) -> None:
        self.trained = trained
        self.images: list[FileImage] = []
        at = 0
        for shard in shards:
            self.images.append(FileImage(shard.file_name, at, shard.size_bytes))
            at += shard.size_bytes + (-shard.size_bytes % PAGE_BYTES)
        self._memory = mmap.mmap(-1, max(at, PAGE_BYTES), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):  # a five-hundredth of the page faults
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        pin(torch.frombuffer(self._memory, dtype=torch.uint8))
        self.views: dict[str, Tensor] = {}
        self.file_of: dict[str, int] = {}
        for number, (shard, image) in enumerate(zip(shards, self.images, strict=True)):
            self._memory[image.start : image.start + len(shard.header)] = shard.header
            for spec, position in shard.tensors:
                self.views[spec.name] = self._view(spec, image.start + position)
                self.file_of[spec.name] = number

    def _view(self, spec: TensorSpec, position: int) -> Tensor:
        if not spec.size_bytes:
            return torch.empty(spec.shape, dtype=spec.dtype)
        raw = torch.frombuffer(self._memory, dtype=torch.uint8, count=spec.size_bytes, offset=position)
        return raw.view(spec.dtype).view(spec.shape)

    def warm_up(self, stop: Callable[[], bool]) -> None:
        """Touch every page, so that the first copy is no slower than the rest.

        Args:
            stop: asked now and then: a copy that has come meanwhile touches the pages itself.
        """
        whole = torch.frombuffer(self._memory, dtype=torch.uint8)
        for start in range(0, len(whole), WARM_UP_BYTES):
            if stop():
                return
            whole[start : start + WARM_UP_BYTES : PAGE_BYTES] |= 0

    def bytes_of(self, image: FileImage, *, padded: bool = False) -> memoryview:
        """The file's bytes; ``padded`` to whole pages for direct writes."""
        size_bytes = image.size_bytes + (-image.size_bytes % PAGE_BYTES if padded else 0)
        return memoryview(self._memory)[image.start : image.start + size_bytes]


class Snapshot:
    """The last captured state of one rank. Reused: one buffer set, as large as the state."""

    def __init__(self, rank: int, shard_size_bytes: int) -> None:
        self._rank, self._shard_size_bytes = rank, shard_size_bytes
        self._lock = threading.Lock()  # the writer thread may lay out what a first save needs
        self._specs: Specs | None = None
        self._captured = False
        self._sources: list[Tensor] = []
        self._shapes: list[tuple[torch.Size, torch.dtype]] = []
        self._plan = CopyPlan([])
        self.arena = Arena([])

    def prepare(self, specs: Specs) -> None:
        """Lay out the arena for these tensors and touch it, unless it is laid out for them already."""
        with self._lock:
            self._lay_out(specs)
            arena = self.arena
        arena.warm_up(lambda: self._captured)

    def _lay_out(self, specs: Specs) -> None:
        if specs != self._specs:
            _check_names(specs)
            model = partial(layout.model_shard, self._rank)
            optim, extra = partial(layout.optim_shard, self._rank), partial(layout.extra_shard, self._rank)
            total = sum(spec.size_bytes for wanted in specs.values() for spec in wanted)
            limit = shard_limit(total, self._shard_size_bytes)
            # What is trained has files of its own, so that their checksums tell whether anything was.
            trained = plan_shards(specs["model"], model, limit)
            frozen = plan_shards(specs["frozen"], model, limit, first=len(trained) + 1)
            rest = plan_shards(specs["optim"], optim, limit) + plan_shards(specs["extra"], extra, limit)
            self.arena = Arena([*trained, *frozen, *rest], trained={shard.file_name for shard in trained})
            self._specs, self._shapes = specs, []  # what was planned was for the old arena

    def capture(self, groups: Groups, buffers: frozenset[str], offsets: Offsets = NOWHERE) -> Arena:
        """Take what may change before the fence now, and note the rest for ``copy``.

        Args:
            buffers: names in ``model`` that the forward pass may change: taken now, whatever their size.
            offsets: of tensors that are parts, where in the whole they begin.

        Returns:
            Where all of it will lie, which need not be ``arena`` any more when that is laid out anew.
        """
        self._captured = True
        sources = [one for tensors in groups.values() for one in tensors.values()]
        shapes = [(one.shape, one.dtype) for one in sources]  # assigning to ``.data`` keeps the object only
        with self._lock:
            if shapes != self._shapes or not all(map(operator.is_, sources, self._sources)):
                self._lay_out(specs_of(groups, offsets))
                self._plan = CopyPlan(
                    Copy(
                        target=self.arena.views[name],
                        source=one,
                        immediate=name in buffers or _is_counter(kind, one),
                        file=self.arena.file_of[name],
                    )
                    for kind, tensors in groups.items()
                    for name, one in tensors.items()
                )
                self._sources, self._shapes = sources, shapes
            arena = self.arena
        self._plan.begin()
        return arena

    def order(self) -> bool:
        """Make later device work wait for the copy; whether the host has to wait for it, too."""
        return self._plan.order()

    def copy(self, landing: Landing) -> None:
        """Copy what ``capture`` left, until all of it is in host memory; tells which files are whole."""
        self._plan.finish(landing)


def _is_counter(kind: str, tensor: Tensor) -> bool:
    """Small state that is neither the model's nor an optimizer's: nobody knows when it changes."""
    return kind == "extra" and tensor.nbytes < IMMEDIATE_BYTES


def _check_names(specs: Specs) -> None:
    """Tensors share one namespace; a submodule named ``optim`` or ``extra`` could collide.

    Raises:
        WmtpError: two tensors have one name.
    """
    counts = Counter(spec.name for wanted in specs.values() for spec in wanted)
    name, count = max(counts.items(), key=lambda item: item[1], default=("", 0))
    if count > 1:
        hint = "rename the submodule: names that begin with optim. or extra. are taken"
        raise WmtpError("two tensors have this name", doing="saving", subject=name, hint=hint)


def specs_of(groups: Groups, offsets: Offsets = NOWHERE) -> Specs:
    """What the layout depends on: names, types, shapes, and of parts where they begin."""
    return {
        kind: [
            TensorSpec(name, one.dtype, tuple(one.shape), offsets.get(name)) for name, one in group.items()
        ]
        for kind, group in groups.items()
    }
