"""An S3 server that only counts: ``python -m benchmarks.null_sink`` prints its port and serves until killed.

Bodies are read into one buffer and forgotten; ``null_bucket`` says what is kept of them and what is answered.
Any credentials and any bucket will do. ``GET /__stats`` tells bytes, requests, CPU seconds. ``--rate MB/s``
takes bodies no faster than that, over all connections, as a network would.
"""

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from benchmarks.null_bucket import Answer, Bucket, Request, error

BUFFER_BYTES = 1024**2


class Rate:
    """What all connections together may take, in bytes a second."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s, self._free_at_s = bytes_per_s, 0.0

    def wait_s(self, size_bytes: int, now_s: float) -> float:
        """For how long whoever has taken ``size_bytes`` is to take no more."""
        self._free_at_s = max(self._free_at_s, now_s) + size_bytes / self._bytes_per_s
        return self._free_at_s - now_s


class Connection(asyncio.BufferedProtocol):
    """HTTP/1.1 on one connection: requests one after the other, with Content-Length."""

    def __init__(self, answer: Callable[[Request], Answer], rate: Rate) -> None:
        self._answer, self._rate = answer, rate
        self._buffer = bytearray(BUFFER_BYTES)
        self._head = b""
        self._request: Request | None = None
        self._kept = bytearray()
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        data = memoryview(self._buffer)[:count]
        while len(data):
            data = self._read_head(data) if self._request is None else self._read_body(data)

    def _read_head(self, data: memoryview) -> memoryview:
        self._head += bytes(data)
        end = self._head.find(b"\r\n\r\n")
        if end < 0:
            return data[len(data) :]
        rest = len(self._head) - end - 4
        self._request = request = _parse(self._head[:end].decode("latin-1"))
        self._head, self._kept, self._missing = b"", bytearray(), request.size_bytes
        if "transfer-encoding" in request.headers:
            self._send(error(411, "MissingContentLength"), request)
            self._transport.close()
            return data[len(data) :]
        if request.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self._missing:
            self._finish()
        return data[len(data) - rest :]

    def _read_body(self, data: memoryview) -> memoryview:
        taken = min(self._missing, len(data))
        self._missing -= taken
        self._pause(taken)
        if self._request is not None and self._request.is_read:
            self._kept += data[:taken]
        if not self._missing:
            self._finish()
        return data[taken:]

    def _pause(self, taken: int) -> None:
        """Hold the sender up, and not the others: what it sends meanwhile fills the socket's buffer."""
        loop = asyncio.get_running_loop()
        if wait_s := self._rate.wait_s(taken, loop.time()):
            self._transport.pause_reading()
            loop.call_later(wait_s, self._transport.resume_reading)

    def _finish(self) -> None:
        request, self._request = self._request, None
        assert request is not None
        if request.is_read:
            request.body = bytes(self._kept)
        self._send(self._answer(request), request)

    def _send(self, answer: Answer, request: Request) -> None:
        body = b"" if request.method == "HEAD" else answer.body
        length = len(body) if answer.length is None else answer.length
        headers = {"Date": formatdate(usegmt=True), "Content-Length": str(length), **answer.headers}
        lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in headers.items())]
        self._transport.write("\r\n".join([*lines, "", ""]).encode() + body)


def _parse(head: str) -> Request:
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ", 2)
    url = urlsplit(target)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
    key = unquote(url.path).lstrip("/")
    return Request(method, key, query, headers, int(headers.get("content-length", 0)), None)


async def serve(bytes_per_s: float, host: str = "127.0.0.1") -> None:
    """Print the port and serve until cancelled."""
    bucket, rate = Bucket(), Rate(bytes_per_s)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(bucket.answer, rate), host, 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    async with server:
        await server.serve_forever()


@contextlib.contextmanager
def running(rate_mb_per_s: float | None = None) -> Iterator[str]:
    """A sink in a process of its own: its URL while the context lasts."""
    command = [sys.executable, "-m", "benchmarks.null_sink"]
    command += [] if rate_mb_per_s is None else [f"--rate={rate_mb_per_s}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def stats(url: str) -> dict[str, Any]:
    """What a running sink tells of itself."""
    with urllib.request.urlopen(f"{url}/__stats") as answer:  # noqa: S310
        told: dict[str, Any] = json.load(answer)
    return told


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.null_sink", description=__doc__)
    parser.add_argument("--rate", type=float, default=float("inf"), metavar="MB/s", help="of all bodies")
    arguments = parser.parse_args()
    os.nice(19)  # a real store would take nothing of this machine
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve(arguments.rate * 1e6))


if __name__ == "__main__":
    main()
