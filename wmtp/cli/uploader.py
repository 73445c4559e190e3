"""``wmtp uploader``: push checkpoints of one run, or of all runs below a directory, to a store."""

import logging
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.access import ConfigOption, existing_directory, storage_from_config
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from uploader.host import Fallback


def register(app: typer.Typer) -> None:
    app.command("uploader")(uploader)


@one_line_errors
def uploader(
    watch: Annotated[Path, typer.Option(help="A run directory, or a parent of several.", metavar="DIR")],
    to: Annotated[
        str | None,
        typer.Option(help="Where runs go whose trainer wrote no run.json: below this URI.", metavar="URI"),
    ] = None,
    config: ConfigOption = None,
    once: Annotated[bool, typer.Option("--once", help="Upload what is there, then exit.")] = False,
) -> None:
    """Push committed checkpoints to their store, keep its manifest, prune. Ends when the run is over."""
    from uploader.location import Location

    path = existing_directory(watch, "watching")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uploader").setLevel(logging.INFO)
    for noisy in ("botocore", "aiobotocore", "aioboto3", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    with ExitStack() as stack:
        fallback = None
        if to is not None:
            from uploader.host import Fallback

            location = Location.parse(to, field="--to")
            fallback = Fallback(location, stack.enter_context(storage_from_config(config, location)))
        code = _serve(path, fallback, once)
    if code:
        raise SystemExit(code)


def _serve(path: Path, fallback: "Fallback | None", once: bool) -> int:
    """Serve until the end or a signal; the exit code."""
    import anyio

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
            await serve(path, fallback=fallback, once=once)
            group.cancel_scope.cancel()
        return code

    return anyio.run(serve_until_signal)
