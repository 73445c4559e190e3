"""The values a run uses, after files, flags and defaults are laid over each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from uploader.location import Location
from uploader.retention import Retention
from uploader.settings import StorageSettings, UploadSettings
from wmtp.settings.config import Config
from wmtp.settings.recipe import Recipe
from wmtp.settings.resume import Resume


@dataclass(frozen=True, slots=True)
class Flags:
    """Options of ``wmtp train`` that decide a value; None where the option was not given."""

    run_name: str | None = None
    resume: str | None = None
    max_steps: int | None = None
    tags: tuple[str, ...] | None = None
    fresh: bool = False
    max_bandwidth: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """All that a run needs to know before it starts. Every path is absolute.

    Attributes:
        base: what the run's name is joined to.
        location: ``base/<run>``, where the checkpoints end up.
        local_dir: the run directory on this machine.
        in_place: ``local_dir`` is ``location``: the local rename is the commit, nothing is uploaded.
        retention: what stays in the store.
        local_retention: what of it stays on this disk, too.
        max_steps: None where ``num_epochs`` decides.
        resume: None is a start from scratch.
        fresh: ``--fresh``: start from scratch although there are checkpoints.
        dataset: None is the standard library's source.
        tokenizer: None is that of bytes or of the base model, as ``data.tokenizer`` says.
        models: by ``base``, ``ref``, ``rm``; only those that are set.
        storage: how the store is reached; without an endpoint while ``dev_s3`` is to provide one.
        upload: how the uploader works.
        dev_s3: data directory of the embedded server to start; None starts none.
        tensorboard: what the run's name is joined to; None is ``tensorboard`` in ``local_dir``.
        sources: for each field above that several places may set, ``key (source)`` or the flag.
        leaf_sources: dotted key to source, for every key that something set; the others are defaults.
    """

    config: Config
    recipe: Recipe
    run_name: str
    tags: tuple[str, ...]
    base: Location
    location: Location
    local_dir: Path
    in_place: bool
    save_interval: int
    retention: Retention
    local_retention: Retention
    save_final: bool
    max_steps: int | None
    num_epochs: int | None
    resume: Resume | None
    fresh: bool
    seed: int
    dataset: Location | None
    tokenizer: Location | None
    models: Mapping[str, Location]
    cache: Path
    storage: StorageSettings
    upload: UploadSettings
    dev_s3: Path | None
    tensorboard: Path | None
    sources: Mapping[str, str]
    leaf_sources: Mapping[str, str]

    @property
    def keep_last(self) -> int | None:
        """How many of the newest steps stay."""
        return self.retention.keep_last
