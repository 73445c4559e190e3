"""``wmtp checkpoints``: list, show, verify and repair what there is of a run, here and in its store.

With ``--json`` each command prints one object a line, one line a run. Fields are added, never changed:

- all: ``run``; ``directory`` (null where nothing is on this disk); ``store`` (its URI; null where unknown);
  ``errors``: what could not be read, as text.
- ``ls``: ``latest`` (a name or null); ``steps``, newest first: ``name`` (``step_N``, ``step_N@gG`` if
  superseded), ``step``, ``generation``, ``states``, ``size_bytes``, ``created_at`` (ISO 8601), ``metrics``.
  A state is ``local`` (a copy on this disk), ``corrupt`` (that copy is damaged), ``durable`` (committed in
  the store), ``superseded`` (a later generation went on from an earlier step) or ``pruning`` (its objects are
  being deleted).
- ``show``: the fields of a step; ``local`` (its directory, or null); ``record`` (where it is),
  ``world_size``, ``fingerprints``, and ``files``, each with ``path``, ``size_bytes``, ``crc64nvme`` (as S3
  writes it).
- ``verify``: ``ok``; ``steps``, each with ``name``, ``checked`` (``local``, ``store``), ``problems``;
  ``problems``: those of the manifest.
- ``rebuild``: ``generation``, ``latest``, ``live`` and ``superseded`` (names).
- ``uploads``: see ``uploads``.
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
    help="List, show, verify and repair checkpoints, here and in the store.",
    short_help="List, show, verify and repair checkpoints.",
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


def register(app: typer.Typer) -> None:
    from wmtp.cli import uploads  # noqa: F401  (adds its command to the group)

    app.add_typer(group)


@group.command(
    epilog=f"{JSON} run, directory, store, latest, errors, and steps with name, step, generation, states, "
    "size_bytes, created_at, metrics."
)
@one_line_errors
def ls(run: RunArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the steps of a run, or of every run in a directory.

    States: local, a copy on this disk; corrupt, that copy is damaged; durable, committed in the store;
    superseded, left behind by a later generation; pruning, being deleted in the store.
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
    return _show_errors(inventory)


def _show_errors(inventory: "Inventory") -> bool:
    for error in inventory.errors:
        show_error(error)
    return bool(inventory.errors)


@group.command(
    short_help="Show one step: its record, files, checksums, metrics.",
    epilog=f"{JSON} run, directory, store, errors; name, step, generation, states, size_bytes, created_at, "
    "metrics; record, world_size, fingerprints, and files with path, size_bytes, crc64nvme.",
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
    from wmtp.cli.places import reach, run_at
    from wmtp.cli.printing import print_step

    location, name = _run_and_step(run, step)

    async def look() -> tuple["Inventory", dict[str, Any]]:
        async with take_inventory(place) as inventory:
            return inventory, await inventory.describe(inventory.find(name or "latest"))

    with reach(run_at(location), config) as place:
        inventory, shown = anyio.run(look)
    if as_json:
        print(json.dumps(shown))
    else:
        print_step(shown)
    if _show_errors(inventory):
        raise SystemExit(1)


def _run_and_step(run: str, step: str | None) -> tuple[str, str | None]:
    from uploader.errors import SettingsError
    from wmtp.cli.places import split_step

    run, named = split_step(run)
    if step and named:
        raise SettingsError(f"the path names {named} already", subject=step, hint="name one step")
    return run, step or named


@group.command(
    short_help="Verify every byte here, the objects in the store, and the manifest.",
    epilog=f"{JSON} run, directory, store, errors, ok, problems, and steps with name, checked, problems.",
)
@one_line_errors
def verify(
    run: RunArgument, step: StepArgument = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Verify all live steps, or one: every byte here, sizes and checksums in the store, the manifest.

    Each problem is one line that names the file and the bytes; the exit code is 1 if there is any.
    """
    import anyio

    from wmtp.cli.inventory import take_inventory
    from wmtp.cli.places import reach, run_at
    from wmtp.cli.printing import heading, print_verdict
    from wmtp.cli.verification import verify_index, verify_steps

    location, name = _run_and_step(run, step)
    say = _nothing if as_json else print

    async def check() -> dict[str, Any]:
        async with take_inventory(place) as inventory:
            steps = [inventory.find(name)] if name else [one for one in inventory.steps if one.live]
            say(heading(inventory))
            verdicts = []
            async for verdict in verify_steps(inventory, steps):
                verdicts.append(verdict.as_json())
                print_verdict(verdict, say)
            problems = [] if name else [str(problem) for problem in await verify_index(inventory)]
            failed = _show_errors(inventory) or problems or any(one["problems"] for one in verdicts)
            return {**inventory.identity(), "ok": not failed, "steps": verdicts, "problems": problems}

    with reach(run_at(location), config) as place:
        found = anyio.run(check)
    for problem in found["problems"]:
        say(f"  damaged  manifest: {problem}")
    if as_json:
        print(json.dumps(found))
    if not found["ok"]:
        raise SystemExit(1)


def _nothing(_: str) -> None:
    """Say nothing: what was found is printed as JSON in the end."""


@group.command(
    short_help="Write the manifest anew from the commit records.",
    epilog=f"{JSON} run, store, generation, latest, live, superseded.",
)
@one_line_errors
def rebuild(run: RunArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Write manifest.json anew from the commit records in the store. Nothing else is touched."""
    import anyio

    from uploader.errors import SettingsError, WmtpError
    from uploader.layout import step_name
    from uploader.manifest import Manifest
    from wmtp.cli.inventory import no_run
    from wmtp.cli.places import open_place, reach, run_at
    from wmtp.cli.printing import print_rebuilt

    async def repair() -> Manifest:
        async with open_place(place) as store:
            file = place.manifest_file(store)
            if await file.from_records() == Manifest(run=place.run):
                raise await no_run(store)
            return await file.rebuild()

    with reach(run_at(run), config) as place:
        if place.location is None:
            hint = "name the store's location itself: s3://… or file://…"
            raise SettingsError("nobody has said where its store is", subject=str(place), hint=hint)
        try:
            index = anyio.run(repair)
        except WmtpError as error:
            raise place.explained(error) from None
    found = {
        "run": place.run,
        "store": str(place.location),
        "generation": index.generation,
        "latest": None if index.latest is None else step_name(index.latest),
        "live": [*index.live],
        "superseded": [*index.superseded],
    }
    if as_json:
        print(json.dumps(found))
    else:
        print_rebuilt(found)
