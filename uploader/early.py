"""A head start: upload files of a step while its later files are still being written.

Nothing depends on it. The commit finds these objects by their checksums and sends what is missing; a step
that is never committed leaves objects that nothing names, which the sweep of a later generation takes.
"""

import logging
from collections.abc import Iterable
from functools import partial

from uploader import layout
from uploader.errors import CorruptError
from uploader.events import ShardSaved
from uploader.flow import Flow
from uploader.layout import RunDirectory, RunKeys
from uploader.multipart import upload_file
from uploader.store.base import ObjectStore
from uploader.tasks import side_by_side

log = logging.getLogger("uploader")


def worth_sending(
    shards: Iterable[ShardSaved], directory: RunDirectory, committed: set[str], generation: int
) -> list[ShardSaved]:
    """Those whose step is being written now: by this generation, and not committed yet.

    Args:
        committed: the local steps, as ``step_N@gG``.
    """
    return [
        one
        for one in shards
        if one.generation == generation
        and layout.step_at(one.step, one.generation) not in committed
        and directory.temporary(one.step, one.generation).exists()
    ]


async def send(
    shards: Iterable[ShardSaved],
    directory: RunDirectory,
    store: ObjectStore,
    keys: RunKeys,
    flow: Flow,
) -> None:
    """Upload these files to where the commit will look for them.

    Raises:
        StoreError: the store refused.
    """
    await side_by_side(partial(_send, one, directory, store, keys, flow) for one in shards)


async def _send(
    shard: ShardSaved, directory: RunDirectory, store: ObjectStore, keys: RunKeys, flow: Flow
) -> None:
    path = directory.temporary(shard.step, shard.generation) / shard.file.path
    key = keys.step_prefix(shard.step, shard.generation) + shard.file.path
    try:
        await upload_file(store, key, path, shard.file, flow, lambda _: None)
    except CorruptError as error:
        # Renamed while it was opened, or given up by its writer. If it is really damaged, the commit says so.
        log.debug("no head start: %s", error)
