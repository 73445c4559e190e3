"""Ceph's RADOS Gateway, where one is at hand: ``make test-ceph`` starts one and says where."""

import os
import secrets
from pathlib import Path

import anyio
import pytest
from certificates import make_certificates

from uploader.location import Location
from uploader.settings import StorageSettings
from uploader.store.s3 import S3Store

Place = tuple[Location, StorageSettings]


@pytest.fixture(scope="session")
def ceph_server() -> Place:
    """The location of a bucket, and how to reach it."""
    endpoint = os.environ.get("WMTP_CEPH_ENDPOINT")
    if endpoint is None:
        pytest.skip("there is no Ceph: make test-ceph starts one")
    storage = StorageSettings(
        preset="ceph", endpoint_url=endpoint, credentials_file=os.environ["WMTP_CEPH_CREDENTIALS"]
    )
    location = Location("tests", "")

    async def create() -> None:
        async with S3Store.open(location, storage) as store:
            await store.create_bucket()

    anyio.run(create)
    return location, storage


@pytest.fixture
def ceph_place(ceph_server: Place) -> Place:
    """A fresh prefix on Ceph, and how to reach it."""
    bucket, storage = ceph_server
    return bucket.join(f"test-{secrets.token_hex(8)}"), storage


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An authority, a certificate it signed for 127.0.0.1, and its key."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))
