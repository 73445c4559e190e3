"""Between botocore's dictionaries and our types. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from botocore.exceptions import ClientError  # type: ignore[import-untyped]

from uploader import checksum
from uploader.errors import ChecksumMismatch
from uploader.store.base import ObjectInfo, PartInfo
from uploader.store.s3_seal import Seal

FULL_OBJECT: Any = {"ChecksumAlgorithm": "CRC64NVME", "ChecksumType": "FULL_OBJECT"}
NOTED = "crc64nvme"
"""``x-amz-meta-crc64nvme``: an object's checksum, where the store keeps none by itself."""


def object_info(key: str, answer: Mapping[str, Any]) -> ObjectInfo:
    """An object as a listing, a GET or a HEAD describes it."""
    size_bytes = answer["Size"] if "Size" in answer else answer["ContentLength"]
    modified = answer.get("LastModified")
    return ObjectInfo(
        key, size_bytes, bare(answer["ETag"]), _crc64nvme(answer), modified.timestamp() if modified else None
    )


def _crc64nvme(answer: Mapping[str, Any]) -> str | None:
    """The store's own, or what was noted when the object was made."""
    noted = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    own: str | None = answer.get("ChecksumCRC64NVME")
    return own or noted.get(NOTED)


def noting(crc64nvme: str | None) -> Any:
    """The checksum as metadata of the object."""
    return {} if crc64nvme is None else {"Metadata": {NOTED: crc64nvme}}


def part_info(part: Mapping[str, Any]) -> PartInfo:
    """A part as ListParts describes it."""
    return PartInfo(part["PartNumber"], part["Size"], bare(part["ETag"]), part.get("ChecksumCRC64NVME"))


def named_parts(parts: Sequence[PartInfo], *, with_checksums: bool) -> Any:
    """The parts as CompleteMultipartUpload names them, in order."""
    return {
        "Parts": [
            {
                "PartNumber": part.number,
                "ETag": part.etag,
                **given(ChecksumCRC64NVME=part.crc64nvme if with_checksums else None),
            }
            for part in sorted(parts, key=lambda part: part.number)
        ]
    }


def whole(size_bytes: int, crc64nvme: str) -> Any:
    """What the parts must make, as CompleteMultipartUpload is told."""
    return {"ChecksumCRC64NVME": crc64nvme, "ChecksumType": "FULL_OBJECT", "MpuObjectSize": size_bytes}


def check_sums(parts: Sequence[PartInfo], size_bytes: int, crc64nvme: str, *, subject: str) -> None:
    """Some stores ignore the size or the checksum of the whole, so that is looked at here.

    Raises:
        ChecksumMismatch: the parts make something else.
    """
    if sum(part.size_bytes for part in parts) != size_bytes:
        raise ChecksumMismatch("the parts make another size", doing="completing", subject=subject)
    ordered = sorted(parts, key=lambda part: part.number)
    known = [(part.crc64nvme, part.size_bytes) for part in ordered if part.crc64nvme is not None]
    if len(known) == len(parts) and checksum.combine(known) != crc64nvme:
        raise ChecksumMismatch("the parts make other bytes", doing="completing", subject=subject)


def arrived(etag: str, sealed: Seal, *, subject: str) -> str:
    """The ETag of what arrived.

    Raises:
        ChecksumMismatch: it is that of other bytes.
    """
    if sealed.etag not in (None, bare(etag)):
        raise ChecksumMismatch("the store has other bytes than were sent", doing="writing", subject=subject)
    return bare(etag)


def given(**fields: Any) -> Any:
    """The fields that have a value."""
    return {name: value for name, value in fields.items() if value is not None}


def bare(etag: str) -> str:
    """An ETag without its quotes."""
    return etag.strip('"')


def status(error: ClientError) -> int:
    """The HTTP status of an answer."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


def code(error: ClientError) -> str:
    """S3's code for an error; the status of an answer that has none."""
    return str(error.response["Error"]["Code"])
