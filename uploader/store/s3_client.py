"""A client of botocore's S3 as the settings describe it, which repeats nothing and hashes nothing.

Settings and credentials come from the AWS chain; bulk bytes go by the wire.
"""

import base64
import hashlib
import logging
import ssl
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig  # type: ignore[import-untyped]
from aiobotocore.session import AioSession  # type: ignore[import-untyped]
from botocore.httpsession import get_cert_path  # type: ignore[import-untyped]
from botocore.utils import get_environ_proxies  # type: ignore[import-untyped]

from uploader.errors import SettingsError
from uploader.settings import StorageSettings
from uploader.store.body import Pace
from uploader.store.s3_bulk import Bulk
from uploader.store.s3_credentials import Renewal
from uploader.store.s3_options import adding, options
from uploader.store.s3_wire import Wire


async def make_client(
    storage: StorageSettings, pace: Pace, connections: int, stack: AsyncExitStack
) -> tuple[Any, Bulk | None]:
    """The client, open as long as ``stack`` is, and what sends files beside it; None behind a proxy.

    Args:
        storage: with what its preset adds.

    Raises:
        SettingsError: a file that the settings name can't be read.
    """
    _check_files(storage)
    _keep_secrets_from_logs()
    added = options(storage)
    session = _make_session(storage)
    client = await stack.enter_async_context(_describe(session, storage, connections))
    Renewal(session).attach(client)
    client.meta.events.register("provide-client-params.s3", adding(added))
    client.meta.events.register("before-sign.s3.DeleteObjects", _add_content_md5)
    wire = _lay_wire(client, session, storage, pace, connections, stack)
    credentials = await session.get_credentials()
    return client, None if wire is None or credentials is None else Bulk(client, wire, credentials)


def _keep_secrets_from_logs() -> None:
    """At level DEBUG these log tokens, signatures and the customer's key, wherever the trainer's logs go."""
    for name in ("aiobotocore", "botocore"):
        logger = logging.getLogger(name)
        if logger.getEffectiveLevel() < logging.INFO:
            logger.setLevel(logging.INFO)


def _make_session(storage: StorageSettings) -> AioSession:
    """Settings and credentials of the AWS chain, and nothing else."""
    session = AioSession()
    if storage.credentials_file:
        session.set_config_variable("credentials_file", storage.credentials_file)
    return session


def _describe(session: AioSession, storage: StorageSettings, connections: int) -> Any:
    # A profile named outright outranks AWS_ACCESS_KEY_ID, as a file named outright must too.
    profile = storage.profile or ("default" if storage.credentials_file else None)
    config = AioConfig(
        s3={"payload_signing_enabled": False, "addressing_style": storage.addressing_style},
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=connections,
        connect_timeout=storage.connect_timeout_s,
        read_timeout=storage.read_timeout_s,
    )
    made = aioboto3.Session(botocore_session=session, profile_name=profile, region_name=storage.region)
    return made.client("s3", endpoint_url=storage.endpoint_url, verify=storage.ca_bundle, config=config)


def _lay_wire(
    client: Any,
    session: AioSession,
    storage: StorageSettings,
    pace: Pace,
    connections: int,
    stack: AsyncExitStack,
) -> Wire | None:
    """Let bulk bytes pass by aiohttp; behind a proxy, which only aiohttp knows how to pass, they don't."""
    if get_environ_proxies(client.meta.endpoint_url):
        return None
    authorities = get_cert_path(storage.ca_bundle or session.get_config_variable("ca_bundle") or True)
    wire = Wire(
        tls=ssl.create_default_context(cafile=authorities),
        connect_timeout_s=storage.connect_timeout_s,
        timeout_s=storage.read_timeout_s,
        connections=connections,
        pace=pace,
    )
    client.meta.events.register("before-send.s3", wire.carry)
    stack.callback(wire.close)
    return wire


def _check_files(storage: StorageSettings) -> None:
    """Read the named files now: later the client would take their absence for another trouble."""
    try:
        if storage.credentials_file:
            Path(storage.credentials_file).read_bytes()
    except OSError as error:
        raise _unreadable("storage.credentials_file", storage.credentials_file) from error
    try:
        if storage.ca_bundle:
            ssl.create_default_context(cafile=storage.ca_bundle)
    except OSError as error:
        raise _unreadable("storage.ca_bundle", storage.ca_bundle) from error


def _unreadable(field: str, path: str | None) -> SettingsError:
    return SettingsError(f"{path} can't be read", subject=field, hint="correct the path or the file")


def _add_content_md5(request: Any, **_: Any) -> None:
    """Older stores want Content-MD5 with DeleteObjects, where botocore gives only a newer checksum."""
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()
