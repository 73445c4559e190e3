"""What to upload next, what to skip, and what may go from the local disk. Pure.

Newest first: it makes the newest step durable soonest. A step that retention would prune on arrival is
skipped. Local data goes only once it, or a newer step of the same lineage, is committed remotely.
"""

from collections.abc import Collection, Iterable
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
        upload: to be committed remotely, newest first.
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
    failed: Collection[str] = (),
) -> Backlog:
    """Decide for each local step.

    Args:
        manifest: as the claim adopts it.
        failed: names (``step_N@gG``) of steps whose files are corrupt: never uploaded, never the reason
            to discard another, and kept for a person to look at until retention takes them.
    """
    steps = list(local)
    live = [one for one in steps if claim.is_live(one.step, one.generation)]
    durable_names = {entry.name for entry in manifest.live.values()}
    durable = [one for one in live if one.name in durable_names]
    waiting = [one for one in live if one not in durable and one.name not in {*failed, *manifest.deleting}]
    keep = steps_to_keep([*manifest.committed(), *map(_committed, waiting)], policy, now=now)
    upload = [one for one in waiting if one.step in keep]
    broken = [one for one in live if one.name in failed and one not in durable]
    kept = [*_kept(durable, durable, policy, now), *_kept(broken, durable + broken, policy, now), *upload]
    discard = _discard(steps, kept, manifest, claim)
    return Backlog(
        upload=sorted(upload, key=lambda one: -one.step),
        skip=[one for one in waiting if one.step not in keep],
        discard=discard,
    )


def _discard(
    steps: list[LocalStep],
    kept: list[LocalStep],
    manifest: Manifest,
    claim: Claim,
) -> list[LocalStep]:
    """Never a step that waits for its upload, and never one that no durable step is newer than."""
    latest = manifest.live.get(layout.step_name(manifest.latest)) if manifest.latest is not None else None
    if latest is None:
        return []
    # A step that was left behind by a rewind goes when the new branch has something durable of its own.
    behind = [one for one in steps if not claim.is_live(one.step, one.generation)]
    may_go = [one for one in steps if one not in behind and one.step < latest.step]
    if latest.generation == claim.generation:
        may_go += behind
    return [one for one in may_go if one not in kept]


def _kept(
    steps: list[LocalStep], among: list[LocalStep], policy: Retention, now: datetime
) -> list[LocalStep]:
    keep = steps_to_keep(map(_committed, among), policy, now=now)
    return [one for one in steps if one.step in keep]


def _committed(one: LocalStep) -> Committed:
    return Committed(one.step, one.record.created_at, one.record.metrics)
