"""Local steps go by way of the trash: a rename at once, and durable; deleting takes its time."""

from collections.abc import Iterable

from anyio import to_thread

from uploader import below, files, layout
from uploader.layout import RunDirectory
from uploader.watch import LocalStep


async def discard_local(directory: RunDirectory, steps: Iterable[LocalStep]) -> list[int]:
    """Move local steps to the trash, and return which went.

    A step that a loader holds (a shared lock on its directory) is left for the next time.
    """
    return [local.step for local in steps if await to_thread.run_sync(_discard, directory, local)]


def _discard(directory: RunDirectory, local: LocalStep) -> bool:
    """Only the step that is meant goes: a rewind may have put another one in its place."""

    def meant() -> bool:
        return below.read_small(local.path / layout.node_record(local.record.node)) == local.encoded

    with files.disk_errors("pruning", local.path):
        return files.discard_unless_read(local.path, directory.trash, meant=meant)


async def empty_trash(directory: RunDirectory) -> None:
    """Delete what was moved there. Whoever is cancelled here leaves it to a thread that goes on."""
    with files.disk_errors("emptying", directory.trash):
        await to_thread.run_sync(files.empty_trash, directory.trash, abandon_on_cancel=True)
