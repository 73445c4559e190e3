"""``wmtp checkpoints verify``: is every copy what its record says?"""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import ConfigOption, JsonOption
from wmtp.cli.checkpoints import JSON, RunArgument, group, show_errors
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from wmtp.cli.inventory import Inventory
    from wmtp.cli.steps import Step

StepsArgument = Annotated[
    list[str] | None,
    typer.Argument(help="latest, step_N, step_N@gG; default: all live ones.", metavar="STEP"),
]
AllOption = Annotated[bool, typer.Option("--all", help="Superseded steps, too.")]
DeepOption = Annotated[
    bool, typer.Option("--deep", help="Download every byte from the store, and load each step dry.")
]


@group.command(
    short_help="Verify every byte here, the objects in the store, and the manifest.",
    epilog=f"{JSON} run, directory, store, errors, ok, deep, problems, and steps with name, checked, "
    "problems.",
)
@one_line_errors
def verify(
    run: RunArgument,
    steps: StepsArgument = None,
    every: AllOption = False,
    deep: DeepOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify steps: every byte on this disk; in the store sizes and checksums as it tells them; the manifest.

    With --deep every byte is downloaded and compared, part by part, and each copy is loaded dry: headers and
    states are read as a loader would, without PyTorch. Each problem is one line that names the file and the
    bytes; the exit code is 1 if there is any.
    """
    import anyio

    from wmtp.cli.inventory import take_inventory
    from wmtp.cli.places import reach, run_and_step, run_at
    from wmtp.cli.printing import heading, print_verdict
    from wmtp.cli.verification import verify_index, verify_steps

    location, named = run_and_step(run, None)
    names = [*(steps or []), *([named] if named else [])]
    say = _nothing if as_json else print

    async def check() -> dict[str, Any]:
        async with take_inventory(place) as inventory:
            chosen = _choose(inventory, names, every)
            say(heading(inventory))
            verdicts = []
            async for verdict in verify_steps(inventory, chosen, deep=deep, quiet=as_json):
                verdicts.append(verdict.as_json())
                print_verdict(verdict, say)
            problems = [] if names else [str(problem) for problem in await verify_index(inventory)]
            failed = show_errors(inventory) or problems or any(one["problems"] for one in verdicts)
            result = {"ok": not failed, "deep": deep, "steps": verdicts, "problems": problems}
            return {**inventory.identity(), **result}

    with reach(run_at(location), config) as place:
        found = anyio.run(check)
    for problem in found["problems"]:
        say(f"  damaged  manifest: {problem}")
    if as_json:
        print(json.dumps(found))
    if not found["ok"]:
        raise SystemExit(1)


def _choose(inventory: "Inventory", names: list[str], every: bool) -> "list[Step]":
    """The steps that are meant.

    Raises:
        SettingsError: some and all are.
        NothingToResume: there is no such step.
    """
    from uploader.errors import SettingsError

    if names and every:
        raise SettingsError("steps are named, too", subject="--all", hint="name steps, or give --all")
    if names:
        return [inventory.find(name) for name in names]
    return [step for step in inventory.steps if step.live or (every and not step.pruning)]


def _nothing(_: str) -> None:
    """Say nothing: what was found is printed as JSON in the end."""
