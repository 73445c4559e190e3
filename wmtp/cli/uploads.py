"""``wmtp checkpoints uploads``: unfinished multipart uploads of a run, and an end to those nobody continues.

With ``--json`` one object: the fields of every command of the group; ``uploads``, each with ``key``,
``upload_id``, ``age_s`` (by the store's clock; null where it doesn't tell), ``parts`` and ``size_bytes``
(what of it the store has), ``continued`` (whether the journal of this disk goes on with it); ``aborted``: the
``upload_id`` of each that ``--abort`` aborted.
"""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wmtp.cli.access import ConfigOption, JsonOption
from wmtp.cli.checkpoints import JSON, RunArgument, group
from wmtp.cli.reporting import one_line_errors, show_error

if TYPE_CHECKING:
    from uploader.errors import WmtpError
    from uploader.journal import Unfinished
    from uploader.store import ObjectStore, UploadInfo
    from wmtp.cli.places import Place

AbortOption = Annotated[bool, typer.Option("--abort", help="Abort those that no journal here continues.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Don't ask before aborting.")]


@group.command(
    short_help="List uploads that were interrupted; abort those nobody continues.",
    epilog=f"{JSON} run, directory, store, errors, aborted, and uploads with key, upload_id, age_s, parts, "
    "size_bytes, continued.",
)
@one_line_errors
def uploads(
    run: RunArgument,
    abort: AbortOption = False,
    yes: YesOption = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the unfinished multipart uploads of a run: their parts are kept, and paid for, but no object.

    The uploader continues those in its journal and aborts the others in time; --abort does so now.
    """
    import anyio

    from uploader.errors import WmtpError
    from wmtp.cli.places import open_place, reach, run_at

    async def look() -> dict[str, Any]:
        async with open_place(place) as store:
            found = await _look_at(place, store)
            if not as_json:
                _print(place, found)
            nobodys = [one for one in found["uploads"] if not one["continued"]]
            if abort and nobodys and _may_abort(len(nobodys), place, yes):
                for one in nobodys:
                    await store.abort_upload(one["key"], one["upload_id"])
                found["aborted"] = [one["upload_id"] for one in nobodys]
            return found

    with reach(run_at(run), config) as place:
        _ = place.store  # or an error that says what to do
        try:
            found = anyio.run(look)
        except WmtpError as error:
            raise place.explained(error) from None
    if as_json:
        print(json.dumps(found))
    elif found["aborted"]:
        print(f"  {len(found['aborted'])} aborted")
    if found["errors"]:
        raise SystemExit(1)


async def _look_at(place: "Place", store: "ObjectStore") -> dict[str, Any]:
    """The uploads as they are in the store, and what the journal of this disk says of each."""
    from uploader.unfinished import is_ours, store_now_s

    listed = [one async for one in store.list_uploads() if is_ours(one.key)]
    journal, errors = _journal(place)  # after the store: whatever was written down by then is in it
    now_s = await store_now_s(store) if listed else None
    found = [await _describe(one, store, journal, now_s) for one in listed]
    for error in errors:
        show_error(error)
    return {
        "run": place.run,
        "directory": str(place.directory.path) if place.directory else None,
        "store": str(place.location),
        "errors": [str(error) for error in errors],
        "uploads": [one for one in found if one is not None],
        "aborted": [],
    }


def _journal(place: "Place") -> "tuple[list[Unfinished], list[WmtpError]]":
    from uploader.journal import unfinished

    if place.directory is None:
        return [], []
    uploads, errors = unfinished(place.directory)
    return uploads, [*errors]


async def _describe(
    upload: "UploadInfo", store: "ObjectStore", journal: "list[Unfinished]", now_s: float | None
) -> dict[str, Any] | None:
    """One upload; None if it was completed or aborted meanwhile."""
    from uploader.errors import UploadMissing
    from uploader.unfinished import continued

    try:
        parts = await store.list_parts(upload.key, upload.upload_id)
    except UploadMissing:
        return None
    has_age = now_s is not None and upload.initiated_at is not None
    return {
        "key": upload.key,
        "upload_id": upload.upload_id,
        "age_s": max(0.0, (now_s or 0.0) - (upload.initiated_at or 0.0)) if has_age else None,
        "parts": len(parts),
        "size_bytes": sum(part.size_bytes for part in parts),
        "continued": continued(upload, store.uri, journal),
    }


def _may_abort(count: int, place: "Place", yes: bool) -> bool:
    """Whether a person says so.

    Raises:
        SettingsError: nobody is there to ask.
    """
    from uploader.errors import SettingsError

    if yes:
        return True
    where = "" if place.directory else "; no journal is here: an uploader elsewhere may be at work on them"
    if not sys.stdin.isatty():
        hint = "say --yes to abort them"
        raise SettingsError(f"{count} uploads would be aborted{where}", subject="--abort", hint=hint)
    return typer.confirm(f"Abort {count} uploads{where}?", err=True)


def _print(place: "Place", found: dict[str, Any]) -> None:
    here = "" if place.directory is None else f" in {place.directory.path}"
    print(f"run {place.run}{here}, store {place.location}")
    if not found["uploads"]:
        print("  no unfinished uploads")
        return
    rows = [("KEY", "AGE", "PARTS", "SENT", "CONTINUED", "UPLOAD ID")]
    for one in found["uploads"]:
        age = "unknown" if one["age_s"] is None else f"{one['age_s'] / 3600:.1f} h"
        sent = f"{one['size_bytes'] / 1e6:.1f} MB"
        continues = "yes" if one["continued"] else "no"
        rows.append((one["key"], age, str(one["parts"]), sent, continues, one["upload_id"]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  " + "  ".join(f"{word:<{width}}" for word, width in zip(row, widths, strict=True)).rstrip())
