"""A connection to an endpoint: opened, watched for progress, cut. What breaks it is named by its place."""

import select
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

from botocore.exceptions import (  # type: ignore[import-untyped]
    ConnectionClosedError,
    ConnectTimeoutError,
    EndpointConnectionError,
    ReadTimeoutError,
    SSLError,
)

from uploader.store.s3_http import Incoming


class Connection:
    """A socket, and what comes in over it."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket, self.incoming = connected, Incoming(connected)

    @property
    def is_usable(self) -> bool:
        """Whether the other side has neither closed it while idle, nor said something nobody asked for."""
        watch = select.poll()  # not select(), which knows no descriptor above 1023
        watch.register(self.socket, select.POLLIN)
        return self.incoming.is_clear and not watch.poll(0)

    def cut(self) -> None:
        """End it from another thread: whatever waits for it fails at once."""
        try:
            # Not by SSLSocket, which would first turn into a plain socket under the thread's hands.
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already

    def close(self) -> None:
        self.socket.close()


def connect(place: str, tls: ssl.SSLContext, *, connect_timeout_s: float, timeout_s: float) -> Connection:
    """A new connection.

    Args:
        place: scheme, host and port.
        timeout_s: without a byte sent or received for so long, it counts as dead.

    Raises:
        ConnectTimeoutError, SSLError, EndpointConnectionError: there is none, and why.
    """
    try:
        made = _opened(place, tls, connect_timeout_s)
    except TimeoutError as error:
        raise ConnectTimeoutError(endpoint_url=place, error=error) from error
    except ssl.SSLError as error:
        raise SSLError(endpoint_url=place, error=error) from error
    except OSError as error:
        raise EndpointConnectionError(endpoint_url=place, error=error) from error
    _give_up_after(made, timeout_s)
    return Connection(made)


def _opened(place: str, tls: ssl.SSLContext, timeout_s: float) -> socket.socket:
    url = urlsplit(place)
    is_secured = url.scheme == "https"
    address = url.hostname or "", url.port or (443 if is_secured else 80)
    made = socket.create_connection(address, timeout=timeout_s)
    try:
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return tls.wrap_socket(made, server_hostname=url.hostname) if is_secured else made
    except BaseException:
        made.close()
        raise


def _give_up_after(connection: socket.socket, timeout_s: float) -> None:
    """Let the kernel watch for progress: a socket that blocks is a third cheaper than one that is polled."""
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(timeout_s)
        return
    connection.settimeout(None)
    limit = struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Whatever goes wrong with a connection, as botocore calls it, with the place and nothing else.

    Raises:
        ReadTimeoutError: nothing was taken, or nothing came, in time.
        ConnectionClosedError: it broke.
    """
    try:
        yield
    except (TimeoutError, BlockingIOError) as error:  # by Python over TLS, by the kernel without
        raise ReadTimeoutError(endpoint_url=place, error=error) from error
    except OSError as error:
        raise ConnectionClosedError(endpoint_url=place, error=error) from error
