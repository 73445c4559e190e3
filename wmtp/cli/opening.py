"""From a run and a step, as they are named on the command line, to the model of that step."""

from pathlib import Path

import anyio

from uploader import layout
from uploader.errors import CorruptError, WmtpError
from uploader.location import Location
from wmtp.cli.inventory import take_inventory
from wmtp.cli.places import Place, reach, run_and_step, run_at
from wmtp.cli.steps import Step
from wmtp.eval.opened import Opened, open_checkpoint


def open_step(
    run: str, step: str | None, config: Path | None, scratch: Path, *, quiet: bool, averaged: bool = False
) -> Opened:
    """The model of a step, from this disk where an intact copy is there, else from the store.

    Args:
        run: a run directory or location; may end in the step.
        step: ``latest`` (None), ``step_N`` or ``step_N@gG``.
        scratch: where a download may lie for a moment.
        quiet: don't tell what is being downloaded.
        averaged: with the averages of its weights (``optim.ema_decay``), not the weights.

    Raises:
        SettingsError: two steps are named, or the step has no averages.
        NothingToResume: there is no such run or step.
        CorruptError: no copy of the step is intact.
    """
    run, step = run_and_step(run, step)
    with reach(run_at(run), config) as place:
        found = anyio.run(_find, place, step or "latest")
        copies = _copies(found, place)
        for number, location in enumerate(copies, 1):
            try:
                say = _nothing if quiet else _say
                return open_checkpoint(location, place.storage, scratch, say, averaged=averaged)
            except CorruptError:
                if number == len(copies):
                    raise
            except WmtpError as error:
                raise place.explained(error) from None
    raise CorruptError(found.damaged or "no copy of it is left", doing="opening", subject=found.name)


async def _find(place: Place, name: str) -> Step:
    async with take_inventory(place) as inventory:
        return inventory.find(name)


def _copies(step: Step, place: Place) -> list[Location]:
    """Where the step can be read, the nearest first."""
    copies = [Location("", str(step.local.path))] if step.local and step.damaged is None else []
    if step.durable and step.live and place.location is not None and not place.keys.in_place:
        copies.append(place.location.join(layout.step_name(step.step)))
    return copies


def _say(line: str) -> None:
    print(line, flush=True)


def _nothing(_: str) -> None:
    """Say nothing: what was found is printed as JSON in the end."""
