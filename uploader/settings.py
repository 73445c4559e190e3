"""What the uploader needs to know, as pydantic models: the store, retention, and a run's ``run.json``.

None of these ever holds a credential: those come from the AWS chain only.
"""

from ipaddress import ip_address
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uploader import presets

SCHEMA_VERSION = 1
"""Of every file this project writes as JSON: a reader refuses a version it does not know."""


class Strict(BaseModel):
    """Unknown keys are errors; values are not changed after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


TagKey = Annotated[str, Field(min_length=1, max_length=128)]
TagValue = Annotated[str, Field(max_length=256)]
CannedAcl = Literal[
    "private",
    "public-read",
    "public-read-write",
    "authenticated-read",
    "aws-exec-read",
    "bucket-owner-read",
    "bucket-owner-full-control",
]


class StorageSettings(Strict):
    """How an S3 store is reached and how objects are kept there; all optional, all without secrets.

    Attributes:
        preset: the kind of store; sets what that one needs and refuses what it does not know.
        endpoint_url: the store's URL; None means AWS.
        profile: name of a profile of the AWS configuration files.
        credentials_file: a shared credentials file other than ``~/.aws/credentials``.
        addressing_style: how the bucket is named: in the path or in the host name.
        ca_bundle: PEM file with the certificate authority of the endpoint.
        sse: server-side encryption; ``aws:kms`` takes ``sse_kms_key_id``.
        sse_c_key_file: file with the customer's own key of 32 bytes, raw or base64, for SSE-C.
        requester_pays: whether the requests are paid by who makes them, not by the bucket's owner.
        storage_class: of every object, ``STANDARD_IA`` for example.
        tags: of every object, at most ten.
        acl: canned ACL of every object.
        connect_timeout_s: seconds to wait for a connection.
        read_timeout_s: seconds without a byte after which a request counts as lost.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    preset: presets.PresetName | None = None
    endpoint_url: str | None = None
    region: str | None = None
    profile: str | None = None
    credentials_file: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    ca_bundle: str | None = None
    sse: Literal["AES256", "aws:kms"] | None = None
    sse_kms_key_id: str | None = None
    sse_c_key_file: str | None = None
    requester_pays: bool = False
    storage_class: Annotated[str, Field(min_length=1)] | None = None
    tags: Annotated[dict[TagKey, TagValue], Field(max_length=10)] = {}
    acl: CannedAcl | None = None
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    read_timeout_s: Annotated[float, Field(gt=0)] = 60.0

    @field_validator("endpoint_url")
    @classmethod
    def _endpoint(cls, url: str | None) -> str | None:
        """It goes into ``run.json`` and into messages, so nothing secret may be in it."""
        parts = urlsplit(url or "https://aws")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("it is no URL of a server: write http://host:port or https://host")
        if "@" in parts.netloc or parts.query:
            raise ValueError("it holds credentials: leave those to the AWS environment or its files")
        return url

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        found = list(presets.problems(self))
        if self.sse_kms_key_id is not None and self.sse != "aws:kms":
            found.append("sse_kms_key_id has no effect without sse: aws:kms")
        if self.sse is not None and self.sse_c_key_file is not None:
            found.append("sse and sse_c_key_file are two encryptions: keep one")
        if self.sse_c_key_file is not None and _is_open(self.endpoint_url):
            found.append("sse_c_key_file would send the key unencrypted: endpoint_url must be https://")
        if found:
            raise ValueError("; ".join(found))
        return self


def _is_open(endpoint_url: str | None) -> bool:
    """Whether others could read what goes to an endpoint."""
    parts = urlsplit(endpoint_url or "https://")
    if parts.scheme == "https" or parts.hostname == "localhost":
        return False
    try:
        return not ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return True


PartSize = Annotated[int, Field(ge=5 * 1024**2, le=5 * 1024**3)]
PartsInFlight = Annotated[int, Field(ge=1, le=256)]
BytesPerSecond = Annotated[int, Field(ge=64 * 1024)]


class UploadSettings(Strict):
    """How the uploader works.

    Attributes:
        part_size_bytes: wanted size of a part, rounded down to whole blocks.
        parts_in_flight: how many parts are sent at once at most, over all files of a step.
        delete_grace_s: seconds between a step's entry moving to ``deleting`` and its objects going.
        purge_versions: in a bucket that keeps versions: whether those of what is pruned are deleted, too.
        keep_superseded_s: seconds for which superseded steps stay restorable.
        heartbeat_s: seconds from one sign of life of a run's owner to the next.
        idle_exit_s: seconds without a trainer after which a drained uploader ends.
        stale_upload_s: age at which an unfinished upload that no journal continues is aborted.
        max_wait_s: longest wait between two attempts of a request that can heal.
        request_timeout_s: seconds after which one attempt is abandoned, beside the time its bytes may take.
        max_bandwidth_bytes_per_s: what uploads may take of the network in all; None means all of it.
        pacing: whether uploads stand back where they slow down the trainer's steps.
        quiet_s: seconds without a change that make a foreign checkpoint complete whose format tells nothing.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    part_size_bytes: PartSize = 16 * 1024**2
    parts_in_flight: PartsInFlight = 8
    delete_grace_s: Annotated[float, Field(ge=0)] = 0.0
    purge_versions: bool = False
    keep_superseded_s: Annotated[float, Field(ge=0)] = 86_400.0
    stale_upload_s: Annotated[float, Field(gt=0)] = 7 * 86_400.0
    heartbeat_s: Annotated[float, Field(gt=0, le=3600)] = 10.0
    idle_exit_s: Annotated[float, Field(ge=0)] = 5.0
    max_wait_s: Annotated[float, Field(gt=0)] = 30.0
    request_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    max_bandwidth_bytes_per_s: BytesPerSecond | None = None
    pacing: bool = True
    quiet_s: Annotated[float, Field(ge=0)] = 10.0
