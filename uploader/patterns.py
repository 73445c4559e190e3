"""What the checkpoints of other trainers are called: one table. Pure.

A name alone says which step it is and what to expect inside; whether all of it is there is for
``completeness`` to say. Names that are still being written under (``tmp-checkpoint-5``, ``x.tmp``,
``x.partial``, hidden ones) never match.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

_N = r"0*(?P<step>[0-9]{1,15})"
_TEMPORARY = re.compile(r"(?:\..*|tmp[-_].*|.*\.(?:tmp(?:[-.].*)?|part|partial|incomplete))\Z", re.S | re.I)


class Kind(Enum):
    """What a name promises.

    ``DCP`` is the loosest: any directory whose name ends in a number. It is one only if it holds
    ``.metadata``.
    """

    FILE = "a file"
    LIGHTNING = "Lightning, a file or a directory"
    HUGGING_FACE = "a directory of the Hugging Face Trainer"
    DIRECTORY = "a directory"
    DCP = "a directory of torch.distributed.checkpoint"


@dataclass(frozen=True, slots=True)
class Found:
    """What a name says.

    Attributes:
        version: Lightning's ``-vN``, written where the name was taken; 0 without.
    """

    step: int
    kind: Kind
    version: int = 0


@dataclass(frozen=True, slots=True)
class _Row:
    kind: Kind
    pattern: re.Pattern[str]
    is_file: bool
    is_directory: bool


def _row(kind: Kind, pattern: str, *, files: bool = False, directories: bool = False) -> _Row:
    return _Row(kind, re.compile(pattern + r"\Z"), files, directories)


TABLE = (
    _row(Kind.HUGGING_FACE, rf"checkpoint-{_N}", directories=True),
    _row(Kind.DIRECTORY, rf"(?:checkpoint_)?step[-_]{_N}", directories=True),  # torchtitan, and everyone else
    _row(Kind.DIRECTORY, rf"global_step{_N}", directories=True),  # DeepSpeed
    _row(Kind.FILE, rf"(?:checkpoint_)?step[-_]{_N}\.(?:pt|pth|safetensors)", files=True),
    _row(
        Kind.LIGHTNING,
        rf"(?:.*[^A-Za-z])?step={_N}(?![0-9]).*?(?:-v(?P<version>[0-9]{{1,9}}))?\.ckpt",
        files=True,
        directories=True,
    ),
    _row(Kind.DCP, rf"(?:.*[^0-9])?{_N}", directories=True),
)
"""Earlier rows go first, in matching and where two names mean one step."""


def parse(name: str, *, is_directory: bool) -> Found | None:
    """What the name of a file or a directory says; None where it is no checkpoint's."""
    if is_temporary(name):
        return None
    for row in TABLE:
        found = row.pattern.match(name) if (row.is_directory if is_directory else row.is_file) else None
        if found:
            version = found.groupdict().get("version")
            return Found(int(found["step"]), row.kind, int(version or 0))
    return None


def is_temporary(name: str) -> bool:
    """Whether a name says that it is hidden, or that its file is not finished."""
    return _TEMPORARY.match(name) is not None


def choose(names: Iterable[tuple[str, Found]]) -> str:
    """The one of several names of one step that is its checkpoint.

    The earlier row of the table, then the later version, then the first by name: whatever the disk's order.
    """
    rows = [row.kind for row in TABLE]
    return min(names, key=lambda one: (rows.index(one[1].kind), -one[1].version, one[0]))[0]
