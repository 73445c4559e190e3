"""How far a transfer is: a bar on a terminal, a line at each tenth elsewhere; on the error output."""

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Transfer:
    """Told of bytes by calling it; shows nothing where ``quiet``.

    Args:
        doing: what is done, for people.
    """

    def __init__(self, doing: str, size_bytes: int, *, quiet: bool = False) -> None:
        self._doing, self._size_bytes, self._quiet = doing, size_bytes, quiet
        self._done_bytes = self._told_tenths = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if not self._quiet and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._doing, total=self._size_bytes)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, size_bytes: int) -> None:
        """So many more bytes are done."""
        self._done_bytes += size_bytes
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=self._done_bytes)
        elif not self._quiet:
            self._tell()

    def _tell(self) -> None:
        tenths = 10 * self._done_bytes // max(self._size_bytes, 1)
        if tenths > self._told_tenths:
            self._told_tenths = tenths
            done_mb, size_mb = self._done_bytes / 1e6, self._size_bytes / 1e6
            print(f"{self._doing}: {done_mb:.1f} of {size_mb:.1f} MB", file=sys.stderr, flush=True)
