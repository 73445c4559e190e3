"""Copy tensors into host memory: on CPU by a background thread, on CUDA by a stream of their own.

On CPU the copy itself is ``finish``, on the writer thread: one ``_foreach_copy_`` for all, which gives up the
interpreter's lock once, not a loop, which would ask for it back for each tensor.

On CUDA ``begin`` only enqueues. What the next forward may change is copied on the current stream, in front
of it; the rest on a side stream. The fence makes the current stream wait for that on the device: the host
does not wait. ``finish``, on the writer thread, waits for the events.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

Copies = tuple[list[Tensor], list[Tensor]]
"""Targets and sources, pairwise."""


class CopyPlan:
    """The copies of one snapshot; made once for the same tensors and used again.

    Args:
        copies: target, source, and whether it must be taken at once.
    """

    def __init__(self, copies: Iterable[tuple[Tensor, Tensor, bool]]) -> None:
        self._now: Copies = ([], [])
        self._later: Copies = ([], [])
        self._device_now: Copies = ([], [])
        self._device_later: Copies = ([], [])
        for target, source, immediate in copies:
            if source.is_cuda:
                targets, sources = self._device_now if immediate else self._device_later
            else:
                targets, sources = self._now if immediate else self._later
            targets.append(target)
            sources.append(source)
        self._events: list[torch.cuda.Event] = []
        self._on_device = bool(self._device_now[0] or self._device_later[0])
        self._side = torch.cuda.Stream() if self._on_device else None  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def begin(self) -> None:
        """On the training thread: take what must be taken at once, start the rest."""
        _copy(self._now)
        if self._side is not None:
            _copy(self._device_now, non_blocking=True)
            current = torch.cuda.current_stream()
            self._side.wait_stream(current)  # the optimizer step that made these values
            with torch.cuda.stream(self._side):
                _copy(self._device_later, non_blocking=True)
            self._events = [current.record_event(), self._side.record_event()]

    def order(self) -> bool:
        """On the training thread, in front of the next change: order device work after the copies.

        Returns:
            Whether the host must wait for ``finish`` as well, for there are tensors on CPU to copy.
        """
        for event in self._events:
            torch.cuda.current_stream().wait_event(event)
        return bool(self._later[0])

    @torch.no_grad()
    def finish(self) -> None:
        """On the writer thread: copy the rest, and wait until everything is in host memory."""
        _copy(self._later)
        for event in self._events:
            event.synchronize()
        self._events = []


def _copy(copies: Copies, *, non_blocking: bool = False) -> None:
    if copies[0]:
        torch._foreach_copy_(*copies, non_blocking=non_blocking)


def pin(memory: Tensor) -> None:
    """Let CUDA copy into this host memory while the host goes on; nothing where CUDA is not in use."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.nbytes, 0)  # type: ignore[no-untyped-call]
        torch.cuda.check_error(int(code))
