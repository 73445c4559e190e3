"""A request's body in the shape that botocore takes and aiohttp sends."""

from collections.abc import AsyncIterator
from itertools import islice

import anyio

from uploader.store.body import Body, FileSlice, Pace, at_once, pieces

SLICE_BYTES = 256 * 1024


class RequestBody:
    """A body that is never copied whole.

    botocore refuses a ``memoryview`` but takes whatever can be read; aiohttp sends whatever can be iterated.

    Args:
        pace: how many seconds to wait before so many bytes of a file are sent by aiohttp.
    """

    def __init__(self, body: Body, pace: Pace = at_once) -> None:
        self.body, self._pace, self._at = body, pace, 0

    def __len__(self) -> int:
        return len(self.body)

    def __bool__(self) -> bool:
        return True  # an empty body is a body

    def read(self, size: int = -1) -> bytes:
        end = len(self) if size < 0 else min(self._at + size, len(self))
        whole = pieces(self.body, start=self._at, size_bytes=max(end - self._at, 1))
        taken = b"".join(islice(whole, 1))
        self._at += len(taken)
        return taken

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self))[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    async def __aiter__(self) -> AsyncIterator[bytes | memoryview]:
        for piece in pieces(self.body, start=self._at, size_bytes=SLICE_BYTES):
            self._at += len(piece)
            if isinstance(self.body, FileSlice) and (wait_s := self._pace(len(piece))) > 0:
                await anyio.sleep(wait_s)
            # asyncio may hold on to a piece for a while, and a file's next one has the same buffer.
            yield bytes(piece) if isinstance(self.body, FileSlice) else piece
