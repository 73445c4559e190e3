"""What an uploader may have in flight: parts at once, over all files of a step."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from uploader.settings import UploadSettings


class Flow:
    """The bound on parts in flight. Waiting for a slot is first come, first served."""

    def __init__(self, settings: UploadSettings) -> None:
        self.part_size_bytes = settings.part_size_bytes
        self._slots = anyio.Semaphore(settings.parts_in_flight)

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """One part in flight, waiting for its turn."""
        async with self._slots:
            yield
