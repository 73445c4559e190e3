"""``wmtp checkpoints``: what there is of a run, here and in its store. Here: list, show, rebuild.

What the commands of the group print with ``--json`` is told in ``docs/json.md``.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import ConfigOption, JsonOption
from wmtp.cli.reporting import one_line_errors, show_error

if TYPE_CHECKING:
    from uploader.location import Location
    from wmtp.cli.inventory import Inventory

JSON = "With --json: one object a line, one line a run:"

group = typer.Typer(
    name="checkpoints",
    help="List, show, verify, restore, pin and prune checkpoints, here and in the store.",
    short_help="List, verify, restore, pin, prune checkpoints.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RunArgument = Annotated[
    str,
    typer.Argument(help="A run directory, or the run's s3:// or file:// location.", metavar="RUN"),
]
StepArgument = Annotated[
    str | None, typer.Argument(help="latest, step_N, or step_N@gG for a superseded one.", metavar="STEP")
]

EmaOption = Annotated[
    bool, typer.Option("--ema", help="Take the averaged weights of the step (optim.ema_decay).")
]


def register(app: typer.Typer) -> None:
    from wmtp.cli import pins, prune, restore, uploads, verify  # noqa: F401  (add their commands to the group)

    app.add_typer(group)


@group.command(
    epilog=f"{JSON} run, directory, store, latest, errors, and steps with name, step, generation, states, "
    "size_bytes, created_at, metrics."
)
@one_line_errors
def ls(run: RunArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the steps of a run, or of every run in a directory.

    States: local, a copy on this disk; corrupt, that copy is damaged; durable, committed in the store;
    pinned, it stays whatever retention says; superseded, left behind by a later generation; pruning, being
    deleted in the store.
    """
    from uploader.errors import WmtpError
    from wmtp.cli.places import runs_at

    runs = runs_at(run)
    failed = False
    for number, location in enumerate(runs):
        if number and not as_json:
            print()
        try:
            failed |= _list(location, config, as_json)
        except WmtpError as error:
            if len(runs) == 1:
                raise
            show_error(error)
            failed = True
    if failed:
        raise SystemExit(1)


def _list(location: "Location", config: Path | None, as_json: bool) -> bool:
    """Show one run; whether some of it could not be read."""
    import anyio

    from wmtp.cli.inventory import take_inventory
    from wmtp.cli.places import reach
    from wmtp.cli.printing import heading, print_table

    async def look() -> "Inventory":
        async with take_inventory(place) as inventory:
            return inventory

    with reach(location, config) as place:
        inventory = anyio.run(look)
    if as_json:
        print(json.dumps(inventory.as_json()))
    else:
        print(heading(inventory))
        print_table(inventory.steps)
    return show_errors(inventory)


def show_errors(inventory: "Inventory") -> bool:
    """Tell what could not be read; whether there was any."""
    for error in inventory.errors:
        show_error(error)
    return bool(inventory.errors)


@group.command(
    short_help="Show one step: its record, files, checksums, metrics.",
    epilog=f"{JSON} run, directory, store, errors; name, step, generation, states, size_bytes, created_at, "
    "metrics; local, record, pin, world_size, fingerprints, and files with path, size_bytes, crc64nvme.",
)
@one_line_errors
def show(
    run: RunArgument, step: StepArgument = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Show one step, the latest if none is named: its record, files, checksums, metrics, fingerprints.

    RUN may end in the step: ckpt/demo/step_400, s3://bucket/demo/step_400.
    """
    import anyio

    from wmtp.cli.inventory import take_inventory
    from wmtp.cli.places import reach, run_and_step, run_at
    from wmtp.cli.printing import print_step

    location, name = run_and_step(run, step)

    async def look() -> tuple["Inventory", dict[str, Any]]:
        async with take_inventory(place) as inventory:
            return inventory, await inventory.describe(inventory.find(name or "latest"))

    with reach(run_at(location), config) as place:
        inventory, shown = anyio.run(look)
    if as_json:
        print(json.dumps(shown))
    else:
        print_step(shown)
    if show_errors(inventory):
        raise SystemExit(1)


@group.command(
    short_help="Write the manifest anew from the commit records.",
    epilog=f"{JSON} run, store, generation, latest, live, superseded, left_out.",
)
@one_line_errors
def rebuild(run: RunArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Write manifest.json anew from the commit records and pins in the store. Nothing else is touched.

    A record whose files are not all there makes no step; it is told.
    """
    import anyio

    from uploader.errors import CorruptError, WmtpError
    from uploader.layout import step_name
    from uploader.manifest import Manifest
    from wmtp.cli.inventory import no_run
    from wmtp.cli.places import open_place, reach, run_at
    from wmtp.cli.printing import print_rebuilt

    left_out: dict[str, str] = {}

    def note(error: CorruptError) -> None:
        left_out[error.subject] = str(error)

    async def repair() -> Manifest:
        async with open_place(place) as store:
            file = place.manifest_file(store)
            if await file.from_records(note) == Manifest(run=place.run):
                raise await no_run(store)
            return await file.rebuild(note)

    with reach(run_at(run), config) as place:
        store = place.store
        try:
            index = anyio.run(repair)
        except WmtpError as error:
            raise place.explained(error) from None
    found = {
        "run": place.run,
        "store": str(store),
        "generation": index.generation,
        "latest": None if index.latest is None else step_name(index.latest),
        "live": [*index.live],
        "superseded": [*index.superseded],
        "left_out": [*left_out.values()],
    }
    if as_json:
        print(json.dumps(found))
    else:
        print_rebuilt(found)
