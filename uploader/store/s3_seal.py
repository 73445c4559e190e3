"""What goes with a body so that it is known to have arrived whole, as far as the store can tell.

The chain from the trainer's memory has no gap: where a store does not verify CRC64-NVME, the body is read
once, its CRC64-NVME compared with the record's, and in the same pass the sum taken that the store verifies.
"""

import base64
import hashlib
from dataclasses import dataclass, field
from typing import Any

from anyio import to_thread
from awscrt import checksums

from uploader import checksum
from uploader.errors import ChecksumMismatch
from uploader.store.body import PIECE_BYTES, Body, pieces
from uploader.store.capabilities import Checksum


@dataclass(frozen=True, slots=True)
class Seal:
    """The checksums of one request.

    Attributes:
        crc64nvme: of the body.
        fields: what botocore is to send with it.
        etag: what the store must answer; None where it verifies by itself, or can't tell.
    """

    crc64nvme: str
    fields: Any = field(default_factory=dict)
    etag: str | None = None


async def seal(body: Body, crc64nvme: str | None, by: Checksum, *, subject: str = "") -> Seal:
    """The seal of a body that is about to be sent; read here unless its CRC64-NVME is known and enough.

    Args:
        crc64nvme: of the body, as it was recorded; None where the body is the record.

    Raises:
        ChecksumMismatch: the body has another one.
        CorruptError: its file is shorter, or can't be read.
    """
    if by == "crc64nvme" and crc64nvme is not None:
        return Seal(crc64nvme, {"ChecksumCRC64NVME": crc64nvme})
    if len(body) > PIECE_BYTES:
        made = await to_thread.run_sync(_read, body, by, abandon_on_cancel=True)
    else:
        made = _read(body, by)
    if crc64nvme not in (None, made.crc64nvme):
        raise ChecksumMismatch("its bytes are not those of its checksum", doing="sending", subject=subject)
    return made


def _read(body: Body, by: Checksum) -> Seal:
    crc, crc32c, md5 = 0, 0, hashlib.md5(usedforsecurity=False)
    for piece in pieces(body):
        crc = checksum.crc64nvme(piece, crc)
        if by == "crc32c":
            crc32c = int(checksums.crc32c(piece, crc32c))
        elif by in ("md5", "etag"):
            md5.update(piece)
    whole = checksum.encode(crc)
    match by:
        case "crc64nvme":
            return Seal(whole, {"ChecksumCRC64NVME": whole})
        case "crc32c":
            return Seal(whole, {"ChecksumCRC32C": base64.b64encode(crc32c.to_bytes(4, "big")).decode()})
        case "md5":
            return Seal(whole, {"ContentMD5": base64.b64encode(md5.digest()).decode()})
        case "etag":
            return Seal(whole, etag=md5.hexdigest())
        case _:
            return Seal(whole)
