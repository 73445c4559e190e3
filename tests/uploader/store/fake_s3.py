"""A server of HTTP in threads that says what a test wants, well or badly, and keeps what it was sent."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import parse_qsl, unquote, urlsplit

from uploader.settings import StorageSettings

OK = b'HTTP/1.1 200 OK\r\nETag: "e"\r\nContent-Length: 0\r\n\r\n'


@dataclass(frozen=True)
class Request:
    """One request. Names of headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""


@dataclass
class Talk:
    """One connection, as a test sees it."""

    socket: socket.socket
    incoming: BinaryIO

    def head(self) -> Request | None:
        """The next request without its body; None where the client has hung up."""
        lines = []
        while (line := self.incoming.readline()) not in (b"\r\n", b""):
            lines.append(line.decode().rstrip("\r\n"))
        if not lines:
            return None
        method, target, _ = lines[0].split(" ")
        url = urlsplit(target)
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        return Request(method, unquote(url.path), dict(parse_qsl(url.query, True)), headers)

    def request(self) -> Request | None:
        """The next request, whole; None where the client has hung up, if only before its end."""
        head = self.head()
        if head is None:
            return None
        if "expect" in head.headers:
            self.say(b"HTTP/1.1 100 Continue\r\n\r\n")
        size_bytes = int(head.headers.get("content-length", 0))
        if len(body := self.incoming.read(size_bytes)) < size_bytes:
            return None
        return Request(head.method, head.path, head.query, head.headers, body)

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)


@dataclass
class FakeServer:
    """Where it listens, and the connections it has had.

    Attributes:
        ca_bundle: the authority to trust, over TLS.
        ended: set when a connection has ended, however it did.
    """

    endpoint_url: str
    ca_bundle: Path | None = None
    connections: list[socket.socket] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def storage(self, directory: Path, **fields: object) -> StorageSettings:
        """How it is reached; any credentials will do."""
        credentials = directory / "credentials"
        credentials.write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
        given = {
            "endpoint_url": self.endpoint_url,
            "addressing_style": "path",
            "credentials_file": str(credentials),
            "ca_bundle": self.ca_bundle and str(self.ca_bundle),
        }
        return StorageSettings.model_validate({**given, **fields})


@contextmanager
def serving(
    talk: Callable[[Talk], None], certificates: tuple[Path, Path, Path] | None = None
) -> Iterator[FakeServer]:
    """Have every connection handled by ``talk`` on a thread of its own; all are over when this ends.

    Args:
        certificates: PEM files of an authority, a certificate and its key, for TLS.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    scheme, context = "http", None
    if certificates is not None:
        scheme, context = "https", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificates[1:])
    address = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
    server = FakeServer(address, certificates and certificates[0])
    threads: list[threading.Thread] = []

    def handle(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            secured = context.wrap_socket(connection, server_side=True) if context else connection
            with secured, secured.makefile("rb") as incoming:
                talk(Talk(secured, incoming))
        server.ended.set()

    def accept() -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                connection, _ = listener.accept()
                server.connections.append(connection)
                threads.append(threading.Thread(target=handle, args=(connection,)))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield server
    finally:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for connection in server.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()


def answer(status: str, body: bytes = b"", **headers: str) -> bytes:
    """An answer's bytes; names of headers are written with underscores."""
    fields = {
        "Content-Length": str(len(body)),
        **{name.replace("_", "-"): text for name, text in headers.items()},
    }
    lines = "".join(f"{name}: {text}\r\n" for name, text in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def refusal(status: str, code: str) -> bytes:
    """S3's way to refuse."""
    return answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
