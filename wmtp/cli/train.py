"""``wmtp train``: from settings to a trained model whose last checkpoint is durable."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wmtp.cli.reporting import one_line_errors, program_name

if TYPE_CHECKING:
    from wmtp.settings import Resolved


def register(app: typer.Typer) -> None:
    app.command("train", short_help="Train a model; checkpoints reach the store meanwhile.")(train)


@one_line_errors
def train(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Where to run: paths, store, devices.")
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option("--recipe", "-r", help="What to train: data, model, algorithm.")
    ] = None,
    run_name: Annotated[str | None, typer.Option(help="Name of the run, joined to the base path.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            help="latest, auto (fresh if there is nothing), step_N, a path, or s3://…", metavar="WHAT"
        ),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Steps to train for, in all.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable.")
    ] = None,
    tags: Annotated[str | None, typer.Option(help="Tags of the run, comma-separated.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every setting and where it came from; do nothing.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over: the checkpoints that are there are superseded.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Take the run from a trainer that lives on another machine."),
    ] = False,
    no_uploader: Annotated[
        bool, typer.Option("--no-uploader", help="Leave uploading to a sidecar: wmtp uploader --watch DIR.")
    ] = False,
    detach_uploader: Annotated[
        bool, typer.Option("--detach-uploader", help="Don't wait at the end for the uploader to finish.")
    ] = False,
    max_bandwidth: Annotated[
        str | None,
        typer.Option(help="What uploads may take of the network: 50MB, 400Mbit a second.", metavar="RATE"),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens inside.")] = False,
) -> None:
    """Train a model, saving checkpoints that reach the store without the step waiting."""
    from wmtp.settings import Flags, load_settings

    flags = Flags(
        run_name=run_name,
        resume=resume,
        max_steps=max_steps,
        tags=None if tags is None else tuple(tag for tag in tags.split(",") if tag),
        fresh=fresh,
        max_bandwidth=max_bandwidth,
    )
    settings = load_settings(config, recipe, overrides or [], flags, os.environ, Path.cwd())
    if dry_run:
        _print_settings(settings)
        return
    from wmtp.checkpoint.uploader_process import Uploading
    from wmtp.training.distributed import join, leave
    from wmtp.training.job import run_job

    if no_uploader and detach_uploader:
        raise typer.BadParameter("--no-uploader and --detach-uploader contradict each other")
    uploading = Uploading.NONE if no_uploader else Uploading.DETACHED if detach_uploader else Uploading.WAIT
    with join(os.environ, settings.config.devices.device) as ranks:
        again = _again(config, recipe, overrides or [], settings.run_name, ranks.world_size)
        code = run_job(settings, uploading, again=again, take_over=take_over, verbose=verbose, ranks=ranks)
    if ranks.world_size > 1:
        leave(code)
    if code:
        raise SystemExit(code)


def _again(
    config: Path | None, recipe: Path | None, overrides: list[str], run_name: str, world_size: int
) -> str:
    """The command that resumes this run, as it can be typed here; without what could be a secret."""
    from wmtp.settings.describe import shown

    program = [program_name()]
    if world_size > 1:
        program = ["torchrun", "--standalone", "--nproc-per-node", str(world_size), "-m", "wmtp"]
    words = [*program, "train", "--resume", "latest"]
    words += ["--config", str(config)] if config is not None else []
    words += ["--recipe", str(recipe)] if recipe is not None else []
    for override in overrides:
        key, _, value = override.partition("=")
        words += ["--set", f"{key}={shown(key, value)}"]
    return shlex.join([*words, "--run-name", run_name])


def _print_settings(settings: "Resolved") -> None:
    from wmtp.settings import describe

    rows = describe(settings)
    name_width = max(len(name) for name, _, _ in rows)
    value_width = min(48, max(len(value) for _, value, _ in rows))
    for name, value, source in rows:
        print(f"{name:<{name_width}}  {value:<{value_width}}  {source}")
