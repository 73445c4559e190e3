"""The servers that are uploaded to, a fresh one for each upload, so that nobody pays for what others left."""

import configparser
import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio

from benchmarks import null_sink
from benchmarks.upload_contenders import BUCKET, REGION
from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store import open_store
from wmtp.dev_s3 import DevS3

ANY = {"AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
"""Credentials that the sink takes: it takes any."""

TARGETS = ("sink", "server")


@dataclass(frozen=True)
class Target:
    """A server for one upload: how contenders reach it, and how we do."""

    credentials: dict[str, str]
    storage: StorageSettings
    counts: bool

    @property
    def url(self) -> str:
        assert self.storage.endpoint_url is not None
        return self.storage.endpoint_url


@contextlib.contextmanager
def serving(target: str, scratch: Path) -> Iterator[Target]:
    """The null sink, or SeaweedFS with nothing in it, while the context lasts."""
    if target == "sink":
        with null_sink.running() as url:
            storage = StorageSettings(endpoint_url=url, region=REGION, addressing_style="path")
            yield Target(ANY, storage, counts=True)
        return
    server = DevS3(scratch / "dev-s3")
    try:
        server.start()
        server.ensure_bucket(BUCKET)
        keys = configparser.ConfigParser()
        keys.read(server.credentials_file)
        credentials = {name.upper(): value for name, value in keys["default"].items()}
        yield Target(credentials, server.storage(), counts=False)
    finally:
        server.stop()
        shutil.rmtree(server.data, ignore_errors=True)


def stored_bytes(target: Target, prefix: str) -> int:
    """The size of everything below a prefix, but for records: by the server's own listing."""

    async def add_up() -> int:
        async with open_store(Location(BUCKET, prefix), target.storage) as store:
            return sum([info.size_bytes async for info in store.list() if not info.key.endswith(".json")])

    return anyio.run(add_up)
