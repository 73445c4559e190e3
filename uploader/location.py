"""Where checkpoints live: ``s3://bucket/prefix``, ``file://path`` or a bare path.

A location is absolute once made: relative paths resolve against the working directory, once.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from uploader.errors import SettingsError

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Location:
    """A directory of a file system or a prefix of a bucket.

    Attributes:
        bucket: the bucket's name; empty for a file system.
        path: the prefix without slashes at its ends, or the absolute directory.
    """

    bucket: str
    path: str

    @classmethod
    def parse(cls, text: str, *, field: str = "location") -> "Location":
        """Read ``s3://b[/prefix]``, ``file://./relative``, ``file:///absolute`` or a bare path.

        Raises:
            SettingsError: the text is empty, names no bucket, or has another scheme. What could be a
                secret (before an ``@``, after a ``?``) is not repeated in the message.
        """
        if not text.strip() or _CONTROL.search(text):
            problem = "it has control characters" if text.strip() else "it is empty"
            raise SettingsError(problem, subject=field, hint="name a path, file:// or s3://")
        if "://" not in text:
            return cls("", os.path.abspath(os.path.expanduser(text)))
        scheme, rest = text.split("://", 1)
        if scheme == "file":
            return cls("", os.path.abspath(os.path.expanduser(rest or ".")))
        if scheme != "s3":
            problem = f"{_shown(text)!r} has the unknown scheme {scheme!r}"
            raise SettingsError(problem, subject=field, hint="use s3:// or file://")
        bucket, *parts = rest.split("/")
        if not _BUCKET.match(bucket) or {".", ".."} & {*parts} or re.search("[?#]", rest):
            raise SettingsError(f"{_shown(text)!r} is not s3://bucket/prefix", subject=field)
        return cls(bucket, "/".join(part for part in parts if part))

    @property
    def is_s3(self) -> bool:
        return bool(self.bucket)

    @property
    def directory(self) -> Path:
        """The directory of a ``file://`` location."""
        if self.is_s3:
            raise ValueError(f"{self} is not a directory")
        return Path(self.path)

    def join(self, name: str) -> "Location":
        """The location ``name`` below this one (a run below its base)."""
        if not self.is_s3:
            return Location("", os.path.join(self.path, name))
        return Location(self.bucket, f"{self.path}/{name}" if self.path else name)

    @property
    def parent(self) -> "Location":
        """The location one level up; the bucket's root is its own parent."""
        if not self.is_s3:
            return Location("", os.path.dirname(self.path))
        return Location(self.bucket, self.path.rpartition("/")[0])

    @property
    def name(self) -> str:
        """The last part: the run's name for a run's location."""
        return self.path.rstrip("/").rpartition("/")[2]

    def __str__(self) -> str:
        if not self.is_s3:
            return f"file://{self.path}"
        return f"s3://{self.bucket}/{self.path}" if self.path else f"s3://{self.bucket}"


def _shown(text: str) -> str:
    """The text as a message may repeat it."""
    return re.sub(r"://.*@", "://…@", re.split("[?#]", text)[0])
