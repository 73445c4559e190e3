"""What ``--resume`` names: ``latest``, ``auto``, a step, or another run's checkpoint by path or URI."""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uploader.errors import SettingsError
from uploader.location import Location
from wmtp.settings.locate import is_path, locate

_STEP = re.compile(r"step_([0-9]+)(?:@g([0-9]+))?")
_ALMOST_STEP = re.compile(r"(?:step)?[-_ ]?([0-9]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Resume:
    """Where to resume from.

    Attributes:
        text: as it was written.
        kind: ``latest`` (there must be one), ``auto`` (fresh only where absence is proven), ``step`` of this
            run, or the ``location`` of a run or of one of its steps.
        step: number of the step, for the kind ``step``.
        generation: of a superseded step, ``step_700@g2``; None is the live one.
        location: for the kind ``location``.
    """

    text: str
    kind: Literal["latest", "auto", "step", "location"]
    step: int | None = None
    generation: int | None = None
    location: Location | None = None

    @classmethod
    def parse(cls, text: str, cwd: Path) -> "Resume":
        """Read ``latest``, ``auto``, ``step_N``, ``step_N@gG``, a URI, or a path with a slash.

        Raises:
            SettingsError: it is none of these.
        """
        if text in ("latest", "auto"):
            return cls(text, "latest" if text == "latest" else "auto")
        if step := _STEP.fullmatch(text):
            return cls(text, "step", int(step[1]), int(step[2]) if step[2] else None)
        if is_path(text):
            return cls(text, "location", location=locate(text, cwd, "--resume"))
        raise SettingsError(f"{text!r} names no checkpoint", subject="--resume", hint=_meant(text))

    def __str__(self) -> str:
        return self.text


def _meant(text: str) -> str:
    if number := _ALMOST_STEP.fullmatch(text):
        return f"did you mean step_{int(number[1])}?"
    if near := difflib.get_close_matches(text, ["latest", "auto"], n=1):
        return f"did you mean {near[0]}?"
    return f"write latest, auto, step_N, an s3:// URI, or a path with a slash (./{text or 'path'})"
