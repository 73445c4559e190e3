"""A head start: upload files of a step while its later files are still being written.

Nothing depends on it. The commit knows from here, or finds by their checksums, what the store took, goes on
with what was interrupted, and sends what is missing; a step that is never committed leaves objects that
nothing names, which the sweep of a later generation takes.
"""

import logging
from collections.abc import Callable, Iterable

from uploader import layout
from uploader.errors import CorruptError
from uploader.events import ShardSaved
from uploader.flow import Flow
from uploader.journal import Journal
from uploader.layout import RunDirectory, RunKeys
from uploader.multipart import upload_file
from uploader.record import FileRecord
from uploader.store.base import ObjectStore
from uploader.tasks import task_group

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


class HeadStart:
    """Sends what is announced to where the commit will look for it, each file once."""

    def __init__(
        self, directory: RunDirectory, store: ObjectStore, keys: RunKeys, flow: Flow, journal: Journal
    ) -> None:
        self._directory, self._store, self._keys = directory, store, keys
        self._flow, self._journal = flow, journal
        self._begun: set[str] = set()
        self._stored: dict[str, FileRecord] = {}

    def has_stored(self, key: str, file: FileRecord) -> bool:
        """Whether the store took exactly this file under this key from this process: no need to ask it."""
        return self._stored.get(key) == file

    async def send(self, announced: Callable[[], Iterable[ShardSaved]]) -> None:
        """Upload what is announced, and what is while that goes on, until nothing is left to send.

        Args:
            announced: the files to send, looked up anew whenever one has been sent.

        Raises:
            StoreError: the store refused.
        """
        self._begun &= {self._key(one) for one in announced()}
        async with task_group() as group:

            def begin() -> None:
                for shard in announced():
                    if self._key(shard) not in self._begun:
                        self._begun.add(self._key(shard))
                        group.start_soon(send, shard)

            async def send(shard: ShardSaved) -> None:
                await self._send(shard)
                begin()

            begin()

    def _key(self, shard: ShardSaved) -> str:
        return self._keys.step_prefix(shard.step, shard.generation) + shard.file.path

    async def _send(self, shard: ShardSaved) -> None:
        path = self._directory.temporary(shard.step, shard.generation) / shard.file.path
        key = self._key(shard)
        try:
            await upload_file(self._store, key, path, shard.file, self._flow, self._journal, lambda _: None)
            self._remember(shard, key)
        except CorruptError as error:
            # Renamed while it was opened, or given up by its writer. If it is damaged, the commit says so.
            log.debug("no head start: %s", error)

    def _remember(self, shard: ShardSaved, key: str) -> None:
        """For the commit that follows: of the step that is being written, and no other."""
        prefix = self._keys.step_prefix(shard.step, shard.generation)
        self._stored = {one: file for one, file in self._stored.items() if one.startswith(prefix)}
        self._stored[key] = shard.file
