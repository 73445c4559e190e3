"""``wmtp checkpoints pin`` and ``unpin``: a step stays, whatever retention says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import ConfigOption, JsonOption
from wmtp.cli.checkpoints import JSON, RunArgument, StepArgument, group
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from uploader.errors import WmtpError
    from uploader.manifest import Entry
    from uploader.store import ObjectStore
    from wmtp.cli.places import Place

NoteOption = Annotated[str, typer.Option("--note", help="Why, for whoever finds the pin.", metavar="TEXT")]
FIELDS = "run, directory, store, errors, name, step, generation, pinned, changed"


@group.command(
    short_help="Keep a step, whatever retention says.", epilog=f"{JSON} {FIELDS}, pin with by, at, note."
)
@one_line_errors
def pin(
    run: RunArgument,
    step: StepArgument = None,
    note: NoteOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pin a durable step, the latest if none is named: it stays in the store until it is unpinned.

    The trainer and its uploader may be at work, here or elsewhere. The copy on this disk may go all the same.
    """
    from uploader.errors import plain

    found = _change(run, step, config, note)
    if as_json:
        print(json.dumps(found))
    else:
        said = "pinned" if found["changed"] else "pinned already"
        print(plain(f"{found['name']} of run {found['run']} is {said}, by {found['pin']['by']}"))


@group.command(short_help="Let retention decide about a step again.", epilog=f"{JSON} {FIELDS}, pin (null).")
@one_line_errors
def unpin(
    run: RunArgument, step: StepArgument = None, config: ConfigOption = None, as_json: JsonOption = False
) -> None:
    """Take the pin off a step: the next prune may delete it."""
    found = _change(run, step, config, None)
    if as_json:
        print(json.dumps(found))
    else:
        said = "not pinned any more" if found["changed"] else "not pinned"
        print(f"{found['name']} of run {found['run']} is {said}")


def _change(run: str, step: str | None, config: Path | None, note: str | None) -> dict[str, Any]:
    """Pin a step with a note, or with None unpin it; what to print.

    Raises:
        SettingsError: the note is too long, or nobody knows the store.
        NothingToResume: there is no such step, or it is not durable, or is being pruned.
    """
    import anyio

    from uploader.errors import WmtpError
    from wmtp.cli.inventory import take_inventory
    from wmtp.cli.places import reach, run_and_step, run_at

    location, name = run_and_step(run, step)

    async def change() -> dict[str, Any]:
        async with take_inventory(place) as inventory:
            if inventory.store is None:
                _ = place.store  # says what to do where nobody knows it
                raise inventory.errors[0]
            found = inventory.find(name or "latest")
            if found.entry is None:
                raise _not_durable(found.name)
            result = {"name": found.name, "step": found.step, "generation": found.generation}
            changed = await _set(inventory.store, place, found.entry, note)
            return {**inventory.identity(), **result, **changed}

    with reach(run_at(location), config) as place:
        try:
            return anyio.run(change)
        except WmtpError as error:
            raise place.explained(error) from None


async def _set(store: "ObjectStore", place: "Place", entry: "Entry", note: str | None) -> dict[str, Any]:
    """Change the pin; what there is to say of it."""
    from datetime import UTC, datetime

    from pydantic import ValidationError

    from uploader import pins
    from uploader.errors import SettingsError

    file = place.manifest_file(store)
    if note is None:
        return {"pinned": False, "changed": await pins.unpin(store, file, entry), "pin": None}
    try:
        wanted = pins.Pin.of(place.run, entry, note=note, at=datetime.now(UTC))
    except ValidationError:
        hint = f"{pins.MAX_NOTE_CHARACTERS} characters are the most"
        raise SettingsError("the note is too long", subject="--note", hint=hint) from None
    holds = await pins.pin(store, file, entry, wanted)
    shown = holds.model_dump(mode="json", include={"by", "at", "note"})
    return {"pinned": True, "changed": holds == wanted, "pin": shown}


def _not_durable(name: str) -> "WmtpError":
    from uploader.errors import NothingToResume

    hint = "pin it when `wmtp checkpoints ls` says that it is durable"
    return NothingToResume("it is not in the store yet", doing="pinning", subject=name, hint=hint)
