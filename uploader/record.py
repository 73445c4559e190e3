"""Records: what one node wrote (node record) and that all nodes' files are there (commit record).

A checkpoint exists where its record exists: on disk the node record, written last and moved into view by
the rename of its directory; in the store the commit record, created once after every byte it names.
Records are deterministic functions of what they describe, so creating one twice writes the same bytes. Each
carries its own checksum (``seal``), so one that was changed is refused, not believed.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Self, TypeVar

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from uploader import below, checksum, layout, seal
from uploader.bounds import Count, Generation, Node, Nodes, Rank, Ranks, WorldSize
from uploader.errors import CorruptError, SettingsError
from uploader.seal import Sealed
from uploader.settings import SCHEMA_VERSION, Strict

Metrics = dict[str, float | int | str | None]


class FileRecord(Strict):
    """One file of a checkpoint.

    Attributes:
        path: relative to the checkpoint's directory or key prefix.
        crc64nvme: of the whole file, as S3 writes it; equals the blocks' combined.
        blocks: checksum of each 8 MiB block, in order.
    """

    path: str
    size_bytes: Count
    crc64nvme: str
    blocks: list[str]

    @classmethod
    def of_bytes(cls, path: str, data: bytes | memoryview) -> Self:
        """Describe a file whose bytes are at hand."""
        blocks = checksum.of_blocks(memoryview(data))
        return cls(path=path, size_bytes=len(data), crc64nvme=_whole(blocks, len(data)), blocks=blocks)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not layout.is_safe_path(self.path):
            raise ValueError(f"the path {self.path!r} could leave its directory")
        if len(self.blocks) != -(-self.size_bytes // checksum.BLOCK_SIZE_BYTES):
            raise ValueError(f"{self.path}: {len(self.blocks)} blocks do not make {self.size_bytes} bytes")
        if _whole(self.blocks, self.size_bytes) != self.crc64nvme:
            raise ValueError(f"{self.path}: the checksum is not that of its blocks")
        return self


def _whole(blocks: Sequence[str], size_bytes: int) -> str:
    return checksum.combine(zip(blocks, checksum.block_sizes(size_bytes), strict=True))


class _Record(Sealed):
    """What every record says of its checkpoint."""

    schema_version: Annotated[int, Field(ge=1, le=SCHEMA_VERSION)] = SCHEMA_VERSION
    run: str
    step: Count
    generation: Generation
    world_size: WorldSize
    created_at: AwareDatetime
    block_size_bytes: Annotated[int, Field(ge=checksum.BLOCK_SIZE_BYTES, le=checksum.BLOCK_SIZE_BYTES)] = (
        checksum.BLOCK_SIZE_BYTES
    )
    files: list[FileRecord]
    metrics: Metrics = {}
    fingerprints: dict[str, str] = {}

    @model_validator(mode="after")
    def _each_path_once(self) -> Self:
        paths = {layout.alike(file.path) for file in self.files}
        if len(paths) != len(self.files):
            raise ValueError("a path stands twice among the files")
        # Uploaded as a file, a record would be there before what it promises.
        if any(map(self._is_reserved, paths)):
            raise ValueError("a record stands among the files")
        if not paths.isdisjoint(_directories(paths)):
            raise ValueError("a path among the files is a file and a directory")
        return self

    @staticmethod
    def _is_reserved(path: str) -> bool:
        return layout.is_record(path)

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def _directories(paths: Iterable[str]) -> Iterator[str]:
    for path in paths:
        while path := path.rpartition("/")[0]:
            yield path


class RankRecord(_Record):
    """What one rank wrote of a step. Lives in the temporary directory until the node record is made."""

    rank: Rank


class NodeRecord(_Record):
    """What one node wrote of a step: the files of all its ranks."""

    node: Node
    nodes: Nodes
    ranks: Ranks

    @classmethod
    def merge(cls, ranks: Sequence[RankRecord], *, node: int, nodes: int) -> Self:
        """The node's record from those of its ranks, all of one step and generation."""
        first = min(ranks, key=lambda record: record.rank)
        with _corrupt_if_invalid(doing="merging", subject=layout.step_name(first.step)):
            return cls(
                **_common(ranks, first, [file for record in ranks for file in record.files]),
                node=node,
                nodes=nodes,
                ranks=sorted(record.rank for record in ranks),
            )


class CommitRecord(_Record):
    """All files of a step are in the store: those of every node, and the node records themselves."""

    nodes: Nodes

    @classmethod
    def merge(cls, encoded_nodes: Sequence[bytes]) -> Self:
        """The commit record from the node records as stored.

        Raises:
            CorruptError: one can't be read, or they are not all the nodes of one checkpoint.
        """
        nodes = [decode(NodeRecord, data, subject="node record") for data in encoded_nodes]
        first = min(nodes, key=lambda record: record.node)
        if [len(nodes), *sorted(record.node for record in nodes)] != [first.nodes, *range(len(nodes))]:
            raise CorruptError(
                f"{len(nodes)} of {first.nodes} node records", subject=layout.step_name(first.step)
            )
        files = [file for record in nodes for file in record.files]
        files += [
            FileRecord.of_bytes(layout.node_record(record.node), data)
            for record, data in zip(nodes, encoded_nodes, strict=True)
        ]
        with _corrupt_if_invalid(doing="merging", subject=layout.step_name(first.step)):
            return cls(**_common(nodes, first, files), nodes=first.nodes)

    @staticmethod
    def _is_reserved(path: str) -> bool:
        return layout.is_commit_record(path)


def _common(records: Sequence[_Record], first: _Record, files: Iterable[FileRecord]) -> dict[str, object]:
    """The fields a merged record shares with its sources; ``created_at`` is the latest of theirs."""
    identity = {(record.run, record.step, record.generation, record.world_size) for record in records}
    if len(identity) != 1:
        raise CorruptError(f"records of different checkpoints: {sorted(identity)}", doing="merging")
    created_at: datetime = max(record.created_at for record in records)
    return {
        "run": first.run,
        "step": first.step,
        "generation": first.generation,
        "world_size": first.world_size,
        "created_at": created_at,
        "files": sorted(files, key=lambda file: file.path),
        "metrics": first.metrics,
        "fingerprints": first.fingerprints,
    }


R = TypeVar("R", bound=Strict)


def decode(model: type[R], data: bytes, *, subject: str, hint: str = "") -> R:
    """Read a record, or any other JSON file of ours.

    Raises:
        CorruptError: it is too large, truncated, not JSON, of an unknown schema version, inconsistent, or not
            what was written.
    """
    below.check_small(len(data), subject)
    with _corrupt_if_invalid(doing="reading", subject=subject, hint=hint):
        found = model.model_validate_json(data)
    if seal.is_broken(data):
        problem = "it was changed: its own checksum is another"
        raise CorruptError(problem, doing="reading", subject=subject, hint=hint)
    return found


@contextmanager
def _corrupt_if_invalid(*, doing: str, subject: str, hint: str = "") -> Iterator[None]:
    try:
        yield
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(repr(str(part)[:100])[1:-1] for part in first["loc"])
        problem = f"{field}: {first['msg']}" if field else first["msg"]
        raise CorruptError(problem, doing=doing, subject=subject, hint=hint) from error
    except SettingsError as error:  # run.json holds settings
        problem = f"{error.subject}: {error.problem}"
        raise CorruptError(problem, doing=doing, subject=subject, hint=hint) from error
