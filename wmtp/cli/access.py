"""How the commands that train nothing reach a run: by its directory's ``run.json``, or by the config."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from uploader.errors import SettingsError
from uploader.location import Location
from uploader.settings import StorageSettings

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="Config that says how the store is reached.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def storage_from_config(config: Path | None, location: Location) -> Iterator[StorageSettings]:
    """The storage settings of a config file, with its development server running if it names one."""
    from wmtp.settings import directory_of, load_config, storage_of
    from wmtp.store_access import reachable

    cwd = Path.cwd()
    section = load_config(config, os.environ, cwd).storage
    dev_s3 = directory_of(section.dev_s3, cwd, "storage.dev_s3") if location.is_s3 else None
    with reachable(storage_of(section, cwd), dev_s3, location.bucket) as (storage, _):
        yield storage


def existing_directory(path: Path, what: str) -> Path:
    """An absolute path of a directory that is there.

    Raises:
        SettingsError: it is not.
    """
    if not path.is_dir():
        hint = "correct the path, or start the trainer first: it makes the directory"
        raise SettingsError("there is no such directory", doing=what, subject=str(path), hint=hint)
    return path.absolute()
