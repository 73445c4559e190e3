"""A request's body that leaves the caller's memory slice by slice."""

from collections.abc import AsyncIterator

from uploader.store.base import Body

SLICE_BYTES = 256 * 1024


class Slices:
    """A body over the caller's memory, which is never copied whole.

    botocore refuses a ``memoryview`` but takes whatever can be read; aiohttp sends whatever can be iterated.
    """

    def __init__(self, body: Body) -> None:
        self._view, self._at = memoryview(body).cast("B"), 0

    def __len__(self) -> int:
        return len(self._view)

    def __bool__(self) -> bool:
        return True  # an empty body is a body

    def read(self, size: int = -1) -> bytes:
        end = len(self._view) if size < 0 else min(self._at + size, len(self._view))
        taken, self._at = self._view[self._at : end], end
        return bytes(taken)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._view))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        while self._at < len(self._view):
            start, self._at = self._at, min(self._at + SLICE_BYTES, len(self._view))
            yield self._view[start : self._at]
