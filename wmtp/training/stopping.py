"""Stop at a step's end when asked to: SIGTERM from a scheduler, Ctrl-C from a person."""

import signal
from collections.abc import Iterable
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """While entered, a first SIGINT or SIGTERM is noted; the next one raises ``KeyboardInterrupt``.

    Args:
        alone: whether no other rank has to stop at the same step.

    Attributes:
        noted: the signal that this process got; None while it got none.
        signal: the one that the run ends for: alone, what is noted; else what the ranks agreed on.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.noted: signal.Signals | None = None
        self.signal: signal.Signals | None = None
        self._alone = alone
        self._interrupt = False
        self._former: dict[signal.Signals, object] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def exit_code(self) -> int:
        """What a shell reports for the signal: 130 for Ctrl-C, 143 for SIGTERM; 0 without one."""
        return 128 + self.signal if self.signal is not None else 0

    def agree(self, noted: Iterable[int]) -> None:
        """End the run where any rank got a signal: SIGTERM, if one got that.

        Args:
            noted: the number of each rank's signal, 0 without one; in any order.
        """
        strongest = max(noted)
        self.signal = signal.Signals(strongest) if strongest else self.signal

    def no_more_steps(self) -> None:
        """There is no step's end to wait for any more: from now on the first signal interrupts."""
        self._interrupt = True

    def _note(self, number: int, _: FrameType | None) -> None:
        interrupt, self.noted = self._interrupt or self.noted is not None, signal.Signals(number)
        if self._alone or interrupt:
            self.signal = self.noted
        if interrupt:
            raise KeyboardInterrupt
