"""What a store does with checksums and conditions, as ``probe`` finds it, and how that is said. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Checksum = Literal["crc64nvme", "crc32c", "md5", "etag", "none"]
"""What tells that bytes arrived whole: a checksum the store verifies on receipt, the strongest it knows; its
ETag, which is compared with the MD5 afterwards; or nothing before the restore."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What one store really does.

    Attributes:
        checksum: how a body's arrival is verified.
        full_object: whether an object made of parts is verified by its whole CRC64-NVME, and keeps it.
        create_once: whether ``If-None-Match: *`` keeps a PUT from replacing an object.
        compare_and_swap: whether ``If-Match`` keeps a PUT from replacing another version.
        quoted_etags: whether ``If-Match`` holds only for an ETag in its quotes.
        complete_once: whether ``If-None-Match: *`` keeps a completed upload from replacing an object.
    """

    checksum: Checksum
    full_object: bool
    create_once: bool
    compare_and_swap: bool
    quoted_etags: bool = False
    complete_once: bool = False

    @property
    def keeps_crc64nvme(self) -> bool:
        """Whether the store itself tells the CRC64-NVME of an object that was put with one request."""
        return self.checksum == "crc64nvme"

    def __str__(self) -> str:
        return "; ".join((_CHECKSUMS[self.checksum], *self._lacks()))

    def _lacks(self) -> Iterator[str]:
        if self.checksum == "crc64nvme" and not self.full_object:
            yield "none for objects made of parts"
        match self.create_once, self.compare_and_swap:
            case True, True:
                yield "conditional writes"
            case False, False:
                yield f"no conditional writes: {_UNPROTECTED}"
            case True, False:
                yield f"creates once, but does not compare and swap: {_UNPROTECTED}"
            case _:
                yield f"compares and swaps, but does not create once: {_UNPROTECTED}"


_UNPROTECTED = "one uploader at a time is protected by the owner's lease alone"
_CHECKSUMS: Final[dict[Checksum, str]] = {
    "crc64nvme": "checksums: CRC64-NVME",
    "crc32c": "checksums: CRC32C only",
    "md5": "checksums: MD5 only",
    "etag": "checksums: none verified on receipt, ETags are compared with the MD5 after each write",
    "none": "checksums: none, what arrived is verified by a restore only",
}

ALL: Final = Capabilities(
    "crc64nvme", full_object=True, create_once=True, compare_and_swap=True, complete_once=True
)
"""Of AWS, and of our own stores on disk and in memory."""
