"""What goes over the wire: requests as botocore signed them or we did, answers in the shape of aiohttp's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from aiobotocore.awsrequest import AioAWSResponse  # type: ignore[import-untyped]

from uploader.store.body import Body
from uploader.store.s3_body import RequestBody
from uploader.store.s3_http import MAX_ERROR_BYTES, request_head


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request as the wire sends it.

    Attributes:
        place: scheme, host and port: all that an error tells of the URL.
        target: path and query, percent-encoded.
        headers: by lower-case names.
        memory: where the body of a good answer is to go; None keeps it with the answer.
        most_bytes: what is kept of an answer's body.
    """

    method: str
    place: str
    target: str
    headers: Mapping[str, str]
    body: Body | None
    memory: memoryview | None = None
    most_bytes: int = MAX_ERROR_BYTES

    @classmethod
    def of_botocore(cls, request: Any, memory: memoryview | None) -> Self:
        """One that botocore has signed."""
        url = urlsplit(request.url)
        path = url.path or "/"
        target = f"{path}?{url.query}" if url.query else path
        headers = {"host": url.netloc, **plain(request.headers)}
        body = request.body.body if isinstance(request.body, RequestBody) else None
        return cls(request.method, f"{url.scheme}://{url.netloc}", target, headers, body, memory)

    def head(self) -> bytes:
        """What goes before the body; without ``Expect``, which is not signed, and a round trip for each.

        Raises:
            SettingsError: a header can't be sent.
        """
        headers = {name: value for name, value in self.headers.items() if name != "expect"}
        if self.body is not None:
            headers["content-length"] = str(len(self.body))
        return request_head(self.method, self.target, headers)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer, read to its end.

    Attributes:
        headers: by lower-case names.
        body: what did not go to memory.
        filled_bytes: how much did.
        ends_connection: whether nothing may follow on its connection.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    filled_bytes: int
    ends_connection: bool

    def for_botocore(self, url: str) -> Any:
        """As botocore takes it."""
        raw = Received(self.body, self.filled_bytes)
        return AioAWSResponse(url, self.status, dict(self.headers), raw)


class Received:
    """What an answer's body was, in the shape of aiohttp's.

    Attributes:
        filled_bytes: how much of it went where the request wanted it.
    """

    def __init__(self, data: bytes, filled_bytes: int) -> None:
        self._data, self.filled_bytes = data, filled_bytes

    async def read(self) -> bytes:
        return self._data

    def close(self) -> None:
        """Nothing is left to close: the exchange is over."""


def plain(headers: Mapping[str, str | bytes]) -> dict[str, str]:
    """Headers by lower-case names; botocore has some values in bytes."""
    return {
        name.lower(): value.decode("latin-1") if isinstance(value, bytes) else value
        for name, value in headers.items()
    }
