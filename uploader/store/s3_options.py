"""What the settings add to requests: encryption, payer, storage class, tags, ACL. Pure but for one file.

Which request takes which of them is what botocore's own description of S3 says, not a list of ours.
"""

import base64
import binascii
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from uploader.errors import SettingsError
from uploader.settings import StorageSettings

_KEY_BYTES = 32


def options(storage: StorageSettings) -> dict[str, Any]:
    """The parameters of botocore that the settings stand for.

    Raises:
        SettingsError: the file with the customer's key can't be read, or holds none.
    """
    key = None if storage.sse_c_key_file is None else read_key(Path(storage.sse_c_key_file))
    given = {
        "ServerSideEncryption": storage.sse,
        "SSEKMSKeyId": storage.sse_kms_key_id,
        "SSECustomerAlgorithm": key and "AES256",
        "SSECustomerKey": key,
        "RequestPayer": "requester" if storage.requester_pays else None,
        "StorageClass": storage.storage_class,
        "Tagging": urlencode(storage.tags, quote_via=quote) or None,
        "ACL": storage.acl,
    }
    return {name: value for name, value in given.items() if value is not None}


def adding(given: dict[str, Any]) -> Callable[..., dict[str, Any]]:
    """A handler of ``provide-client-params`` that adds to each request those of ``given`` it takes."""

    def add(params: dict[str, Any], model: Any, **_: object) -> dict[str, Any]:
        if model.name == "CreateBucket":  # its ACL is another thing
            return params
        taken = {name: value for name, value in given.items() if name in model.input_shape.members}
        return {**taken, **params}

    return add


def read_key(path: Path) -> bytes:
    """A key of 32 bytes, as they are or in base64. No message ever repeats them.

    Raises:
        SettingsError: the file can't be read, or holds something else.
    """
    try:
        held = path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path} can't be read", subject="storage.sse_c_key_file", hint="correct the path or the file"
        ) from error
    if len(held) == _KEY_BYTES:
        return held
    try:
        key = base64.b64decode(held.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != _KEY_BYTES:
        raise SettingsError(
            f"{path} holds no key of {_KEY_BYTES} bytes",
            subject="storage.sse_c_key_file",
            hint=f"write one with: head -c {_KEY_BYTES} /dev/urandom | base64 > {path}",
        )
    return key
