"""Unfinished multipart uploads of a run: which go on, which are aborted, and how old they are.

An upload goes on while the journal has it and its step waits or is being written. One that no journal has
may be another node's, or was begun by a process that died before it wrote it down: it goes when its file is
there, when its step goes, or when it is stale. Ages are told by the store's clock, never by ours.
"""

import logging
from collections.abc import Callable, Collection, Iterable

from uploader import layout
from uploader.journal import Journal, Unfinished
from uploader.multipart import give_up
from uploader.store.base import ObjectStore, UploadInfo

log = logging.getLogger("uploader")

CLOCK_KEY = "clock"
"""No object ever has this key: an upload begins there and is aborted, to see what time it is in the store."""


async def give_up_unwanted(store: ObjectStore, journal: Journal, wanted: Collection[str]) -> int:
    """Abort the uploads in the journal of steps that nobody will upload; returns how many.

    Args:
        wanted: the steps, as ``step_N@gG``, that wait or are being written.
    """
    unwanted = [upload for upload in journal.all() if upload.step not in wanted]
    for upload in unwanted:
        log.info("%s: its upload is given up", upload.key)
        await give_up(store, journal, upload)
    return len(unwanted)


async def abort_debris(
    store: ObjectStore, journal: Journal, is_debris: Callable[[str], bool], stale_s: float
) -> int:
    """Abort uploads of keys that are debris, and stale ones that no journal of ours has; returns how many."""
    ours = {(one.key, one.upload_id): one for one in journal.all()}
    there = [one async for one in store.list_uploads() if is_ours(one.key)]
    unknown = [one for one in there if (one.key, one.upload_id) not in ours and not is_debris(one.key)]
    now_s = await store_now_s(store) if unknown else None
    gone = [one for one in there if is_debris(one.key)] + stale(unknown, now_s, stale_s)
    for one in gone:
        if (one.key, one.upload_id) in ours:
            await give_up(store, journal, ours[one.key, one.upload_id])
        else:
            await store.abort_upload(one.key, one.upload_id)
    return len(gone)


def stale(uploads: Iterable[UploadInfo], now_s: float | None, stale_s: float) -> list[UploadInfo]:
    """Those that are older than ``stale_s``. What has no age, or the store no clock, is none. Pure."""
    return [
        one
        for one in uploads
        if one.initiated_at is not None and now_s is not None and now_s - one.initiated_at > stale_s
    ]


def continued(upload: UploadInfo, destination: str, journal: Iterable[Unfinished]) -> bool:
    """Whether a journal goes on with an upload of the store ``destination``. Pure."""
    known = {(one.destination, one.key, one.upload_id) for one in journal}
    return (destination, upload.key, upload.upload_id) in known


async def store_now_s(store: ObjectStore) -> float | None:
    """The present by the store's clock, seconds since the epoch: when it says that a new upload began.

    None where the store's listing does not tell.
    """
    await store.create_upload(CLOCK_KEY)
    begun = [one async for one in store.list_uploads(CLOCK_KEY) if one.key == CLOCK_KEY]
    for one in begun:
        await store.abort_upload(one.key, one.upload_id)
    return max((one.initiated_at for one in begun if one.initiated_at is not None), default=None)


def is_ours(key: str) -> bool:
    """Whether an upload of this key is one of a run's own."""
    is_probe = key.startswith(layout.PROBE_PREFIX)
    return layout.parse_step_key(key) is not None or key == CLOCK_KEY or is_probe
