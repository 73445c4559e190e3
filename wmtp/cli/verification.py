"""Verify what there is of a run: local bytes, stored objects, and the manifest against the commit records.

What is pruned meanwhile is no damage: whatever is missing is looked for in the manifest once more.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread

from uploader import layout
from uploader.buffers import PartBuffers
from uploader.deep import check_bytes, dry_load
from uploader.errors import CorruptError, WmtpError
from uploader.files import disk_errors, held_for_reading
from uploader.foreign import differences
from uploader.manifest import Entry, Manifest
from uploader.record import CommitRecord, FileRecord
from uploader.restore import check_stored, damage, read_commit_record
from uploader.store import ObjectStore
from uploader.store.local import LocalStore
from uploader.watch import LocalStep
from wmtp.cli.inventory import Inventory
from wmtp.cli.progress import Transfer
from wmtp.cli.steps import Seen, Step

PART_SIZE_BYTES, PARTS_IN_FLIGHT = 16 * 1024**2, 8
"""What a download takes of the memory: 128 MiB."""


@dataclass
class Verdict:
    """What was found of one step.

    Attributes:
        checked: the copies that were read: ``local``, ``store``; neither where it was pruned meanwhile.
        problems: one for each file and block that is wrong.
    """

    step: Step
    checked: list[str] = field(default_factory=list)
    problems: list[WmtpError] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        problems = [str(problem) for problem in self.problems]
        return {"name": self.step.name, "checked": self.checked, "problems": problems}


async def verify_steps(
    inventory: Inventory, steps: list[Step], *, deep: bool = False, quiet: bool = True
) -> AsyncIterator[Verdict]:
    """Read every byte on this disk; of the store, compare what it says of its objects with the record.

    Args:
        deep: download what the store has, compare every byte, and load each copy dry.
        quiet: show no progress.

    Raises:
        StoreError: the store can't be asked.
    """
    for step in steps:
        verdict = Verdict(step)
        copies = {
            "local": await _verify_local(inventory, step, deep),
            "store": await _verify_stored(inventory, step, deep, quiet),
        }
        for copy, problems in copies.items():
            if problems is not None:
                verdict.checked.append(copy)
                verdict.problems += problems
        yield verdict


async def _verify_local(inventory: Inventory, step: Step, deep: bool) -> list[WmtpError] | None:
    """What is wrong with the copy on this disk; None where there is none."""
    if step.seen is not None:
        return await _verify_seen(inventory, step.seen, step)
    if step.local is None:
        return None if step.damaged is None else [CorruptError(step.damaged)]
    problems = await to_thread.run_sync(_local_problems, step.local)
    if deep and problems == []:
        store, prefix = LocalStore(step.local.path.parent), f"{step.local.path.name}/"
        await dry_load(store, prefix, step.local.record, problems.append)
    return problems


def _local_problems(local: LocalStep) -> list[WmtpError] | None:
    """Every byte is read. None where it went meanwhile."""
    problems: list[WmtpError] = []
    try:
        with disk_errors("verifying", local.path):
            try:
                with held_for_reading(local.path):
                    problems.extend(damage(local.path, local.record.files))
            except FileNotFoundError:
                return None
    except WmtpError as error:  # one file that can't be read is a finding like any other
        problems.append(error)
    return problems


async def _verify_seen(inventory: Inventory, seen: Seen, step: Step) -> list[WmtpError] | None:
    """What differs between another trainer's copy and the record in the store; None where there is none."""
    if step.entry is None or inventory.store is None or not step.durable:
        return None
    try:
        record = await read_commit_record(inventory.store, step.entry)
    except CorruptError:
        return None  # that is told of the copy in the store
    files = [file for file in record.files if not layout.is_node_record(file.path)]
    return await to_thread.run_sync(_problems_of_seen, seen.path, files)


def _problems_of_seen(path: Path, files: list[FileRecord]) -> list[WmtpError] | None:
    problems: list[WmtpError] = []
    try:
        with disk_errors("verifying", path):
            try:
                problems.extend(differences(path, files))
            except FileNotFoundError:
                return None
    except WmtpError as error:
        problems.append(error)
    return problems


async def _verify_stored(inventory: Inventory, step: Step, deep: bool, quiet: bool) -> list[WmtpError] | None:
    """What is wrong with the copy in the store; None where there is none."""
    entry, store, place = step.entry, inventory.store, inventory.place
    if entry is None or store is None or not step.durable:
        return None
    problems: list[WmtpError] = []
    try:
        record = await read_commit_record(store, entry)
        if not (place.keys.in_place and step.local):  # else it is the copy on this disk
            prefix = place.keys.step_prefix(entry.step, entry.generation)
            await check_stored(store, prefix, record, problems.append)
            if deep:
                await _verify_deep(store, prefix, record, problems, quiet)
    except CorruptError as error:
        problems.append(error)
    if problems and entry.name not in _readable(await place.manifest_file(store).read()):
        return None
    return problems


async def _verify_deep(
    store: ObjectStore, prefix: str, record: CommitRecord, problems: list[WmtpError], quiet: bool
) -> None:
    buffers = PartBuffers(PART_SIZE_BYTES, PARTS_IN_FLIGHT)
    doing = f"verifying {layout.step_name(record.step)}"
    with Transfer(doing, record.size_bytes, quiet=quiet) as progress:
        await check_bytes(store, prefix, record, buffers, progress, problems.append)
    if not problems:
        await dry_load(store, prefix, record, problems.append)


async def verify_index(inventory: Inventory) -> list[CorruptError]:
    """Entries whose commit record is missing, and commit records that no entry names.

    A step that is committed or pruned at this very moment is in the one and not in the other: only what
    the manifest says before and after counts.
    """
    before, store = inventory.index, inventory.store
    if store is None:
        return []
    records = {
        info.key async for info in store.list() if layout.parse_commit_record_key(info.key) is not None
    }
    after = await inventory.place.manifest_file(store).read()
    subject = f"{store.uri}/{layout.MANIFEST_KEY}"
    hint = f"rebuild it with `wmtp checkpoints rebuild {inventory.place}`"
    if after is None:
        problem = "it is missing, but there are commit records"
        return [CorruptError(problem, doing="verifying", subject=subject, hint=hint)] if records else []
    was, now = _readable(before), _readable(after)
    lost = [entry for name, entry in now.items() if name in was and entry.record not in records]
    named = {
        entry.record
        for entry in [*was.values(), *now.values(), *before.deleting.values(), *after.deleting.values()]
    }
    problems = [f"it names {entry.name}, whose commit record {entry.record} is missing" for entry in lost]
    problems += [f"it does not name the commit record {key}" for key in sorted(records - named)]
    return [CorruptError(problem, doing="verifying", subject=subject, hint=hint) for problem in problems]


def _readable(manifest: Manifest | None) -> dict[str, Entry]:
    """The entries whose objects must be there."""
    entries = [*manifest.live.values(), *manifest.superseded.values()] if manifest else []
    return {entry.name: entry for entry in entries}
