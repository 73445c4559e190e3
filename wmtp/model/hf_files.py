"""The safetensors files of a Hugging Face directory: one, or several with an index beside them."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from uploader import files
from uploader.errors import CorruptError, SettingsError
from wmtp.checkpoint.shards import TensorSpec, plan_shards
from wmtp.model.hf_config import read_json

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as its file's header describes it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def open_weights(path: Path) -> safe_open:
    """One file, its header read and checked.

    Raises:
        CorruptError: it can't be read.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CorruptError(str(error), doing="reading", subject=str(path)) from error


def read_headers(path: Path, field: str) -> dict[str, Stored]:
    """Every tensor of a directory by name; no tensor is read.

    Args:
        field: the setting that named the directory, for messages.

    Raises:
        SettingsError: there are no weights, or only pickled ones.
        CorruptError: a file is missing or damaged, or the index names one that lies elsewhere.
    """
    found: dict[str, Stored] = {}
    with files.disk_errors("reading", path):
        listing = os.listdir(path)
    named = _named(listing, subject=str(path), field=field)
    for file in [path / WHOLE] if named == WHOLE else _shards(path, field):
        with open_weights(file) as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                view = opened.get_slice(name)
                found[name] = Stored(file, view.get_dtype(), tuple(view.get_shape()))
    return found


def _shards(path: Path, field: str) -> list[Path]:
    """The files that the index names; one that lies elsewhere is refused."""
    weights = read_json(path / INDEX, field).get("weight_map")
    names = sorted({*weights.values()}) if isinstance(weights, dict) else []
    for name in names or [""]:
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            problem = f"it names {name!r}, which is no safetensors file beside it"
            raise CorruptError(problem, doing="reading", subject=str(path / INDEX))
        if not (path / name).exists():
            hint = "bring the file back, or fetch the model again"
            raise CorruptError(f"{name} is missing", doing="reading", subject=str(path / INDEX), hint=hint)
    return [path / name for name in names]


def _named(names: Iterable[str], *, subject: str, field: str) -> str:
    """Of the files of a directory, the one that says where the weights are."""
    there = {*names}
    for name in (WHOLE, INDEX):
        if name in there:
            return name
    pickled = sorted(name for name in there if name.endswith(_PICKLED))
    if pickled:
        problem = f"its weights are pickled ({pickled[0]}), and unpickling would run code"
        hint = "convert them: load the model with transformers, then save_pretrained"
        raise SettingsError(f"{problem}, so they are not read", doing=field, subject=subject, hint=hint)
    hint = f"{field} must be a Hugging Face directory: config.json, *.safetensors, tokenizer.json"
    raise SettingsError(f"there is neither {WHOLE} nor {INDEX}", subject=subject, hint=hint)


def write_weights(weights: Mapping[str, Tensor], directory: Path, shard_size_bytes: int) -> None:
    """Write tensors as one file or, above ``shard_size_bytes``, as several and an index; all are fsynced."""
    specs = [TensorSpec(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in weights.items()]
    shards = plan_shards(specs, str, shard_size_bytes)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = WHOLE if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        names = [spec.name for spec, _ in shard.tensors]
        save_file({name: weights[name] for name in names}, directory / file, metadata={"format": "pt"})
        with open(directory / file, "rb") as written:
            os.fsync(written.fileno())
        places |= dict.fromkeys(names, file)
    if len(shards) > 1:
        size_bytes = sum(spec.size_bytes for spec in specs)
        index = {"metadata": {"total_size": size_bytes}, "weight_map": places}
        files.write_durably(directory / INDEX, json.dumps(index, indent=2).encode() + b"\n")
