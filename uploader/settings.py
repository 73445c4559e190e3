"""What the uploader needs to know, as pydantic models: the store, retention, and a run's ``run.json``.

None of these ever holds a credential: those come from the AWS chain only.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

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


class UploadSettings(Strict):
    """How the uploader works.

    Attributes:
        part_size_bytes: wanted size of a part, rounded down to whole blocks.
        parts_in_flight: how many parts are held in memory and sent at once, over all files of a step.
        delete_grace_s: seconds between a step's entry moving to ``deleting`` and its objects going.
        keep_superseded_s: seconds for which superseded steps stay restorable.
        idle_exit_s: seconds without a trainer after which a drained uploader ends.
        max_wait_s: longest wait between two attempts of a request that can heal.
    """

    part_size_bytes: Annotated[int, Field(ge=5 * 1024**2, le=5 * 1024**3)] = 16 * 1024**2
    parts_in_flight: Annotated[int, Field(ge=1, le=256)] = 8
    delete_grace_s: Annotated[float, Field(ge=0)] = 0.0
    keep_superseded_s: Annotated[float, Field(ge=0)] = 86_400.0
    idle_exit_s: Annotated[float, Field(ge=0)] = 5.0
    max_wait_s: Annotated[float, Field(gt=0)] = 30.0
