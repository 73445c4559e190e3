"""Config, recipe and flags become the values a run uses, each with where it came from.

The order, first wins: flag, recipe, config, built-in default. The run's name is joined exactly once to the
base; a base that already ends in that name is still a base.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from uploader.errors import SettingsError
from uploader.location import Location
from uploader.settings import StorageSettings, UploadSettings
from wmtp.settings.config import Config, Storage
from wmtp.settings.fields import Bandwidth, check_run_name
from wmtp.settings.locate import is_path, locate, locate_directory
from wmtp.settings.problems import suggestion
from wmtp.settings.recipe import BYTES, MODELS_NEEDED, Recipe
from wmtp.settings.resolved import Flags, Resolved
from wmtp.settings.resume import Resume
from wmtp.settings.retention import resolve_retention
from wmtp.settings.validation import require_validation

DEFAULT_MAX_STEPS = 400
STDLIB = "stdlib"
"""The dataset that needs no entry in ``paths.datasets``: the source of Python's standard library."""

CHECKPOINT_PATH = "train.checkpointing.checkpoint_path"
BASE_PATH = "paths.checkpoints.base_path"
LOCAL_PATH = "paths.checkpoints.local_path"
MAX_BANDWIDTH = "paths.checkpoints.upload.max_bandwidth"

T = TypeVar("T")


def resolve(
    config: Config, recipe: Recipe, flags: Flags, cwd: Path, leaf_sources: Mapping[str, str]
) -> Resolved:
    """The values that hold, from what was validated and what the flags say.

    Pure but for one look at the disk: whether two spellings of a directory are the same one.

    Raises:
        SettingsError: a flag is malformed, a location can't be, or two settings contradict each other.
    """
    require_validation(recipe)
    choose = _Chooser(leaf_sources)
    own, shared = recipe.train.checkpointing, config.paths.checkpoints
    run_name = choose(
        "run_name", ("--run-name", _checked_name(flags.run_name)), ("run.name", recipe.run.name)
    )
    base = _base(config, recipe, cwd, choose)
    location = base.join(run_name)
    retention, local_retention = resolve_retention(own, shared, choose.note)
    local_dir = _local_base(config, base, cwd, choose) / run_name
    return Resolved(
        config=config,
        recipe=recipe,
        run_name=run_name,
        tags=choose("tags", ("--tags", _checked_tags(flags.tags)), ("run.tags", tuple(recipe.run.tags))),
        base=base,
        location=location,
        local_dir=local_dir,
        in_place=not location.is_s3 and os.path.realpath(local_dir) == os.path.realpath(location.path),
        save_interval=choose.inherited("save_interval", own.save_interval, shared.save_interval),
        retention=retention,
        local_retention=local_retention,
        save_final=choose.inherited("save_final", own.save_final, shared.save_final),
        max_steps=_max_steps(recipe, flags, choose),
        num_epochs=None if flags.max_steps is not None else recipe.train.num_epochs,
        resume=_resume(recipe, flags, cwd, choose),
        fresh=flags.fresh,
        seed=choose("seed", ("seed", config.seed)),
        dataset=_dataset(config, recipe, cwd, choose),
        tokenizer=_tokenizer(recipe, cwd),
        models=_models(config, recipe, cwd),
        cache=locate_directory(config.paths.cache, cwd, "paths.cache"),
        storage=storage_of(config.storage, cwd),
        upload=_upload(config, flags, choose),
        dev_s3=directory_of(config.storage.dev_s3, cwd, "storage.dev_s3"),
        tensorboard=directory_of(config.tensorboard.directory, cwd, "tensorboard.directory"),
        sources=choose.sources,
        leaf_sources=leaf_sources,
    )


class _Chooser:
    """Takes the first value that is set and notes where it came from."""

    def __init__(self, leaf_sources: Mapping[str, str]) -> None:
        self.sources: dict[str, str] = {}
        self._leaf_sources = leaf_sources

    def __call__(self, name: str, *choices: tuple[str, T | None]) -> T:
        """The first of the (flag or key, value) pairs whose value is not None; one must be."""
        key, value = next((key, value) for key, value in choices if value is not None)
        self.note(name, key)
        return value

    def inherited(self, name: str, own: T | None, shared: T) -> T:
        """The recipe's checkpointing field, else the config's of the same name."""
        return self(name, (f"train.checkpointing.{name}", own), (f"paths.checkpoints.{name}", shared))

    def note(self, name: str, key: str) -> None:
        flag = key.startswith("--")
        self.sources[name] = key if flag else f"{key} ({self._leaf_sources.get(key, 'default')})"


def _base(config: Config, recipe: Recipe, cwd: Path, choose: _Chooser) -> Location:
    own = recipe.train.checkpointing.checkpoint_path
    return choose(
        "base",
        (CHECKPOINT_PATH, None if own is None else locate(own, cwd, CHECKPOINT_PATH)),
        (BASE_PATH, locate(config.paths.checkpoints.base_path, cwd, BASE_PATH)),
    )


def _local_base(config: Config, base: Location, cwd: Path, choose: _Chooser) -> Path:
    written = directory_of(config.paths.checkpoints.local_path, cwd, LOCAL_PATH)
    if written is None and not base.is_s3:
        choose.sources["local_dir"] = "the base itself"
        return base.directory
    return choose("local_dir", (LOCAL_PATH, written), (LOCAL_PATH, cwd / "ckpt"))


def _upload(config: Config, flags: Flags, choose: _Chooser) -> UploadSettings:
    paths = config.paths.checkpoints
    bandwidth = paths.upload.max_bandwidth
    if flags.max_bandwidth is not None:
        bandwidth = checked_bandwidth(flags.max_bandwidth)
    choose.note("max_bandwidth", MAX_BANDWIDTH if flags.max_bandwidth is None else "--max-bandwidth")
    return UploadSettings(
        **paths.upload.model_dump(exclude={"max_bandwidth"}),
        max_bandwidth_bytes_per_s=bandwidth,
        delete_grace_s=paths.delete_grace_s,
        purge_versions=paths.purge_versions,
        heartbeat_s=paths.heartbeat_s or paths.lease_s / 6,
    )


def checked_bandwidth(written: str) -> int:
    """What ``--max-bandwidth`` says, in bytes a second.

    Raises:
        SettingsError: it says something else.
    """
    try:
        return TypeAdapter(Bandwidth).validate_python(written)
    except ValidationError as error:
        problem = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise SettingsError(problem, subject="--max-bandwidth", hint="64KiB is the least") from None


def _max_steps(recipe: Recipe, flags: Flags, choose: _Chooser) -> int | None:
    if flags.max_steps is not None and flags.max_steps < 1:
        raise SettingsError(
            f"{flags.max_steps} is no number of steps", subject="--max-steps", hint="use 1 or more"
        )
    if flags.max_steps is None and recipe.train.num_epochs is not None:
        choose.note("max_steps", "train.num_epochs")
        return None
    max_steps = choose(
        "max_steps",
        ("--max-steps", flags.max_steps),
        ("train.max_steps", recipe.train.max_steps),
        ("train.max_steps", DEFAULT_MAX_STEPS),
    )
    warmup_steps = recipe.optim.warmup_of(max_steps)
    if warmup_steps >= max_steps:
        raise SettingsError(
            f"{warmup_steps} steps of warm-up are not fewer than max_steps {max_steps}",
            subject="optim.warmup_steps",
            hint="lower it, or leave it null for a tenth of all steps",
        )
    return max_steps


def _resume(recipe: Recipe, flags: Flags, cwd: Path, choose: _Chooser) -> Resume | None:
    if flags.fresh and flags.resume is not None:
        raise SettingsError("--fresh and --resume contradict each other", subject="--fresh", hint="give one")
    if flags.fresh:
        choose.note("resume", "--fresh")
        return None
    if flags.resume is not None:
        choose.note("resume", "--resume")
        return Resume.parse(flags.resume, cwd)
    choose.note("resume", "train.checkpointing.auto_resume_latest")
    return Resume.parse("auto", cwd) if recipe.train.checkpointing.auto_resume_latest else None


def _dataset(config: Config, recipe: Recipe, cwd: Path, choose: _Chooser) -> Location | None:
    """What ``data.train`` names: an entry of ``paths.datasets``, a path, or (None) the standard library."""
    name, known = recipe.data.train, config.paths.datasets
    if name in known:
        choose.note("dataset", f"paths.datasets.{name}")
        return locate(known[name], cwd, f"paths.datasets.{name}")
    choose.note("dataset", "data.train")
    if name == STDLIB:
        return None
    if is_path(name):
        return locate(name, cwd, "data.train")
    raise SettingsError(
        f"{name!r} is no dataset of the config",
        subject="data.train",
        hint=f"{suggestion(name, [STDLIB, *known])} (a path needs a slash: ./{name})",
    )


def _tokenizer(recipe: Recipe, cwd: Path) -> Location | None:
    """Where ``data.tokenizer`` lies; None where it names no file."""
    text = recipe.data.tokenizer
    if text is None or text == BYTES:
        return None
    if is_path(text):
        return locate(text, cwd, "data.tokenizer")
    hint = f"write {BYTES}, or a path with a slash: ./{text}"
    raise SettingsError(f"{text!r} is no tokenizer", subject="data.tokenizer", hint=hint)


def _models(config: Config, recipe: Recipe, cwd: Path) -> dict[str, Location]:
    written = config.paths.models.model_dump(exclude_none=True)
    needed = MODELS_NEEDED[recipe.train.algo]
    if needed and not any(name in written for name in needed):
        keys = [f"paths.models.{name}" for name in needed]
        hint = f"set it{''.join(f', or {key}' for key in keys[1:])}, to the directory of a model"
        raise SettingsError(f"train.algo {recipe.train.algo} needs it", subject=keys[0], hint=hint)
    return {name: locate(text, cwd, f"paths.models.{name}") for name, text in written.items()}


def storage_of(storage: Storage, cwd: Path) -> StorageSettings:
    """The uploader's part of the section, its files made absolute."""
    files = {
        name: str(locate_directory(text, cwd, f"storage.{name}"))
        for name in ("credentials_file", "ca_bundle", "sse_c_key_file")
        if (text := getattr(storage, name)) is not None
    }
    return StorageSettings.model_validate(storage.model_dump(exclude={"dev_s3"}) | files)


def directory_of(text: str | None, cwd: Path, field: str) -> Path | None:
    return None if text is None else locate_directory(text, cwd, field)


def _checked_name(name: str | None) -> str | None:
    try:
        return None if name is None else check_run_name(name)
    except ValueError as error:
        raise SettingsError(str(error), subject="--run-name") from error


def _checked_tags(tags: tuple[str, ...] | None) -> tuple[str, ...] | None:
    stripped = None if tags is None else tuple(tag.strip() for tag in tags)
    if stripped is not None and not all(stripped):
        raise SettingsError("a tag is empty", subject="--tags", hint="write --tags a,b")
    return stripped
