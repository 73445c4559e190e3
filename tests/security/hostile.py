"""What somebody may have written in the place of a file of ours: valid examples, and ways to spoil them."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from hypothesis import strategies as st
from steps import FIRST, NOW, SMALL, generation_file, node_record, run_file

from uploader import layout
from uploader.checksum import BLOCK_SIZE_BYTES, of_bytes
from uploader.events import ShardSaved
from uploader.generation import GenerationFile
from uploader.journal import Unfinished
from uploader.layout import RunKeys
from uploader.manifest import Entry, Manifest
from uploader.record import CommitRecord, FileRecord, NodeRecord, RankRecord
from uploader.run import RunFile
from uploader.settings import Strict
from uploader.status import Status
from uploader.taken import Taken
from uploader.tree import Identity

NODE = node_record(7)
COMMIT = CommitRecord.merge([NODE.encode()])
RANK = RankRecord(
    run="run", step=7, generation=1, world_size=1, created_at=NOW, files=NODE.files, rank=0, metrics={"a": 1}
)
ENTRY = Entry.of(COMMIT, RunKeys())
OLDER = ENTRY.model_copy(
    update={"step": 6, "record": "step_6/g1/checkpoint.json", "created_at": NOW - timedelta(seconds=1)}
)
MANIFEST = Manifest(
    run="run",
    generation=1,
    owner=FIRST.owner,
    latest=7,
    live={"step_7": ENTRY},
    superseded={OLDER.name: OLDER.model_copy(update={"superseded_by": 1})},
)
UPLOAD = Unfinished(
    destination="s3://bucket/run",
    key="step_7/g1/" + next(iter(SMALL)),
    upload_id="upload",
    size_bytes=5,
    crc64nvme=of_bytes(b"12345"),
    part_size_bytes=BLOCK_SIZE_BYTES,
    etags={1: "etag"},
)
TAKEN = Taken(
    entry="step_7.pt", is_directory=False, files={"step_7.pt": Identity(1, 2, 3)}, record=node_record(7)
)
SHARD = ShardSaved(generation=1, step=7, file=NODE.files[0])
STATUS = Status(run="run", destination="s3://bucket/run", pid=1, updated_at=NOW)

EXAMPLES: dict[type[Strict], Strict] = {
    NodeRecord: NODE,
    CommitRecord: COMMIT,
    RankRecord: RANK,
    Manifest: MANIFEST,
    GenerationFile: generation_file(FIRST),
    Unfinished: UPLOAD,
    Taken: TAKEN,
    ShardSaved: SHARD,
    RunFile: run_file(),
    Status: STATUS,
}


def tree_of(example: Strict) -> Any:
    """The JSON of an example, to be changed."""
    return json.loads(example.model_dump_json())


def places(tree: Any, *above: str | int) -> Iterator[tuple[str | int, ...]]:
    """The way to every value of a JSON tree."""
    yield above
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield from places(tree[key], *above, key)


def put(tree: Any, place: tuple[str | int, ...], value: Any) -> Any:
    """The tree with another value at a place."""
    if not place:
        return value
    below = tree
    for key in place[:-1]:
        below = below[key]
    below[place[-1]] = value
    return tree


def file_record(path: str) -> dict[str, Any]:
    """A file as a record of somebody else may describe it: all of it right but its path."""
    return {**tree_of(FileRecord.of_bytes("x", b"x")), "path": path}


def with_paths(*paths: str) -> dict[type[Strict], dict[str, Any]]:
    """Each kind of record, naming just these files."""
    files = [file_record(path) for path in paths]
    records: dict[type[Strict], dict[str, Any]] = {
        kind: {**tree_of(EXAMPLES[kind]), "files": files} for kind in (NodeRecord, CommitRecord, RankRecord)
    }
    return {**records, Taken: {**tree_of(TAKEN), "record": records[NodeRecord]}}


LOOK_ALIKE = ["．", "․", "‥", "…", "／", "∕", "⁄", "⧸", "＼", "：", "﹨", "℀"]
"""Full-width and other dots, slashes, backslashes and colons."""
INVISIBLE = ["\u200b", "\u200e", "\u202e", "\u2066", "\ufeff", "\u2028", "\u2029", "\xad"]
CONTROL = ["\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\x9b"]
DEVICES = ["CON", "nul", "aux.txt", "COM1", "lpt9.safetensors", "PRN"]

words = st.sampled_from(
    ["a", "b.bin", "model-rank00000-0001.safetensors", "état", "x y", "epoch=1-step=2.ckpt"]
)
safe_paths = st.lists(words, min_size=1, max_size=3).map("/".join)


def _inserted(text: str, at: int, mark: str) -> str:
    return text[: at % (len(text) + 1)] + mark + text[at % (len(text) + 1) :]


ABOVE = [".", "..", "", "../..", "a/..", "．．", "‥"]
ROOTS = ["/", "C:", "C:/", "C:\\", "\\\\host\\share\\", "~/../", "//"]
LAST = [".", "..", "", "../x", ".hidden", *DEVICES]
ENDINGS = [".", " ", "..", "\u00a0", "/", "\\", " /x", "./x"]
MARKS = [*LOOK_ALIKE, *INVISIBLE, *CONTROL]
LONG = ["a" * 256, "é" * 200, "/".join(["a" * 100] * 6)]

hostile_paths = st.one_of(
    st.builds("{}{}".format, st.sampled_from(ROOTS), safe_paths),
    st.builds("{}/{}".format, st.sampled_from([*ABOVE, *DEVICES]), safe_paths),
    st.builds("{}/{}".format, safe_paths, st.sampled_from(LAST)),
    st.builds("{}{}".format, safe_paths, st.sampled_from(ENDINGS)),
    st.builds(_inserted, safe_paths, st.integers(0, 40), st.sampled_from(MARKS)),
    st.sampled_from(["", ".", "..", "/", "\\", *LONG, layout.COMMIT_RECORD_NAME]),
)
