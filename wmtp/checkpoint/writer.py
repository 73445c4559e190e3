"""Write one checkpoint to local disk: the operations, in their order.

Files, each durable before its record and announced at once; rank record; node record; rename; the parent
directory; the event. A crash before the rename leaves ``step_N.gG.tmp``, which nobody reads; after it, a
checkpoint.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from uploader import layout
from uploader.events import CheckpointSaved, ShardSaved
from uploader.layout import RunDirectory
from uploader.record import FileRecord, Metrics, NodeRecord, RankRecord
from wmtp.checkpoint.disk import (
    Announce,
    Await,
    Clear,
    FileSource,
    Make,
    Operations,
    Read,
    Remove,
    Rename,
    SideBySide,
    SyncDirectory,
    Trash,
    Write,
)


@dataclass(frozen=True, slots=True)
class Description:
    """What a checkpoint's records say besides its files."""

    run: str
    step: int
    generation: int
    created_at: datetime
    metrics: Metrics
    fingerprints: dict[str, str]
    rank: int = 0
    world_size: int = 1
    node: int = 0
    nodes: int = 1
    local_ranks: tuple[int, ...] = (0,)

    @property
    def leads(self) -> bool:
        """Whether this rank commits what those of its node have written."""
        return self.rank == self.local_ranks[0]


def write_checkpoint(
    directory: RunDirectory, sources: Iterable[FileSource], what: Description
) -> Operations[NodeRecord | RankRecord]:
    """The operations that write a rank's part of a checkpoint, and the record they end with.

    The first rank of a node is its leader: it waits for the others' records and commits the node's.

    Yields:
        Operations, to be performed in order; each is answered with its result.
    """
    temporary = directory.temporary(what.step, what.generation)
    # With several ranks others may be writing there already; the trainer has cleared what a crash left.
    yield Clear(temporary) if len(what.local_ranks) == 1 else Make(temporary)
    written = yield SideBySide(tuple(_write_file(directory, temporary, one, what) for one in sources))
    rank, name = _rank_record(what, written), layout.rank_record(what.rank)
    if what.leads:
        yield Write(temporary / name, _small(rank.encode()))
        return (yield from commit_node(directory, what))
    yield Write(temporary / f"{name}.tmp", _small(rank.encode()))
    yield Rename(temporary / f"{name}.tmp", temporary / name)  # the leader sees all of it or nothing
    return rank


def _write_file(
    directory: RunDirectory, temporary: Path, source: FileSource, what: Description
) -> Operations[FileRecord]:
    """One file; a shard is announced as soon as it is durable, so that its upload can begin."""
    record: FileRecord = yield Write(temporary / source.name, source)
    if source.name.endswith(".safetensors"):
        shard = ShardSaved(generation=what.generation, step=what.step, rank=what.rank, file=record)
        yield Announce(directory.events(what.rank), shard, durable=False)
    return record


def commit_node(directory: RunDirectory, what: Description) -> Operations[NodeRecord]:
    """Commit a step when all of its ranks have written their records: node record, rename, event."""
    temporary, target = directory.temporary(what.step, what.generation), directory.step(what.step)
    ranks = []
    for rank in what.local_ranks:
        if rank != what.rank:
            yield Await(temporary / layout.rank_record(rank), rank)
        encoded: bytes = yield Read(temporary / layout.rank_record(rank))
        ranks.append(RankRecord.model_validate_json(encoded))
    node = NodeRecord.merge(ranks, node=what.node, nodes=what.nodes)
    yield Write(temporary / layout.node_record(what.node), _small(node.encode()))
    for rank in what.local_ranks:
        yield Remove(temporary / layout.rank_record(rank))
    yield SyncDirectory(temporary)
    yield Trash(target, directory.trash)  # a superseded step of the same number
    yield Rename(temporary, target)
    yield SyncDirectory(directory.path)
    yield Announce(directory.events(what.rank), CheckpointSaved(generation=what.generation, step=what.step))
    return node


def _small(data: bytes) -> FileSource:
    return FileSource("", memoryview(data))


def _rank_record(what: Description, written: list[FileRecord]) -> RankRecord:
    return RankRecord(
        run=what.run,
        step=what.step,
        generation=what.generation,
        world_size=what.world_size,
        created_at=what.created_at,
        files=written,
        metrics=what.metrics,
        fingerprints=what.fingerprints,
        rank=what.rank,
    )
