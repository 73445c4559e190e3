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
    from uploader.flow import Flows
    from uploader.host import Fallback
    from uploader.retention import Retention


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
    keep_last: Annotated[
        int | None,
        typer.Option(
            help="So many of the last steps stay in the store of a run without run.json; default: all, with "
            "another rule 3.",
            metavar="N",
        ),
    ] = None,
    keep_every: Annotated[
        int | None, typer.Option(help="Multiples of it stay, too: 1000 keeps step 1000, 2000, …", metavar="N")
    ] = None,
    keep_for_s: Annotated[
        float | None, typer.Option(help="What is younger stays, too, by the store's clock.", metavar="S")
    ] = None,
    quiet_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Seconds without a change that make a checkpoint complete whose format does not tell.",
            metavar="S",
        ),
    ] = 10.0,
    max_bandwidth: Annotated[
        str | None,
        typer.Option(help="What uploads may take of the network: 50MB, 400Mbit a second.", metavar="RATE"),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Upload what is there, then exit.")] = False,
    nice: Annotated[
        int, typer.Option(min=0, max=19, help="How far to stand back for others on the CPU.")
    ] = 0,
) -> None:
    """Push checkpoints to their store, keep its manifest, prune.

    It ends when the run is finished, or its trainer is gone, and nothing is left to upload; of a parent of
    several runs it serves new ones as they come, until Ctrl-C. wmtp train starts one by itself.

    With --to it serves any other trainer as well, until Ctrl-C: step_N.pt, checkpoint_step_N.pt (.pth,
    .safetensors), checkpoint-N/ of Hugging Face, *step=N*.ckpt of Lightning, step-N/ of torchtitan, step_N/,
    global_stepN/ of DeepSpeed, and any directory that ends in a number and holds the .metadata of DCP. A
    checkpoint is uploaded when its format shows that it is complete, or when it was quiet for --quiet-s.
    Local files of such a trainer are never deleted. Its checkpoints hold no metrics, so none is the best.

    With --once it waits no longer than it takes to see that nobody writes to them any more (--quiet-s at
    most), uploads what is complete, and exits with 3, naming the rest, if anything is not.
    """
    os.nice(nice)
    path = existing_directory(watch, "watching")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uploader").setLevel(logging.INFO)
    for noisy in ("botocore", "aiobotocore", "aioboto3"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    retention = _retention(keep_last=keep_last, keep_every=keep_every, keep_for_s=keep_for_s)
    _warn_of_stopped_server(path)
    with _fallback(to, config, retention, quiet_s) as fallback:
        code = _serve(path, fallback, once, _flows(max_bandwidth))
    if code:
        raise SystemExit(code)


def _retention(**rules: object) -> "Retention":
    """What stays in the store of a run without ``run.json``: all of it, where no rule is given."""
    from uploader.retention import Retention

    if all(value is None for value in rules.values()):
        return Retention(keep_last=None)
    from wmtp.settings.retention import retention_of_flags

    return retention_of_flags(**rules)


def _flows(max_bandwidth: str | None) -> "Flows":
    from uploader.flow import Flows

    if max_bandwidth is None:
        return Flows()
    from wmtp.settings.resolve import checked_bandwidth

    return Flows(checked_bandwidth(max_bandwidth))


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
def _fallback(
    to: str | None, config: Path | None, retention: "Retention", quiet_s: float
) -> "Iterator[Fallback | None]":
    """Where a run goes that has no ``run.json``: below ``--to``, else below the base of ``--config``."""
    from uploader.host import Fallback
    from uploader.location import Location
    from uploader.settings import UploadSettings

    if to is not None:
        location = Location.parse(to, field="--to")
    elif config is not None:
        location = base_from_config(config)
    else:
        yield None
        return
    with storage_from_config(config, location) as storage:
        yield Fallback(location, storage, retention, UploadSettings(quiet_s=quiet_s))


def _serve(path: Path, fallback: "Fallback | None", once: bool, flows: "Flows") -> int:
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
                await serve(path, fallback=fallback, once=once, flows=flows)
            group.cancel_scope.cancel()
        return code

    return anyio.run(serve_until_signal)
