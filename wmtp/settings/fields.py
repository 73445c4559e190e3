"""What the sections of both settings files have in common: strictness, and the values they share."""

import re
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field

from uploader.settings import Strict

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


Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
RunName = Annotated[str, AfterValidator(check_run_name)]
KeepLast = Annotated[int, AfterValidator(_check_keep_last)]
SaveInterval = Annotated[int, AfterValidator(_check_save_interval)]
