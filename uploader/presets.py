"""What the known S3 stores need, and what can't be used with them: one table, from their documentation.

How a store verifies checksums and conditions stands nowhere here: the probe finds that out.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from uploader.settings import StorageSettings

PresetName = Literal["aws", "r2", "b2", "gcs", "minio", "ceph"]


@dataclass(frozen=True, slots=True)
class Preset:
    """One kind of store.

    Attributes:
        endpoint_url: where nothing else is set; ``{region}`` stands for ``storage.region``.
        region: where none is set; None leaves it to the AWS chain.
        addressing_style: where it is set to ``auto``.
        refused: settings the store does not know, each with what to do instead.
        allowed: settings of which the store knows these values only.
        single_deletes: whether objects are deleted one by one, as there is no DeleteObjects.
        source: the page that says so.
    """

    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    refused: dict[str, str] = field(default_factory=dict)
    allowed: dict[str, tuple[str, ...]] = field(default_factory=dict)
    single_deletes: bool = False
    source: str = ""


_ENCRYPTED = "everything is encrypted there anyway"
_NO_TAGS = "there are no object tags"
_NO_PAYER = "the bucket's owner pays"
_NO_KMS = "there are no such keys; everything can be encrypted with AES256"

PRESETS: Final[dict[PresetName, Preset]] = {
    "aws": Preset(source="https://docs.aws.amazon.com/AmazonS3/latest/API/"),
    "r2": Preset(
        region="auto",
        refused={
            "sse": _ENCRYPTED,
            "tags": _NO_TAGS,
            "requester_pays": _NO_PAYER,
            "acl": "access is a setting of the bucket",
        },
        allowed={"storage_class": ("STANDARD", "STANDARD_IA")},
        source="https://developers.cloudflare.com/r2/api/s3/api/",
    ),
    "b2": Preset(
        endpoint_url="https://s3.{region}.backblazeb2.com",
        refused={"tags": _NO_TAGS, "requester_pays": _NO_PAYER},
        allowed={
            "sse": ("AES256",),
            "storage_class": ("STANDARD",),
            "acl": ("private", "public-read"),  # and only the bucket's own
        },
        source="https://www.backblaze.com/docs/cloud-storage-s3-compatible-api",
    ),
    "gcs": Preset(
        endpoint_url="https://storage.googleapis.com",
        region="auto",
        refused={
            "sse": _ENCRYPTED,
            "sse_c_key_file": "customer keys have headers of Google's own",
            "tags": _NO_TAGS,
            "requester_pays": "it has a header of Google's own",
        },
        allowed={"storage_class": ("STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE")},
        single_deletes=True,
        source="https://cloud.google.com/storage/docs/interoperability",
    ),
    "minio": Preset(
        region="us-east-1",
        addressing_style="path",
        refused={"acl": "access is a policy of the bucket", "requester_pays": _NO_PAYER},
        allowed={"storage_class": ("STANDARD", "REDUCED_REDUNDANCY")},
        source="https://min.io/docs/minio/linux/reference/s3-api-compatibility.html",
    ),
    "ceph": Preset(
        region="us-east-1",
        addressing_style="path",
        source="https://docs.ceph.com/en/latest/radosgw/s3/",
    ),
}


def problems(storage: "StorageSettings") -> Iterator[str]:
    """What can't be set together with the store's preset, each beginning with its key."""
    name = storage.preset
    if name is None:
        return
    preset = PRESETS[name]
    for key, instead in preset.refused.items():
        if getattr(storage, key):
            yield f"{key} can't be used with {name}: {instead}"
    for key, values in preset.allowed.items():
        if getattr(storage, key) not in (None, *values):
            yield f"{key} {getattr(storage, key)} is unknown to {name}: it knows {', '.join(values)}"
    if name != "aws" and _endpoint(storage, preset) is None:
        needed = "region or endpoint_url" if preset.endpoint_url else "endpoint_url"
        yield f"{needed} is not set, and {name} has no address of its own"


def filled(storage: "StorageSettings") -> "StorageSettings":
    """The settings with what the preset adds to those that are not set."""
    if storage.preset is None:
        return storage
    preset = PRESETS[storage.preset]
    auto = storage.addressing_style == "auto"
    return storage.model_copy(
        update={
            "endpoint_url": _endpoint(storage, preset),
            "region": storage.region or preset.region,
            "addressing_style": preset.addressing_style if auto else storage.addressing_style,
        }
    )


def deletes_singly(storage: "StorageSettings") -> bool:
    """Whether the store is known to lack DeleteObjects."""
    return storage.preset is not None and PRESETS[storage.preset].single_deletes


def _endpoint(storage: "StorageSettings", preset: Preset) -> str | None:
    if storage.endpoint_url is not None or preset.endpoint_url is None:
        return storage.endpoint_url
    if "{region}" in preset.endpoint_url and storage.region is None:
        return None
    return preset.endpoint_url.format(region=storage.region)
