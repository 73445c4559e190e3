"""Progress of a run: a bar where somebody watches, plain lines where not. Only a bar needs rich."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from wmtp.training.tracking import Metric

if TYPE_CHECKING:
    from wmtp.training.bar import Bar


class Progress:
    """Progress of a run, as a context manager.

    Args:
        max_steps: where the run ends.
        began_step: the step it goes on after.
        every: steps from one plain line to the next, and from one measurement of speed to the next.
        tokens_per_step: over all micro-batches.
        quiet: writes nothing: another rank does.
        stream: where to write; standard output by default.
        clock: in seconds, from anywhere.

    Attributes:
        checkpoints: how far they are, in a few words, for the bar.
    """

    def __init__(
        self,
        max_steps: int,
        *,
        began_step: int = 0,
        every: int = 1,
        tokens_per_step: int = 0,
        quiet: bool = False,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.max_steps, self.checkpoints = max_steps, ""
        self._every, self._tokens_per_step = every, tokens_per_step
        self._stream, self._clock, self._quiet = stream or sys.stdout, clock, quiet
        self._measured = (began_step, clock())
        self._speed: dict[str, Metric] = {}
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        if self._stream.isatty() and not self._quiet:
            from wmtp.training.bar import Bar

            bar = Bar(self.max_steps, self._measured[0], self._stream)
            self._bar = None if bar.console.is_dumb_terminal else bar
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """A step was made: move the bar, or write a line if one is due."""
        due = step % self._every == 0 or step == self.max_steps
        if due:
            self._measure_speed(step)
        if self._bar:
            self._bar.show(step, _words({"loss": metrics.get("loss"), **self._speed}), self.checkpoints)
        elif due:
            self.line(step, {**metrics, **self._speed})

    def line(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Write a line with a step and its metrics, due or not."""
        self.note(f"step {step}/{self.max_steps}  {_words(metrics)}")

    def note(self, line: str) -> None:
        """Write a line as it is, above the bar."""
        if self._bar:
            self._bar.note(line)
        elif not self._quiet:
            print(line, file=self._stream, flush=True)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done in this context is no step: its time does not count."""
        began_s = self._clock()
        yield
        last_step, last_s = self._measured
        self._measured = (last_step, last_s + self._clock() - began_s)

    def _measure_speed(self, step: int) -> None:
        """Over the steps since the last time."""
        (last_step, last_s), now_s = self._measured, self._clock()
        per_s = (step - last_step) / max(now_s - last_s, 1e-9)
        self._measured = (step, now_s)
        self._speed = {"steps/s": per_s, "tokens/s": round(per_s * self._tokens_per_step)}


def _words(metrics: Mapping[str, Metric]) -> str:
    """Names and values, numbers to four digits."""
    return "  ".join(f"{name} {_short(value)}" for name, value in metrics.items())


def _short(value: Metric) -> str:
    if isinstance(value, list):
        return "/".join(_short(number) for number in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
