"""Stop at a step's end when asked to: SIGTERM from a scheduler, Ctrl-C from a person."""

import signal
from types import FrameType, TracebackType
from typing import Self


class StopRequest:
    """While entered, a first SIGINT or SIGTERM is noted; the next one raises ``KeyboardInterrupt``.

    Attributes:
        signal: the signal that asked; None while nobody has.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
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

    def no_more_steps(self) -> None:
        """There is no step's end to wait for any more: from now on the first signal interrupts."""
        self._interrupt = True

    def _note(self, number: int, _: FrameType | None) -> None:
        interrupt, self.signal = self._interrupt or self.signal is not None, signal.Signals(number)
        if interrupt:
            raise KeyboardInterrupt
