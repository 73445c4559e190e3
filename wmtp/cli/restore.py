"""``wmtp checkpoints restore``: a verified copy of a step, in a directory of its own."""

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import ConfigOption, JsonOption
from wmtp.cli.checkpoints import JSON, RunArgument, group
from wmtp.cli.reporting import one_line_errors

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from uploader.manifest import Entry
    from uploader.record import CommitRecord
    from uploader.store import ObjectStore
    from uploader.watch import LocalStep
    from wmtp.cli.inventory import Inventory
    from wmtp.cli.steps import Step

    Copy = tuple[ObjectStore, str, CommitRecord]
    """A store, the prefix of the step there, and what it is to be."""

NameArgument = Annotated[str, typer.Argument(help="latest, step_N, or step_N@gG.", metavar="STEP")]
TargetArgument = Annotated[Path, typer.Argument(help="Where to: a new or an empty directory.", metavar="DIR")]


@group.command(
    short_help="Copy a step to a directory, verified.",
    epilog=f"{JSON} run, directory, store, errors, name, step, generation, target, source, size_bytes, "
    "kept_bytes, elapsed_s.",
)
@one_line_errors
def restore(
    run: RunArgument,
    step: NameArgument,
    target: TargetArgument,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a step to a directory: from this disk where an intact copy is there, else from the store.

    Parts are fetched in parallel and each is verified; DIR appears when all of it is there and right. After
    an interruption the same command goes on where it was. Nothing is written over.
    """
    import anyio

    from uploader.errors import WmtpError
    from wmtp.cli.inventory import take_inventory
    from wmtp.cli.places import reach, run_at

    async def copy() -> dict[str, Any]:
        async with take_inventory(place) as inventory:
            found = inventory.find(step)
            return {**inventory.identity(), **await _restore(inventory, found, target.absolute(), as_json)}

    with reach(run_at(run), config) as place:
        try:
            done = anyio.run(copy)
        except WmtpError as error:
            raise place.explained(error) from None
    if as_json:
        print(json.dumps(done))
    else:
        size_mb, kept_mb = done["size_bytes"] / 1e6, done["kept_bytes"] / 1e6
        kept = f", {kept_mb:.1f} MB of it were there already" if done["kept_bytes"] else ""
        print(f"{done['name']} of run {done['run']} is in {done['target']}: {size_mb:.1f} MB{kept}")


async def _restore(inventory: "Inventory", step: "Step", target: Path, quiet: bool) -> dict[str, Any]:
    """Try each copy of a step, the nearest first.

    Raises:
        SettingsError: the target holds something else, or is a part of the run.
        CorruptError: no copy is intact.
    """
    from uploader.errors import CorruptError
    from wmtp.cli.reporting import show_error

    _require_elsewhere(inventory, target)
    began_s, copies = time.monotonic(), _copies(inventory, step)
    for number, copy in enumerate(copies, 1):
        try:
            store, prefix, record = await copy()
            kept_bytes = await _fetch(store, prefix, record, target, quiet)
        except CorruptError as error:
            if number == len(copies):
                raise await _said(inventory, step, error) from None
            show_error(error)
            continue
        return {
            "name": step.name,
            "step": step.step,
            "generation": record.generation,
            "target": str(target),
            "source": f"{store.uri}/{prefix.rstrip('/')}",
            "size_bytes": record.size_bytes,
            "kept_bytes": kept_bytes,
            "elapsed_s": round(time.monotonic() - began_s, 3),
        }
    problem = step.damaged or "there is no copy with a record"
    raise CorruptError(problem, doing="restoring", subject=step.name)


def _require_elsewhere(inventory: "Inventory", target: Path) -> None:
    """A copy among the steps themselves would be taken for one of them."""
    from uploader.errors import SettingsError

    place = inventory.place
    own = [place.directory.path] if place.directory is not None else []
    own += [place.location.directory] if place.location is not None and not place.location.is_s3 else []
    if any(Path(os.path.realpath(target)).is_relative_to(os.path.realpath(path)) for path in own):
        hint = "name a directory elsewhere; a trainer that resumes brings its step here by itself"
        raise SettingsError("it is a part of the run", subject=str(target), hint=hint)


def _copies(inventory: "Inventory", step: "Step") -> "list[Callable[[], Awaitable[Copy]]]":
    """Where a step can be read: for each copy a call that gives its store, prefix and record."""
    from uploader.record import CommitRecord
    from uploader.restore import read_commit_record
    from uploader.store.local import LocalStore

    async def here(local: "LocalStep") -> "Copy":
        return LocalStore(local.path.parent), f"{local.path.name}/", CommitRecord.merge([local.encoded])

    async def there(store: "ObjectStore", entry: "Entry") -> "Copy":
        prefix = inventory.place.keys.step_prefix(entry.step, entry.generation)
        return store, prefix, await read_commit_record(store, entry)

    copies: list[Callable[[], Awaitable[Copy]]] = []
    if step.local is not None and step.damaged is None and step.local.record.nodes == 1:
        copies.append(partial(here, step.local))
    if step.durable and step.entry is not None and inventory.store is not None:
        copies.append(partial(there, inventory.store, step.entry))
    return copies


async def _fetch(store: "ObjectStore", prefix: str, record: "CommitRecord", target: Path, quiet: bool) -> int:
    from anyio import to_thread

    from uploader import layout
    from uploader.buffers import PartBuffers
    from uploader.restore import restore as download
    from wmtp.cli.progress import Transfer
    from wmtp.cli.verification import PART_SIZE_BYTES, PARTS_IN_FLIGHT

    if await to_thread.run_sync(_is_there, target, record):
        return record.size_bytes
    temporary = target.with_name(f".{target.name}.restoring")
    buffers = PartBuffers(PART_SIZE_BYTES, PARTS_IN_FLIGHT)
    doing = f"restoring {layout.step_name(record.step)}"
    with Transfer(doing, record.size_bytes, quiet=quiet) as progress:
        return await download(store, prefix, record, temporary, target, None, buffers, progress)


def _is_there(target: Path, record: "CommitRecord") -> bool:
    """Whether the target holds exactly this step already.

    Raises:
        SettingsError: it holds something else.
        DiskError: it can't be read.
    """
    from uploader.errors import SettingsError
    from uploader.files import disk_errors
    from uploader.restore import damage

    if not os.path.lexists(target):
        return False
    problem = "it is not a directory"
    with disk_errors("restoring to", target):
        if target.is_dir() and not target.is_symlink():
            if not (names := set(os.listdir(target))):
                return False
            paths = {file.path for file in record.files}
            is_like_it = names == {path.partition("/")[0] for path in paths}  # else it may be large
            if is_like_it and _files_below(target) == paths and not [*damage(target, record.files)]:
                return True
            problem = "it holds something else"
    hint = "name a new directory, or delete that one"
    raise SettingsError(problem, subject=str(target), hint=hint)


def _files_below(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir()}


async def _said(inventory: "Inventory", step: "Step", error: Exception) -> Exception:
    """An object that is missing was pruned, perhaps: the manifest knows."""
    from uploader.errors import NothingToResume

    if step.entry is None or inventory.store is None:
        return error
    index = await inventory.place.manifest_file(inventory.store).read()
    if index is not None and step.entry.name not in index.names() - {*index.deleting}:
        hint = "`wmtp checkpoints ls` shows what is there; pin what must stay"
        return NothingToResume("it was pruned meanwhile", doing="restoring", subject=step.name, hint=hint)
    return error
