"""Copy tensors into host memory: on CPU by a background thread, on CUDA by a stream of their own.

On CPU the copy itself is ``finish``, on the copier's thread: one ``_foreach_copy_`` for many tensors, which
gives up the interpreter's lock once, not a loop, which would ask for it back for each.

On CUDA ``begin`` only enqueues. What the next forward may change is copied on the current stream, in front
of it; the rest on a side stream. The fence makes the current stream wait for that on the device: the host
does not wait. ``finish``, on the copier's thread, waits for the events.

Either way files become whole one after the other, so that the first is written while others are copied.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from operator import attrgetter

import torch
from torch import Tensor

BATCH_BYTES = 256 * 1024**2
"""What is copied by one call. After each the copier waits for the interpreter's lock, 5 ms at worst."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A tensor, and where it goes.

    Attributes:
        immediate: it must be taken at once.
        file: the number of the file whose bytes it will be, from 0.
    """

    target: Tensor
    source: Tensor
    immediate: bool
    file: int


@dataclass(slots=True)
class _Pairs:
    """Targets and sources, as the copies take them."""

    targets: list[Tensor] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)

    def add(self, copy: Copy) -> None:
        self.targets.append(copy.target)
        self.sources.append(copy.source)

    def copy(self, *, non_blocking: bool = False) -> None:
        if self.targets:
            torch._foreach_copy_(self.targets, self.sources, non_blocking=non_blocking)


@dataclass(slots=True)
class _Batch:
    """What is copied by one call; after that the files up to ``file`` are whole."""

    file: int
    size_bytes: int = 0
    host: _Pairs = field(default_factory=_Pairs)
    device: _Pairs = field(default_factory=_Pairs)
    event: torch.cuda.Event | None = None


class CopyPlan:
    """The copies of one snapshot; made once for the same tensors and used again."""

    def __init__(self, copies: Iterable[Copy]) -> None:
        self._now, self._device_now, self._batches = _Pairs(), _Pairs(), list[_Batch]()
        for copy in sorted(copies, key=attrgetter("file")):
            if copy.immediate:
                (self._device_now if copy.source.is_cuda else self._now).add(copy)
                continue
            batch = self._batch_of(copy.file)
            (batch.device if copy.source.is_cuda else batch.host).add(copy)
            batch.size_bytes += copy.source.nbytes
        self._host_waits = any(batch.host.targets for batch in self._batches)
        on_device = bool(self._device_now.targets) or any(batch.device.targets for batch in self._batches)
        self._side = torch.cuda.Stream() if on_device else None  # type: ignore[no-untyped-call]
        self._taken: torch.cuda.Event | None = None

    def _batch_of(self, file: int) -> _Batch:
        """The last batch, unless it is large enough: then a new one, with this file as its first."""
        last = self._batches[-1] if self._batches else None
        if last is None or (last.file < file and last.size_bytes >= BATCH_BYTES):
            last = _Batch(file)
            self._batches.append(last)
        last.file = file
        return last

    @torch.no_grad()
    def begin(self) -> None:
        """On the training thread: take what must be taken at once, start the rest."""
        self._now.copy()
        if self._side is not None:
            self._device_now.copy(non_blocking=True)
            current = torch.cuda.current_stream()
            self._taken = current.record_event()
            self._side.wait_stream(current)  # the optimizer step that made these values
            with torch.cuda.stream(self._side):
                for batch in self._batches:
                    batch.device.copy(non_blocking=True)
                    batch.event = self._side.record_event()

    def order(self) -> bool:
        """On the training thread, in front of the next change: order device work after the copies.

        Returns:
            Whether the host must wait for ``finish`` as well, for there are tensors on CPU to copy.
        """
        if self._side is not None:
            torch.cuda.current_stream().wait_stream(self._side)
        return self._host_waits

    @torch.no_grad()
    def finish(self, landing: "Landing") -> None:
        """On the copier's thread: copy the rest, and tell which files are whole in host memory."""
        if self._taken is not None:
            self._taken.synchronize()
        for batch in self._batches:
            batch.host.copy()
            if batch.event is not None:
                batch.event.synchronize()
            landing.reached(batch.file + 1)


class Landing:
    """How many files of a snapshot are whole: told by the copier, waited for by those who write.

    Attributes:
        failure: what kept the others from it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._files, self._ended = 0, False
        self.failure: BaseException | None = None

    def reached(self, files: int) -> None:
        """The first ``files`` files are whole."""
        with self._changed:
            self._files = files
            self._changed.notify_all()

    def end(self, failure: BaseException | None = None) -> None:
        """All files are whole, or will never be."""
        with self._changed:
            self._ended, self.failure = True, failure
            self._changed.notify_all()

    def wait(self, files: int | None = None) -> None:
        """Wait until the first ``files`` files are whole, or, whatever they are, for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or (files is not None and files <= self._files))


def pin(memory: Tensor) -> None:
    """Let CUDA copy into this host memory while the host goes on; nothing where CUDA is not in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)  # type: ignore[no-untyped-call]
        torch.cuda.check_error(int(code))
