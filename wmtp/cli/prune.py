"""``wmtp checkpoints prune``: what retention lets go, why the rest stays; and away with it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import ConfigOption, JsonOption
from wmtp.cli.checkpoints import JSON, RunArgument, group, show_errors
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from wmtp.cli.places import Place
    from wmtp.cli.pruning import Pruning

DryOption = Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why the rest stays.")]


@group.command(
    short_help="Delete what retention lets go; --dry-run says what and why.",
    epilog=f"{JSON} run, directory, store, errors, dry_run, policy, local_policy, pruned, left, and steps "
    "with name, where, goes, why.",
)
@one_line_errors
def prune(
    run: RunArgument,
    dry_run: DryOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Carry out retention now, in the store and on this disk, as the uploader does after each commit.

    The policy is that of run.json, else that of --config. While an uploader serves the run, here or
    elsewhere, only --dry-run may look: that uploader prunes by itself.
    """
    import anyio

    from uploader.errors import WmtpError
    from wmtp.cli.places import reach, run_at
    from wmtp.cli.pruning import Pruning, policies

    async def go() -> "tuple[Pruning, dict[str, Any]]":
        async with Pruning.of(place, policies(place, config)) as pruning:
            if not dry_run:
                await pruning.require_no_owner(_say)
                with _alone(place):
                    await pruning.carry_out()
            return pruning, {**pruning.as_json(), "dry_run": dry_run}

    with reach(run_at(run), config) as place:
        try:
            pruning, found = anyio.run(go)
        except WmtpError as error:
            raise place.explained(error) from None
    if as_json:
        print(json.dumps(found))
    else:
        _print(found)
    if show_errors(pruning.inventory):
        raise SystemExit(1)


@contextmanager
def _alone(place: "Place") -> Iterator[None]:
    """Hold the run directory, as its uploader does.

    Raises:
        OwnershipError: one serves it.
    """
    import os

    from uploader import files
    from uploader.errors import OwnershipError

    if place.directory is None:
        yield
        return
    with files.disk_errors("locking", place.directory.uploader_directory):
        files.make_directory(place.directory.uploader_directory)
        lock = files.lock(place.directory.uploader_lock)
    if lock is None:
        hint = "it prunes by itself after each commit; look at what it will do with --dry-run"
        raise OwnershipError("an uploader serves it", doing="pruning", subject=str(place), hint=hint)
    try:
        yield
    finally:
        os.close(lock)


def _say(line: str) -> None:
    import sys

    print(line, file=sys.stderr, flush=True)


def _print(found: dict[str, Any]) -> None:
    here = "" if found["directory"] is None else f" in {found['directory']}"
    print(f"run {found['run']}{here}, store {found['store']}")
    print(f"  the store keeps {found['policy']}")
    if found["local_policy"]:
        print(f"  this disk keeps {found['local_policy']}")
    goes = "would go" if found["dry_run"] else "goes"
    rows = [
        (step["name"], step["where"], goes if step["goes"] else "stays", ", ".join(step["why"]))
        for step in found["steps"]
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for *words, why in rows:
        columns = [f"{word:<{width}}" for word, width in zip(words, widths, strict=True)]
        print("  ".join(["", *columns, why]).rstrip())
    if not found["dry_run"]:
        names = [f"{one['name']} ({one['where']})" for one in found["pruned"]]
        print(f"  pruned: {', '.join(names) or 'nothing'}")
        for one in found["left"]:
            print(f"  left:   {one['name']}: {one['why']}")
