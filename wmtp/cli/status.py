"""``wmtp status``: what the uploaders of the runs on this machine are doing.

With ``--json``: one object a line, one line a run; with ``--watch`` again and again. Fields are added, never
changed: ``directory``; ``trainer`` and ``uploader`` (``running`` or ``not running``); ``status``: the fields
of ``uploader.status.Status``, as in ``.uploader/status.json``, or null where no uploader has run; ``error``:
why that file can't be read, or null.
"""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import JsonOption, existing_directory
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from uploader.layout import RunDirectory

DEFAULT_DIRECTORIES = ("ckpt", "checkpoints")
REFRESH_S = 1.0
CLEAR = "\x1b[H\x1b[J"
"""What makes a terminal begin again at its top."""


def register(app: typer.Typer) -> None:
    app.command(
        "status",
        short_help="Show what the uploaders of the runs here are doing.",
        epilog="With --json: one object a line, one line a run: directory, trainer, uploader, error, and "
        "status with run, destination, state, store, generation, newest_local_step, newest_durable_step, "
        "durability_lag_steps, upload, recent, durable_total, skipped_total, pruned_remote_total, "
        "pruned_local_total, retries_total, failed_steps, undeletable, error, updated_at.",
    )(status)


@one_line_errors
def status(
    directory: Annotated[
        Path | None,
        typer.Argument(
            help="A run directory or a parent of several; default: ./ckpt and ./checkpoints.", metavar="DIR"
        ),
    ] = None,
    as_json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second.")] = False,
) -> None:
    """Show where each run stands: newest local and durable step, uploads, retries, errors.

    Nothing is asked of the store: this is what the uploaders wrote down.
    """
    while True:
        runs = [_look_at(run) for run in _find_runs(directory)]
        if watch and not as_json and sys.stdout.isatty():
            print(CLEAR, end="")
        for run in runs:
            print(json.dumps(run) if as_json else "\n".join(_lines(run)), flush=True)
        if not watch:
            break
        time.sleep(REFRESH_S)
    if any(run["error"] for run in runs):
        raise SystemExit(1)


def _find_runs(directory: Path | None) -> list["RunDirectory"]:
    from uploader.errors import SettingsError
    from uploader.files import disk_errors
    from uploader.host import is_run_directory
    from uploader.layout import RunDirectory

    chosen = [Path(name) for name in DEFAULT_DIRECTORIES if Path(name).is_dir()]
    if directory is not None or not chosen:
        chosen = [existing_directory(directory or Path(DEFAULT_DIRECTORIES[0]), "looking for runs in")]
    runs: list[RunDirectory] = []
    for path in chosen:
        with disk_errors("looking for runs in", path):
            children = sorted(child for child in path.iterdir() if child.is_dir())
            found = [path] if is_run_directory(path) else filter(is_run_directory, children)
            runs += [RunDirectory(one.absolute()) for one in found]
    if not runs:
        names = ", ".join(str(path) for path in chosen)
        raise SettingsError("there is no run", doing="looking in", subject=names, hint="name a run directory")
    return runs


def _look_at(run: "RunDirectory") -> dict[str, Any]:
    from uploader.errors import WmtpError
    from uploader.files import disk_errors, is_locked
    from uploader.status import read_status

    found, problem = None, None
    try:
        with disk_errors("reading", run.status_file):
            found = read_status(run.status_file)
    except WmtpError as error:  # one run's file must not hide the other runs
        problem = str(error)
    with disk_errors("looking at", run.path):
        trainer, uploader = is_locked(run.trainer_lock), is_locked(run.uploader_lock)
    return {
        "directory": str(run.path),
        "trainer": _running(trainer),
        "uploader": _running(uploader),
        "status": None if found is None else found.model_dump(mode="json"),
        "error": problem,
    }


def _running(locked: bool) -> str:
    return "running" if locked else "not running"


def _lines(run: dict[str, Any]) -> Iterator[str]:
    """A run for people."""
    from uploader.store.capabilities import Capabilities

    yield run["directory"]
    yield f"  trainer   {run['trainer']}"
    state = run["status"]
    if state is None:
        yield f"  uploader  {run['uploader']}; {run['error'] or 'none has run here yet'}"
        return
    yield f"  uploader  {run['uploader']}, {state['state']}, generation {state['generation']}"
    yield f"  store     {state['destination']}"
    if state["store"]:
        yield f"            {Capabilities(**state['store'])}"
    local, durable = _step(state["newest_local_step"]), _step(state["newest_durable_step"])
    lag = state["durability_lag_steps"]
    yield f"  steps     newest local {local}, newest durable {durable}" + (
        "" if lag is None else f", lag {lag} steps"
    )
    yield (
        f"  totals    {state['durable_total']} durable, {state['skipped_total']} skipped, "
        f"{state['pruned_remote_total']} pruned in the store, {state['pruned_local_total']} here, "
        f"{state['retries_total']} retries"
    )
    if state["upload"]:
        upload = state["upload"]
        done_mb, size_mb = upload["done_bytes"] / 1e6, upload["size_bytes"] / 1e6
        yield f"  upload    step_{upload['step']}, {done_mb:.1f} of {size_mb:.1f} MB"
        if bounds := _bounds(upload):
            yield f"            {bounds}"
    for name, reason in state["failed_steps"].items():
        yield f"  corrupt   {name}: {reason}"
    for name, reason in state["undeletable"].items():
        yield f"  not gone  {name}: {reason}"
    if state["error"]:
        yield f"  error     {state['error']}"


def _bounds(upload: dict[str, Any]) -> str:
    """How fast it goes, and what holds it back."""
    told = {
        "parts_limit": "at most {} parts at once",
        "bandwidth_bytes_per_s": "{:.1f} MB/s",
        "bandwidth_limit_bytes_per_s": "held to {:.1f} MB/s",
        "pacing": "{:.0%} of the wire beside the trainer",
    }
    known = {name: upload[name] for name in told if upload[name] is not None}
    return ", ".join(
        told[name].format(value / 1e6 if name.endswith("bytes_per_s") else value)
        for name, value in known.items()
    )


def _step(step: int | None) -> str:
    return "none" if step is None else f"step_{step}"
