"""What to upload next, what to skip, and what may go from the local disk. Pure.

An upload in flight is finished before another one starts; of those that wait the newest comes first, which
makes it durable soonest. A step that retention would prune on arrival is skipped; where several nodes write,
only once a newer one is committed: each may have seen other steps come, and a step of which one node skips
its part never is committed. Local data goes only once it, or a newer step of the same lineage, is committed
remotely; the disk has a policy of its own, and no pins: what is pinned is durable.
"""

from collections.abc import Collection, Iterable, Set
from dataclasses import dataclass
from datetime import datetime

from uploader import layout
from uploader.generation import Claim
from uploader.manifest import Manifest
from uploader.retention import Committed, Retention, steps_to_keep
from uploader.watch import LocalStep


@dataclass(frozen=True, slots=True)
class Backlog:
    """The local steps, sorted by what to do with them.

    Attributes:
        upload: to be committed remotely, in this order.
        skip: not worth uploading; they stay on disk until they may go.
        discard: may go from the local disk.
    """

    upload: list[LocalStep]
    skip: list[LocalStep]
    discard: list[LocalStep]


def sort_out(
    local: Iterable[LocalStep],
    manifest: Manifest,
    claim: Claim,
    policy: Retention,
    *,
    now: datetime,
    on_disk: Retention | None = None,
    failed: Collection[str] = (),
    refused: Collection[str] = (),
    in_flight: Collection[str] = (),
    pruned: Collection[str] = (),
) -> Backlog:
    """Decide for each local step. Steps are named ``step_N@gG``.

    Args:
        manifest: as the claim adopts it.
        policy: of the store.
        on_disk: of the disk; None: ``policy.on_disk()``.
        refused: steps that the store did not take when last tried: to be tried again, but never the reason
            to skip another.
        in_flight: steps of which some was uploaded before.
        failed: steps whose files are corrupt: never uploaded, never the reason
            to discard another, and kept for a person to look at until retention takes them.
        pruned: steps that were in the store and are not any more: their keys are used (``used``).
    """
    steps = list(local)
    live = [one for one in steps if claim.is_live(one.step, one.generation)]
    durable_names = {entry.name for entry in manifest.live.values()}
    durable = [one for one in live if one.name in durable_names]
    lost = {*durable_names, *failed, *manifest.deleting, *pruned}
    waiting = [one for one in live if one.name not in lost]
    upload = _worth_uploading(waiting, manifest, policy, now, refused)
    chosen = {one.name for one in upload}
    broken = [one for one in live if one.name in failed and one.name not in durable_names]
    settled = [one for one in live if one not in broken and one.name not in chosen]
    of_disk = on_disk or policy.on_disk()
    kept = [*upload, *_kept(durable, durable, of_disk, now), *_kept(settled, settled, of_disk, now)]
    kept += _kept(broken, durable + broken, of_disk, now)
    return Backlog(
        upload=sorted(upload, key=lambda one: (one.name not in in_flight, -one.step)),
        skip=[one for one in waiting if one.name not in chosen],
        discard=_discard(steps, {one.name for one in kept}, manifest, claim),
    )


def _worth_uploading(
    waiting: list[LocalStep], manifest: Manifest, policy: Retention, now: datetime, refused: Collection[str]
) -> list[LocalStep]:
    """Those that retention would keep, and those that other nodes may be about to complete."""
    taken = [one for one in waiting if one.name not in refused]
    keep = steps_to_keep([*manifest.committed(), *map(_committed, taken)], policy, now=now)
    keep_of_all = steps_to_keep([*manifest.committed(), *map(_committed, waiting)], policy, now=now)
    latest = -1 if manifest.latest is None else manifest.latest
    return [
        one
        for one in waiting
        if one.step in (keep_of_all if one.name in refused else keep)
        or (one.record.nodes > 1 and one.step > latest)
    ]


def _discard(
    steps: list[LocalStep],
    kept: Set[str],
    manifest: Manifest,
    claim: Claim,
) -> list[LocalStep]:
    """Never a stranger's, never one that waits for its upload or that no durable step is newer than."""
    latest = manifest.live.get(layout.step_name(manifest.latest)) if manifest.latest is not None else None
    if latest is None:
        return []
    # What is left behind by a rewind goes when the new branch has something durable of its own. A step of a
    # newer generation is that of a start this claim has not heard of yet.
    former = [one for one in steps if one.generation <= claim.generation]
    behind = [one for one in former if not claim.is_live(one.step, one.generation)]
    may_go = [one for one in steps if claim.is_live(one.step, one.generation) and one.step < latest.step]
    if latest.generation == claim.generation:
        may_go += behind
    return [one for one in may_go if one.is_ours and one.name not in kept]


def _kept(
    steps: list[LocalStep], among: list[LocalStep], policy: Retention, now: datetime
) -> list[LocalStep]:
    keep = steps_to_keep(map(_committed, among), policy, now=now)
    return [one for one in steps if one.step in keep]


def _committed(one: LocalStep) -> Committed:
    return Committed(one.step, one.record.created_at, one.record.metrics)
