"""A fixed number of reused buffers for what is downloaded."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from uploader import checksum


class PartBuffers:
    """The bound on memory and on parts in flight, over all files that are restored."""

    def __init__(self, part_size_bytes: int, count: int) -> None:
        self.part_size_bytes = (
            max(part_size_bytes // checksum.BLOCK_SIZE_BYTES, 1) * checksum.BLOCK_SIZE_BYTES
        )
        self._limiter = anyio.Semaphore(count)
        self._free: list[bytearray] = []

    @asynccontextmanager
    async def take(self, size_bytes: int) -> AsyncIterator[memoryview]:
        """A buffer of ``size_bytes``, waiting for one to come free.

        A part may have to be larger than wanted (10,000 parts must do); its buffer then grows for good.
        """
        async with self._limiter:
            buffer = self._free.pop() if self._free else bytearray(self.part_size_bytes)
            if len(buffer) < size_bytes:
                buffer = bytearray(size_bytes)
            try:
                yield memoryview(buffer)[:size_bytes]
            finally:
                self._free.append(buffer)
