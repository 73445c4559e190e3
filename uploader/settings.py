"""What the uploader needs to know, as pydantic models: the store, retention, and a run's ``run.json``.

None of these ever holds a credential: those come from the AWS chain only.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uploader.errors import CorruptError

SCHEMA_VERSION = 1
"""Of every file this project writes as JSON: a reader refuses a version it does not know."""


class Strict(BaseModel):
    """Unknown keys are errors; values are not changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StorageSettings(Strict):
    """How an S3 store is reached; all optional, all without secrets.

    Attributes:
        endpoint_url: the store's URL; None means AWS.
        profile: name of a profile of the AWS configuration files.
        credentials_file: a shared credentials file other than ``~/.aws/credentials``.
        addressing_style: how the bucket is named: in the path or in the host name.
        ca_bundle: PEM file with the certificate authority of the endpoint.
        sse: server-side encryption; ``aws:kms`` takes ``sse_kms_key_id``.
        connect_timeout_s: seconds to wait for a connection.
        read_timeout_s: seconds without a byte after which a request counts as lost.
    """

    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    credentials_file: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    ca_bundle: str | None = None
    sse: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key_id: str | None = None
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    read_timeout_s: Annotated[float, Field(gt=0)] = 60.0
