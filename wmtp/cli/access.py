"""How the commands that train nothing reach a store: by the config. And the options they share."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uploader.errors import SettingsError
from uploader.location import Location

if TYPE_CHECKING:
    from uploader.settings import StorageSettings

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        help="Config that says how the store is reached; default: configs/config.yaml if there is one.",
        metavar="FILE",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@contextmanager
def storage_from_config(config: Path | None, location: Location) -> "Iterator[StorageSettings]":
    """The storage settings of a config file, with its development server running if it names one."""
    from wmtp.settings import directory_of, load_config, storage_of
    from wmtp.store_access import reachable

    cwd = Path.cwd()
    section = load_config(config, os.environ, cwd).storage
    dev_s3 = directory_of(section.dev_s3, cwd, "storage.dev_s3") if location.is_s3 else None
    with reachable(storage_of(section, cwd), dev_s3, location.bucket) as (storage, _):
        yield storage


def base_from_config(config: Path) -> Location:
    """Where the runs of a config go: below its ``base_path``."""
    from wmtp.settings import load_config
    from wmtp.settings.locate import locate

    cwd = Path.cwd()
    text = load_config(config, os.environ, cwd).paths.checkpoints.base_path
    return locate(text, cwd, "paths.checkpoints.base_path")


def existing_directory(path: Path, what: str) -> Path:
    """An absolute path of a directory that is there and can be read.

    Raises:
        SettingsError: it is not there.
        DiskError: it can't be read.
    """
    from uploader.files import disk_errors

    with disk_errors(what, path):
        if not path.is_dir():
            problem = "it is not a directory" if path.exists() else "there is no such directory"
            hint = "correct the path, or start the trainer first: it makes the directory"
            raise SettingsError(problem, doing=what, subject=str(path), hint=hint)
        os.scandir(path).close()
    return path.absolute()
