"""The checksum that a JSON file of ours carries of itself: its last field, taken over every byte before it.

What a file says twice guards itself; the seal guards the rest: a time, a metric, the name of a run. A file
that has none was written before there were seals, and is read as it is.
"""

import re
from typing import Any

from pydantic import model_validator

from uploader import checksum
from uploader.below import MAX_SMALL_BYTES
from uploader.errors import TooLarge
from uploader.settings import Strict

FIELD = "self_crc64nvme"
_SEAL = re.compile(rb',\s*"self_crc64nvme":\s*"([A-Za-z0-9+/=]*)"\s*\}\s*\Z')
_LONGEST_BYTES = 100


def sealed(body: bytes, what: str = "a JSON file") -> bytes:
    """A JSON object, which has fields, with its seal as one more.

    Args:
        what: for the error.

    Raises:
        TooLarge: nobody would read it.
    """
    content = body.rstrip().removesuffix(b"}").rstrip()
    if len(content) + _LONGEST_BYTES > MAX_SMALL_BYTES:
        problem = f"its {len(content)} bytes are more than {MAX_SMALL_BYTES}, the most that is read"
        raise TooLarge(problem, doing="writing", subject=what, hint="write fewer or shorter metrics")
    return b'%s,"%s":"%s"}\n' % (content, FIELD.encode(), checksum.of_bytes(content).encode())


def is_broken(data: bytes) -> bool:
    """Whether a JSON file says other things than when it was sealed."""
    start = max(0, len(data) - _LONGEST_BYTES)
    seal = _SEAL.search(data, start)
    if seal is None:
        return b'"%s"' % FIELD.encode() in data
    return checksum.of_bytes(memoryview(data)[: seal.start()]) != seal[1].decode()


class Sealed(Strict):
    """A file of ours. Whoever reads one with ``record.decode`` knows that its seal is whole."""

    @model_validator(mode="before")
    @classmethod
    def _unsealed(cls, given: Any) -> Any:
        if isinstance(given, dict) and FIELD in given:
            return {name: given[name] for name in given if name != FIELD}
        return given

    def encode(self) -> bytes:
        return sealed(self.model_dump_json().encode(), type(self).__name__)
