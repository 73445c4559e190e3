"""Every name: files of a run directory, keys of a run in the store, and what may be a file's path.

Two rules hold everywhere. A name that ends in ``.tmp`` is never read. A key belongs to one generation and
is used once, for completing an old multipart upload overwrites whatever its key holds by then.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(r"step_(0|[1-9][0-9]{0,17})\Z")
_STEP_AT = re.compile(r"step_(0|[1-9][0-9]{0,17})@g(0|[1-9][0-9]{0,8})\Z")
_TEMPORARY = re.compile(r"step_(0|[1-9][0-9]{0,17})\.g(0|[1-9][0-9]{0,8})\.tmp\Z")
_NODE_RECORD = re.compile(r"node-[0-9]{4}\.json\Z")
_RANK_RECORD = re.compile(r"rank-[0-9]{5}\.json\Z")
_COMMIT_RECORD = re.compile(r"(step_[0-9]{1,18})(?:/g(?:0|[1-9][0-9]{0,8}))?/checkpoint\.json\Z")
_UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\\:]")
_INVISIBLE = ("Cf", "Zl", "Zp")
_SLASHES = ("\u2044", "\u2215", "\u29f8")
"""Look like a slash and are none to anybody who normalizes."""
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?\Z", re.IGNORECASE)
_RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")

MAX_PATH_BYTES = 512
"""S3 takes 1,024 bytes for a key, of which the run's prefix needs some."""
MAX_NAME_BYTES = 255

MANIFEST_KEY = "manifest.json"
GENERATIONS_PREFIX = "generations/"
PINS_PREFIX = "pins/"
PROBE_PREFIX = ".probe/"
"""Below it a store is asked what it can do; no other name of ours begins so."""
COMMIT_RECORD_NAME = "checkpoint.json"
ORIGIN_NAME = ".origin"
"""In a local step that was fetched: the destination it is from. No record names it, nothing uploads it."""
DCP_METADATA = ".metadata"
"""The index of a ``torch.distributed.checkpoint`` directory: the one hidden file that is data."""


def step_name(step: int) -> str:
    """``step_1000``: a step's directory, its name in the manifest, and what a user types."""
    return f"step_{step}"


def step_at(step: int, generation: int) -> str:
    """``step_700@g2``: a superseded step, which shares its number with a live one."""
    return f"step_{step}@g{generation}"


def parse_step(name: str) -> int | None:
    """The step of ``step_N``; None for any other name."""
    found = _STEP.match(name)
    return int(found[1]) if found else None


def parse_step_at(name: str) -> tuple[int, int] | None:
    """The step and generation of ``step_N@gG``; None for any other name."""
    found = _STEP_AT.match(name)
    return (int(found[1]), int(found[2])) if found else None


def parse_temporary(name: str) -> tuple[int, int] | None:
    """The step and generation of ``step_N.gG.tmp``; None for any other name."""
    found = _TEMPORARY.match(name)
    return (int(found[1]), int(found[2])) if found else None


def is_node_record(name: str) -> bool:
    return _NODE_RECORD.match(name) is not None


def is_record(name: str) -> bool:
    """Whether a record has this name, and so no other file of a checkpoint may."""
    return is_commit_record(name) or is_node_record(name) or _RANK_RECORD.match(name) is not None


def is_commit_record(path: str) -> bool:
    """Whether a file of a checkpoint with this path would be taken for the record of a checkpoint."""
    return parse_commit_record_key(f"{step_name(0)}/{path}") is not None


def is_run_name(name: str) -> bool:
    """Whether the name can be both a directory and a part of a key."""
    return _RUN_NAME.match(name) is not None


def is_safe_path(path: str) -> bool:
    """Whether a path from a record stays below its directory on every platform.

    Refused: empty, absolute, ``.`` and ``..``, backslashes, colons, control characters, hidden parts but
    a file ``.metadata``; what is invisible, or becomes one of these where names are normalized (full-width
    dots and slashes); parts of more than 255 bytes or with a dot or space at the end; names of devices.
    """
    if len(path) > MAX_PATH_BYTES or not _is_safe(path):
        return False
    if path.isascii():
        return True
    normal = unicodedata.normalize("NFKC", path)
    same = all(normal.count(mark) == path.count(mark) for mark in "./")
    seen = all(unicodedata.category(one) not in _INVISIBLE and one not in _SLASHES for one in path)
    return same and seen and _is_safe(normal)


def _is_safe(path: str) -> bool:
    if _UNSAFE.search(path) or len(path.encode()) > MAX_PATH_BYTES:
        return False
    *directories, name = path.split("/")
    return all(map(_is_safe_part, directories if name == DCP_METADATA else [*directories, name]))


def _is_safe_part(part: str) -> bool:
    fits = 0 < len(part.encode()) <= MAX_NAME_BYTES
    return fits and part[0] not in ". " and part[-1] not in ". " and not _DEVICE.match(part)


def is_safe_key(key: str) -> bool:
    """Whether a key stays below the run's location, also where that is a directory."""
    return not _UNSAFE.search(key) and not {"", ".", ".."} & {*key.split("/")}


def alike(path: str) -> str:
    """Equal for two paths that some file system takes for one: cases and normal forms don't count there."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


def model_shard(rank: int, number: int) -> str:
    return f"model-rank{rank:05d}-{number:04d}.safetensors"


def optim_shard(rank: int, number: int) -> str:
    return f"optim-rank{rank:05d}-{number:04d}.safetensors"


def extra_shard(rank: int, number: int) -> str:
    """Tensors that are neither the model's nor an optimizer's: averaged weights, say."""
    return f"extra-rank{rank:05d}-{number:04d}.safetensors"


def state_file(rank: int) -> str:
    return f"state-rank{rank:05d}.json"


def rank_record(rank: int) -> str:
    """Written by each rank when its files are durable; gone once the node record holds what it said."""
    return f"rank-{rank:05d}.json"


def node_record(node: int) -> str:
    return f"node-{node:04d}.json"


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The files of one run on one node: the truth the uploader works from."""

    path: Path

    @property
    def run_file(self) -> Path:
        return self.path / "run.json"

    @property
    def trainer_lock(self) -> Path:
        """Locked by the trainer of this node as long as it lives."""
        return self.path / ".trainer.lock"

    @property
    def identity_file(self) -> Path:
        """What tells this directory from any other, and from a copy of it."""
        return self.path / ".identity"

    @property
    def uploader_directory(self) -> Path:
        return self.path / ".uploader"

    @property
    def uploader_lock(self) -> Path:
        """Locked by the one uploader that serves this directory."""
        return self.uploader_directory / "lock"

    @property
    def status_file(self) -> Path:
        return self.uploader_directory / "status.json"

    @property
    def uploader_log(self) -> Path:
        return self.uploader_directory / "log"

    @property
    def uploads(self) -> Path:
        """The journal of unfinished uploads."""
        return self.uploader_directory / "uploads"

    @property
    def used_file(self) -> Path:
        """Which steps have been in the store."""
        return self.uploader_directory / "used.json"

    @property
    def trash(self) -> Path:
        """What was renamed away and is being deleted; never read."""
        return self.path / ".trash"

    def events(self, rank: int) -> Path:
        return self.path / f"events-rank{rank:05d}.jsonl"

    def event_files(self) -> list[Path]:
        return sorted(self.path.glob("events-rank[0-9]*.jsonl"))

    def step(self, step: int) -> Path:
        return self.path / step_name(step)

    def temporary(self, step: int, generation: int) -> Path:
        """Where generation ``generation`` writes a step before the rename that commits it."""
        return self.path / f"{step_name(step)}.g{generation}.tmp"

    def being_written(self, generation: int) -> set[str]:
        """The steps, as ``step_N@gG``, that this generation is writing or has given up."""
        found = [parse_temporary(path.name) for path in self.path.glob("step_*.tmp")]
        return {step_at(*one) for one in found if one is not None and one[1] == generation}


@dataclass(frozen=True, slots=True)
class RunKeys:
    """The keys of one run, relative to the run's location.

    Attributes:
        in_place: the location is the run directory itself: files have no generation in their keys,
            for the rename has committed them already.
    """

    in_place: bool = False

    def step_prefix(self, step: int, generation: int) -> str:
        return f"{step_name(step)}/" if self.in_place else f"{step_name(step)}/g{generation}/"

    def commit_record(self, step: int, generation: int) -> str:
        return self.step_prefix(step, generation) + COMMIT_RECORD_NAME


def generation_key(generation: int) -> str:
    return f"{GENERATIONS_PREFIX}{generation:04d}.json"


def parse_generation_key(key: str) -> int | None:
    """The number of ``generations/NNNN.json``; None for any other key."""
    found = re.fullmatch(r"generations/([0-9]{4,9})\.json", key)
    return int(found[1]) if found and generation_key(int(found[1])) == key else None


def heartbeat_key(generation: int) -> str:
    """Beside the file of a generation: rewritten as long as its owner lives."""
    return f"{GENERATIONS_PREFIX}{generation:04d}.heartbeat.json"


def pin_key(step: int, generation: int) -> str:
    return f"{PINS_PREFIX}{step_at(step, generation)}.json"


def parse_pin_key(key: str) -> tuple[int, int] | None:
    """The step and generation of ``pins/step_N@gG.json``; None for any other key."""
    name = key.removeprefix(PINS_PREFIX).removesuffix(".json")
    found = parse_step_at(name)
    return found if found is not None and pin_key(*found) == key else None


def parse_commit_record_key(key: str) -> int | None:
    """The step of ``step_N/gG/checkpoint.json`` or ``step_N/checkpoint.json``; None for any other key."""
    found = _COMMIT_RECORD.match(key)
    return parse_step(found[1]) if found else None


def parse_step_key(key: str) -> tuple[int, int] | None:
    """The step and generation of a file ``step_N/gG/…``; None for any other key."""
    found = re.match(r"(step_[0-9]{1,18})/g(0|[1-9][0-9]{0,8})/.", key)
    step = parse_step(found[1]) if found else None
    return (step, int(found[2])) if found and step is not None else None


def suggest_steps(steps: Iterable[int], *, most: int = 12) -> str:
    """The steps there are, for a message: the newest ones first, the rest as a count."""
    ordered = sorted(steps, reverse=True)
    names = ", ".join(step_name(step) for step in ordered[:most])
    return f"{names} and {len(ordered) - most} more" if len(ordered) > most else names or "none"
