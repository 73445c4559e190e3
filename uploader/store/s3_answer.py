"""Answers on the wire: read by ``http.client``, handed to botocore in the shape of aiohttp's."""

import http.client
import io
import socket
from typing import Any


class Answer(http.client.HTTPResponse):
    """An answer that fails where no byte comes in time; Python would take that for its end."""

    def __init__(self, sock: socket.socket, *args: Any, **fields: Any) -> None:
        super().__init__(sock, *args, **fields)
        self.fp = io.BufferedReader(_Incoming(self.fp.detach()))


class _Incoming(io.RawIOBase):
    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._raw.readinto(buffer)
        if count is None:  # the kernel's limit, which Python takes for a socket that does not block
            raise TimeoutError("no byte came in time")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class Received:
    """What an answer's body was, in the shape of aiohttp's.

    Attributes:
        filled_bytes: how much of it went where the request wanted it.
    """

    def __init__(self, data: bytes, filled_bytes: int, *, ends_connection: bool) -> None:
        self.filled_bytes, self.ends_connection = filled_bytes, ends_connection
        self._data = data

    async def read(self) -> bytes:
        return self._data

    def close(self) -> None:
        """Nothing is left to close: the exchange is over."""
