"""The last two lines of a terminal: how far a run is, and its numbers."""

from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TimeRemainingColumn
from rich.text import Text

REDRAWS_PER_S = 4


class Bar(Progress):
    """A bar with a line of numbers below it. Neither ever wraps: what does not fit is cut."""

    def __init__(self, max_steps: int, began_step: int, stream: TextIO) -> None:
        self._numbers = ""
        super().__init__(
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            console=Console(file=stream),
            refresh_per_second=REDRAWS_PER_S,
            expand=True,
        )
        self._steps = self.add_task("", total=max_steps, completed=began_step)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn: both lines."""
        yield self.make_tasks_table(self.tasks)
        yield Text(self._numbers, no_wrap=True, overflow="ellipsis")

    def show(self, step: int, numbers: str, checkpoints: str) -> None:
        """Move on; drawn a few times a second, on a thread of its own."""
        self._numbers = "  ".join(part for part in (numbers, checkpoints) if part)
        self.update(self._steps, completed=step)

    def note(self, line: str) -> None:
        """Write a line above."""
        self.console.print(line, markup=False, highlight=False)
