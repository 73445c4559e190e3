"""The store as the settings describe it, with the development server started where they ask for it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uploader.settings import StorageSettings


@contextmanager
def reachable(
    storage: StorageSettings, dev_s3: Path | None, bucket: str
) -> Iterator[tuple[StorageSettings, tuple[int, ...]]]:
    """How the store is reached while the context lasts.

    Args:
        dev_s3: data directory of the development server; None where the store is none of ours.

    Yields:
        The settings, and the descriptors that a child process must keep open to keep the server running.
    """
    if dev_s3 is None:
        yield storage, ()
        return
    from wmtp.dev_s3 import DevS3, ensure_running, hold

    lease = hold(dev_s3)
    try:
        ensure_running(dev_s3, bucket)
        own = DevS3(dev_s3).storage()
        kept = {"connect_timeout_s": storage.connect_timeout_s, "read_timeout_s": storage.read_timeout_s}
        yield own.model_copy(update=kept), (lease,)
    finally:
        os.close(lease)
