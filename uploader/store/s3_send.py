"""A body onto a connection: a file's by the kernel, or through a small buffer over TLS. For a thread."""

import errno
import os
import socket
import ssl
from collections.abc import Callable
from typing import TypeAlias

from uploader.store.body import PIECE_BYTES, Body, FileSlice, pieces

Wait: TypeAlias = Callable[[int], bool]
"""Waits until so many bytes may be sent; whether that took any time."""

KERNEL_BYTES = 4 * 1024**2
"""What the kernel is given to send at once; less where the bandwidth is limited, so that it flows evenly."""

_CANNOT_SENDFILE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}
"""What a file system says that can't have the kernel send its files."""
_UNREADABLE = {errno.EIO, errno.ESTALE}
"""What is wrong with the file, and not with the connection."""


def send_body(connection: socket.socket, body: Body, wait: Wait) -> None:
    """Send all of a body; what is in memory waits for nothing, what is in a file is then forgotten there.

    Raises:
        CorruptError: the file is shorter than its slice, or can't be read.
        OSError: the connection broke, or took nothing for too long.
    """
    if not isinstance(body, FileSlice):
        connection.sendall(body)
        return
    send = _through_buffer if isinstance(connection, ssl.SSLSocket) else _by_kernel
    send(connection, body, wait)
    body.forget()


def _by_kernel(connection: socket.socket, body: FileSlice, wait: Wait) -> None:
    sent, at_once = 0, PIECE_BYTES
    while sent < len(body):
        wanted = min(at_once, len(body) - sent)
        at_once = PIECE_BYTES if wait(wanted) else KERNEL_BYTES
        try:
            count = os.sendfile(connection.fileno(), body.descriptor, body.start + sent, wanted)
        except OSError as error:
            if error.errno in _CANNOT_SENDFILE:
                return _through_buffer(connection, body.part(sent, len(body) - sent), wait)
            if error.errno in _UNREADABLE:
                raise body.unreadable(error) from error
            raise
        if count == 0:
            raise body.too_short(sent)
        sent += count


def _through_buffer(connection: socket.socket, body: FileSlice, wait: Wait) -> None:
    for piece in pieces(body):
        wait(len(piece))
        connection.sendall(piece)
