"""What the sections of both settings files have in common: strictness, and the values they share."""

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from uploader.retention import KeepBest
from uploader.settings import BytesPerSecond, Strict

_RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")


class Section(Strict):
    """A mapping of a settings file: unknown keys are refused, numbers are finite, nothing changes later."""

    model_config = ConfigDict(allow_inf_nan=False)


def check_run_name(name: str) -> str:
    """The name itself, when it can be a directory and a part of a key.

    Raises:
        ValueError: it has other characters, begins with a dot, is empty or too long.
    """
    if not _RUN_NAME.fullmatch(name):
        raise ValueError(
            f"{name!r} cannot be a run's name: use 1 to 128 letters, digits, '.', '_' and '-', no dot first"
        )
    return name


def parse_bandwidth(written: object) -> object:
    """Bytes a second from ``50MB``, ``400Mbit``, ``64KiB/s``; a number is bytes already.

    Raises:
        ValueError: it is a text of another form.
    """
    if not isinstance(written, str):
        return written
    found = _BANDWIDTH.fullmatch(written.strip())
    if found is None:
        raise ValueError(f"{written!r} is no bandwidth: write 50MB, 400Mbit, or a number of bytes a second")
    number, prefix, binary, unit = found.groups()
    power = "kmgt".index(prefix.lower()) + 1 if prefix else 0
    return int(float(number) * (1024 if binary else 1000) ** power / (8 if unit == "bit" else 1))


_BANDWIDTH = re.compile(r"(\d+(?:\.\d+)?) ?(?:([kKMGT])(i?))?(B|bit)?(?:/s)?")


def _check_keep_last(keep_last: int) -> int:
    if keep_last < 1:
        raise ValueError(
            f"{keep_last} would prune every checkpoint; the newest is always kept: use 1 or more"
        )
    return keep_last


def _check_save_interval(steps: int) -> int:
    if steps < 1:
        raise ValueError(
            f"{steps} is no number of steps: use 1 or more (above max_steps, only the final step is saved)"
        )
    return steps


Bandwidth = Annotated[BytesPerSecond, BeforeValidator(parse_bandwidth)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
RunName = Annotated[str, AfterValidator(check_run_name)]
KeepLast = Annotated[int, AfterValidator(_check_keep_last)]
SaveInterval = Annotated[int, AfterValidator(_check_save_interval)]


class RetentionRules(Section):
    """Which committed steps stay: those that any rule keeps, the newest always. null is no rule.

    Attributes:
        keep_last: so many of the newest.
        keep_every: those whose number is a multiple of it; 1 keeps all.
        keep_best: the ``n`` best by a ``metric`` of the records, ``mode`` min or max.
        keep_for_s: those that are younger.
    """

    keep_last: KeepLast | None = None
    keep_every: Count | None = None
    keep_best: KeepBest | None = None
    keep_for_s: Positive | None = None


Rules = Annotated[RetentionRules, BeforeValidator(lambda written: {} if written is None else written)]
"""A section that null leaves unset."""
