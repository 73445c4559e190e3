"""What becomes of a file: cut off, emptied, overwritten, of another version, of another run, changed."""

import json
from collections.abc import Callable
from typing import Any

from uploader.seal import FIELD, sealed

Change = Callable[[bytes], bytes]


def rewritten(**fields: Any) -> Change:
    """Other values, well formed, with the right checksum: as another program would have written them."""

    def change(data: bytes) -> bytes:
        tree = json.loads(data)
        tree.pop(FIELD, None)
        return sealed(json.dumps({**tree, **fields}).encode())

    return change


def bit_flipped(data: bytes) -> bytes:
    """A bit of a digit in the middle: what comes out is well-formed JSON more often than not."""
    digits = [at for at, byte in enumerate(data) if chr(byte) in "0246"]
    at = digits[len(digits) // 2]
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGES: dict[str, Change] = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda _: b"",
    "zeros": lambda data: b"\0" * len(data),
    "garbage": lambda data: bytes((at * 151 + 7) % 256 for at in range(len(data))),
    "a bit flipped": bit_flipped,
    "another schema": rewritten(schema_version=99),
}
"""What every file of ours tells of itself."""
WRONG_RUN: dict[str, Change] = {"of another run": rewritten(run="other")}
EVERY = {**DAMAGES, **WRONG_RUN}
