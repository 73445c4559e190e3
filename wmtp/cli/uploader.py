"""``wmtp uploader``: push checkpoints of one run, or of all runs below a directory, to a store."""

import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.access import ConfigOption, base_from_config, existing_directory, storage_from_config
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from uploader.host import Fallback


def register(app: typer.Typer) -> None:
    app.command("uploader", short_help="Push committed checkpoints to their store, and prune.")(uploader)


@one_line_errors
def uploader(
    watch: Annotated[Path, typer.Option(help="A run directory, or a parent of several.", metavar="DIR")],
    to: Annotated[
        str | None,
        typer.Option(
            help="Where runs go whose trainer wrote no run.json: below this URI; default: below the "
            "base_path of --config.",
            metavar="URI",
        ),
    ] = None,
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Upload what is there, then exit.")] = False,
    nice: Annotated[
        int, typer.Option(min=0, max=19, help="How far to stand back for others on the CPU.")
    ] = 0,
) -> None:
    """Push committed checkpoints to their store, keep its manifest, prune.

    It ends when the run is finished, or its trainer is gone, and nothing is left to upload; of a parent of
    several runs it serves new ones as they come, until Ctrl-C. wmtp train starts one by itself.
    """
    os.nice(nice)
    path = existing_directory(watch, "watching")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uploader").setLevel(logging.INFO)
    for noisy in ("botocore", "aiobotocore", "aioboto3", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    _warn_of_stopped_server(path)
    with _fallback(to, config) as fallback:
        code = _serve(path, fallback, once)
    if code:
        raise SystemExit(code)


def _warn_of_stopped_server(path: Path) -> None:
    """An outage of the store is waited out; of a server on this machine a person can end it at once."""
    from uploader.files import disk_errors
    from uploader.layout import RunDirectory
    from uploader.run import RunFile
    from wmtp.cli.places import stopped_server

    with disk_errors("reading", path):
        run = RunFile.read(RunDirectory(path))
    stopped = stopped_server(run.storage) if run is not None else None
    if stopped is not None:
        hint = "start it with `wmtp dev-s3 --data %s`"
        logging.getLogger("uploader").warning(
            "the S3 server of this machine is not running; " + hint, stopped
        )


@contextmanager
def _fallback(to: str | None, config: Path | None) -> "Iterator[Fallback | None]":
    """Where a run goes that has no ``run.json``: below ``--to``, else below the base of ``--config``."""
    from uploader.host import Fallback
    from uploader.location import Location

    if to is not None:
        location = Location.parse(to, field="--to")
    elif config is not None:
        location = base_from_config(config)
    else:
        yield None
        return
    with storage_from_config(config, location) as storage:
        yield Fallback(location, storage)


def _serve(path: Path, fallback: "Fallback | None", once: bool) -> int:
    """Serve until the end or a signal; the exit code."""
    import anyio

    from uploader.files import disk_errors
    from uploader.host import serve
    from uploader.tasks import task_group

    async def serve_until_signal() -> int:
        code = 0
        async with task_group() as group:

            async def stop_on_signal() -> None:
                nonlocal code
                with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                    async for number in signals:
                        code = 128 + number
                        group.cancel_scope.cancel()

            group.start_soon(stop_on_signal)
            with disk_errors("serving", path):
                await serve(path, fallback=fallback, once=once)
            group.cancel_scope.cancel()
        return code

    return anyio.run(serve_until_signal)
