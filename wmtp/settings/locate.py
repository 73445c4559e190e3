"""A path or URI of a settings file, made absolute from a working directory that is passed in."""

import os
from pathlib import Path

from uploader.errors import SettingsError
from uploader.location import Location


def is_path(text: str) -> bool:
    """Whether a text that might be a name is a path or URI: it has a slash, or begins with ``.`` or ``~``."""
    return "/" in text or text.startswith((".", "~"))


def locate(text: str, cwd: Path, field: str) -> Location:
    """The location that ``text`` names; relative paths start at ``cwd``.

    Raises:
        SettingsError: it is empty, names no bucket, or has another scheme than s3:// and file://.
    """
    path = text.removeprefix("file://")
    if not text.strip() or "://" in path:
        return Location.parse(text, field=field)
    return Location.parse(os.path.join(cwd, os.path.expanduser(path)), field=field)


def locate_directory(text: str, cwd: Path, field: str) -> Path:
    """The local path that ``text`` names, as ``locate``.

    Raises:
        SettingsError: also where it is an ``s3://`` URI.
    """
    location = locate(text, cwd, field)
    if location.is_s3:
        raise SettingsError(f"{text!r} is not on this machine", subject=field, hint="name a local path")
    return location.directory
