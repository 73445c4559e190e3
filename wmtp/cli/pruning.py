"""What a person's prune does: the plan with its reasons, and carrying it out."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from uploader import generation, manifest, pins, prune
from uploader.backlog import Backlog, sort_out
from uploader.commit import is_committed
from uploader.discard import discard_local, empty_trash
from uploader.errors import OwnershipError, SettingsError, WmtpError
from uploader.generation import Claim, Owner
from uploader.lease import Lease
from uploader.manifest import Entry, Manifest
from uploader.prune import Ages
from uploader.retention import Committed, Retention, why_kept
from uploader.run import RunFile
from uploader.settings import UploadSettings
from uploader.status import read_status
from uploader.store import ObjectStore
from uploader.used import UsedKeys
from uploader.watch import LocalStep
from wmtp.cli.inventory import Inventory, take_inventory
from wmtp.cli.places import Place


@dataclass(frozen=True)
class Policies:
    """What retention is for the store and for this disk, and how objects are deleted."""

    store: Retention
    local: Retention
    upload: UploadSettings


def policies(place: Place, config: Path | None) -> Policies:
    """Those of ``run.json``, else of a config.

    Raises:
        SettingsError: there is neither; nobody's default may delete anything.
    """
    if place.run_file is not None:
        run = place.run_file
        return Policies(run.retention, run.retention if place.keys.in_place else run.on_disk, run.upload)
    if config is None:
        hint = "name the run directory, whose run.json says so, or a config with --config"
        raise SettingsError("nobody has said what to keep", subject=str(place), hint=hint)
    import os

    from wmtp.settings import load_config
    from wmtp.settings.recipe import Checkpointing
    from wmtp.settings.retention import resolve_retention

    paths = load_config(config, os.environ, Path.cwd()).paths.checkpoints
    store, local = resolve_retention(Checkpointing(), paths, lambda name, key: None)
    upload = UploadSettings(delete_grace_s=paths.delete_grace_s, purge_versions=paths.purge_versions)
    return Policies(store, local, upload)


@dataclass
class Pruning:
    """The plan of one run, and what has become of it.

    Attributes:
        pruned: names and places (``store``, ``local``) of what went.
        left: names and reasons of what was to go and is still there.
    """

    inventory: Inventory
    policies: Policies
    store: ObjectStore
    claim: Claim
    index: Manifest
    ages: Ages
    backlog: Backlog
    local: list[LocalStep]
    used: UsedKeys | None = None
    pruned: list[tuple[str, str]] = field(default_factory=list)
    left: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    @asynccontextmanager
    async def of(cls, place: Place, policies: Policies) -> AsyncIterator["Pruning"]:
        """Look at the run, and plan.

        Raises:
            WmtpError: disk or store can't be read.
        """
        async with take_inventory(place) as inventory:
            store = inventory.store
            if store is None:
                _ = place.store
                raise inventory.errors[0]
            claim = await _claim(store, place, inventory.index)
            index = pins.all_marked(manifest.adopted(inventory.index, claim), await pins.names(store))
            now = datetime.now(UTC)
            ages = Ages(store)
            await ages.look(index, policies.store, policies.upload.keep_superseded_s, now)
            local = [step.local for step in inventory.steps if step.local is not None]
            used = _used(place)
            backlog = sort_out(
                local,
                index,
                claim,
                policies.store,
                now=now,
                on_disk=policies.local,
                failed=_failed(place),
                pruned=await _pruned(store, place, used, index, local),
            )
            yield cls(inventory, policies, store, claim, index, ages, backlog, local, used)

    async def require_no_owner(self, say: Callable[[str], None]) -> None:
        """Find out that no uploader serves the run elsewhere.

        Raises:
            OwnershipError: one does.
        """
        owner, place = self.inventory.index.owner, self.inventory.place
        on_this_host = place.directory is not None and owner is not None and owner.host == _this_host()
        if self.index.generation == 0 or place.keys.in_place or on_this_host:
            return  # the lock of the run directory tells
        try:
            await Lease().wait_for(self.store, place.run, [(self.index.generation, owner)], say)
        except OwnershipError as error:
            hint = "its uploader prunes by itself after each commit; look at what it will do with --dry-run"
            raise OwnershipError(error.problem, doing="pruning", subject=error.subject, hint=hint) from None

    async def carry_out(self) -> None:
        """Delete what is to go. What the store refuses is told, and does not hold up the rest."""
        place, grace_s = self.inventory.place, self.policies.upload.delete_grace_s
        if self.used is not None:
            self.used.note(self.local, self.index)
        file = place.manifest_file(self.store)
        names = prune.superfluous(self.index, self.policies.store, self.ages)
        index = await prune.mark(self.store, file, names, self.claim, grace_s, datetime.now(UTC))
        waits_s = await prune.due_in_s(self.store, index, grace_s, datetime.now(UTC))
        for entry in index.deleting.values():
            if waits_s[entry.name]:
                self.left.append((entry.name, f"its objects go in {waits_s[entry.name]:.0f} s"))
            elif await self._removes(entry):
                await file.update(partial(manifest.dropped, names=[entry.name], claim=self.claim))
                self.pruned.append((entry.name, "store"))
        await self._discard()

    async def _removes(self, entry: Entry) -> bool:
        place = self.inventory.place
        try:
            if place.keys.in_place and place.directory is not None:
                mine = [one for one in self.local if one.name == entry.name]
                if len(await discard_local(place.directory, mine)) == len(mine):
                    return True
                self.left.append((entry.name, "it is being read"))
                return False
            purge = self.policies.upload.purge_versions
            await prune.remove_objects(self.store, place.keys, entry, purge=purge)
            return True
        except WmtpError as error:
            self.left.append((entry.name, str(error)))
            self.inventory.errors.append(error)
            return False

    async def _discard(self) -> None:
        place, steps = self.inventory.place, self.backlog.discard
        if place.directory is None:
            return
        if place.keys.in_place:  # what is in the manifest goes by way of the manifest
            steps = [one for one in steps if one.name not in self.index.names()]
        for one in steps:
            if await discard_local(place.directory, [one]):
                self.pruned.append((one.name, "local"))
            else:
                self.left.append((one.name, "it is being read"))
        await empty_trash(place.directory)

    def as_json(self) -> dict[str, Any]:
        directory = self.inventory.place.directory
        return {
            **self.inventory.identity(),
            "policy": str(self.policies.store),
            "local_policy": str(self.policies.local) if directory else None,
            "pruned": [{"name": name, "where": where} for name, where in self.pruned],
            "left": [{"name": name, "why": why} for name, why in self.left],
            "steps": [*self._stored(), *self._local()],
        }

    def _stored(self) -> list[dict[str, Any]]:
        stays = prune.why_stays(self.index, self.policies.store, self.ages)
        listed = [*self.index.live.values(), *self.index.superseded.values()]
        rows = [_row(one.name, "store", stays.get(one.name), "no rule keeps it") for one in listed]
        return rows + [_row(name, "store", None, "it is being pruned") for name in self.index.deleting]

    def _local(self) -> list[dict[str, Any]]:
        if self.inventory.place.keys.in_place:
            return []
        goes = {one.name for one in self.backlog.discard}
        waits = {one.name for one in self.backlog.upload}
        durable = {one.name for one in self.index.live.values()}
        of_durable = self._rules([one for one in self.local if one.name in durable])
        of_all = self._rules([one for one in self.local if one.name not in waits])
        rows = []
        for one in self.local:
            why = ["it waits for its upload"] if one.name in waits else []
            why += dict.fromkeys([*of_durable.get(one.name, ()), *of_all.get(one.name, ())])
            stays = None if one.name in goes else why or ["nothing newer is durable"]
            rows.append(_row(one.name, "local", stays, "no rule keeps it"))
        return rows

    def _rules(self, local: list[LocalStep]) -> dict[str, tuple[str, ...]]:
        """The rules that keep each of these steps on this disk."""
        looked_at = [Committed(one.step, one.record.created_at, one.record.metrics) for one in local]
        rules = why_kept(looked_at, self.policies.local, now=datetime.now(UTC))
        return {one.name: rules[one.step] for one in local if one.step in rules}


def _row(name: str, where: str, stays: Any, goes: str) -> dict[str, Any]:
    return {"name": name, "where": where, "goes": stays is None, "why": [*(stays or [goes])]}


async def _claim(store: ObjectStore, place: Place, index: Manifest) -> Claim:
    """The owner's claim, which nobody but its uploader has while that lives."""
    run: RunFile | None = place.run_file
    if run is not None and run.generation >= index.generation:
        return run
    return await generation.read(store, index.generation) if index.generation else Claim()


def _used(place: Place) -> UsedKeys | None:
    """What of this disk has been in the store; None where nothing is uploaded from here."""
    if place.directory is None or place.location is None or place.keys.in_place:
        return None
    return UsedKeys(place.directory, str(place.location))


async def _pruned(
    store: ObjectStore, place: Place, used: UsedKeys | None, index: Manifest, local: list[LocalStep]
) -> set[str]:
    """Which local steps were in the store, and are not any more: they wait for no upload."""
    names = used.names - index.names() if used is not None else set()
    again = [one for one in local if one.name in names]
    return {one.name for one in again if not await is_committed(one, store, place.keys)}


def _failed(place: Place) -> set[str]:
    status = read_status(place.directory.status_file) if place.directory else None
    return {*status.failed_steps} if status else set()


def _this_host() -> str:
    return Owner.this_process().host
