"""What all tests share: one asyncio backend, and real S3 servers that start when first asked for."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: results are equal bit for bit

import functools
import itertools
import signal
from collections.abc import Iterator

import pytest
from botocore.loaders import JSONFileLoader
from certificates import make_certificates
from hypothesis import settings

from uploader.errors import SettingsError
from uploader.location import Location
from uploader.settings import StorageSettings
from wmtp.dev_s3 import DevS3
from wmtp.seaweedfs import find_weed

BUCKET = "tests"
Place = tuple[Location, StorageSettings]

_prefixes = itertools.count(1)


# What a shell starts in the background ignores Ctrl-C, and processes inherit that. Ours are to be stopped.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Nobody cuts the power of this machine, and waiting for its disk is half of the time of many a test. What is
# synced, and in which order, is judged by the simulation on a disk of its own, and by tests that listen.
os.fsync = lambda descriptor: None

# Each of hundreds of clients would parse the same descriptions of services anew, for a tenth of a second.
JSONFileLoader.load_file = staticmethod(functools.cache(JSONFileLoader().load_file))

settings.register_profile("deterministic", deadline=None, derandomize=True)
settings.load_profile("deterministic")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A real S3 server over HTTP: the location of its bucket, and how to reach it."""
    _skip_without_weed()
    server = DevS3(tmp_path_factory.mktemp("s3"))
    server.start()
    try:
        server.ensure_bucket(BUCKET)
        yield Location(BUCKET, ""), server.storage()
    finally:
        _end(server)


@pytest.fixture(scope="session")
def s3_server_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The same over TLS, with a certificate of an authority that nobody else knows."""
    _skip_without_weed()
    directory = tmp_path_factory.mktemp("s3-tls")
    authority, certificate, key = make_certificates(directory)
    server = DevS3(directory / "data", cert_file=certificate, key_file=key)
    server.start()
    try:
        storage = server.storage(ca_bundle=authority)
        server.ensure_bucket(BUCKET, storage)
        yield Location(BUCKET, ""), storage
    finally:
        _end(server)


@pytest.fixture
def s3_place(s3_server: Place) -> Place:
    """A fresh prefix on the HTTP server, and how to reach it."""
    return _fresh(s3_server)


@pytest.fixture
def s3_tls_place(s3_server_tls: Place) -> Place:
    """A fresh prefix on the TLS server, and how to reach it."""
    return _fresh(s3_server_tls)


def _fresh(server: Place) -> Place:
    bucket, storage = server
    return bucket.join(f"test-{next(_prefixes)}"), storage


def _end(server: DevS3) -> None:
    from real_runs import end

    end(server)


def _skip_without_weed() -> None:
    try:
        find_weed()
    except SettingsError as error:
        pytest.skip(str(error))
