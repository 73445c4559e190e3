"""Llama weights from and to Hugging Face directories: safetensors only, so that nothing is ever run.

A decoder's last layer is head 0; further heads are ``extra_heads.0``, ``extra_heads.1`` and so on beside it,
names that other readers pass over. Everything is checked from config and headers before a weight is read.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from uploader import files
from uploader.errors import CorruptError, SettingsError
from wmtp.checkpoint.shards import TensorSpec, plan_shards
from wmtp.model.hf_config import CONFIG, format_config, read_config, read_json
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXTRA = "extra_heads."
SHARD_SIZE_BYTES = 5_000_000_000

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_IGNORED = ("rotary_emb.inv_freq",)
"""Buffers that old versions stored; they follow from the config."""

M = TypeVar("M", bound=nn.Module)


class Llama(nn.Module):
    """A decoder that predicts the next token: the reference, reward or base model of an algorithm.

    Attributes:
        decoder: trunk and head 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = dataclasses.replace(config, heads=1)
        self.decoder = MTPModel(self.config)

    def forward(self, ids: Tensor) -> Tensor:
        """Next-token logits, [B, S, V], of ids [B, S]."""
        return self.decoder.head(0, self.decoder.trunk(ids))


def load_llama(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, field: str = "model"
) -> Llama:
    """The frozen next-token model of a directory, in evaluation mode.

    Args:
        dtype: of the weights; None means as they are stored.
        field: the setting that named the directory, for messages.

    Raises:
        SettingsError: it is no Llama directory, or something in it is not supported; names it.
        CorruptError: weights are missing, have another shape than the config says, or can't be read.
    """
    with torch.device("meta"):
        model = Llama(read_config(path, field=field))
    _fill(model.decoder, path, device, dtype, field)
    return model.requires_grad_(False).eval()


def load_mtp(
    path: Path,
    config: ModelConfig,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    field: str = "paths.models.base",
) -> MTPModel:
    """The model of a directory as one to train; heads it does not have begin as copies of head 0.

    Args:
        config: as ``read_config`` gives it, perhaps with another number of heads; of more heads than are
            wanted the last are not read.

    Raises:
        SettingsError, CorruptError: as ``load_llama``.
    """
    with torch.device("meta"):
        model = MTPModel(config)
    _fill(model, path, device, dtype, field)
    return model


def weight_files(names: Iterable[str], *, subject: str, field: str) -> str:
    """Of the files of a directory, the one that says where the weights are.

    Raises:
        SettingsError: there are none, or only pickled ones.
    """
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


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor as its file's header describes it."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


def _fill(
    model: MTPModel, path: Path, device: torch.device | str, dtype: torch.dtype | None, field: str
) -> None:
    """Give a model on the meta device its weights, each read into memory once."""
    stored = _headers(path, field)
    sources = _sources(model, stored, path)
    state: dict[str, Tensor] = {}
    with ExitStack() as stack:
        opened = {file: stack.enter_context(_open(file)) for file in {one.path for one in stored.values()}}
        for ours, theirs in sources.items():
            try:
                tensor = opened[stored[theirs].path].get_tensor(theirs)
            except SafetensorError as error:
                raise CorruptError(str(error), doing="reading", subject=str(stored[theirs].path)) from error
            state[ours] = tensor.to(device, dtype, copy=True)  # a copy: the file may be replaced
    model.load_state_dict(state, assign=True)
    model.tie()


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CorruptError(str(error), doing="reading", subject=str(path)) from error


def _headers(path: Path, field: str) -> dict[str, _Stored]:
    """Every tensor of a directory by name."""
    found: dict[str, _Stored] = {}
    with files.disk_errors("reading", path):
        listing = os.listdir(path)
    named = weight_files(listing, subject=str(path), field=field)
    for file in [path / WHOLE] if named == WHOLE else _shards(path, field):
        with _open(file) as opened:
            for name in opened.keys():  # noqa: SIM118  (no mapping)
                view = opened.get_slice(name)
                found[name] = _Stored(file, view.get_dtype(), tuple(view.get_shape()))
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


def _sources(model: MTPModel, stored: Mapping[str, _Stored], path: Path) -> dict[str, str]:
    """For each name of the model the name in the files; shapes, types and completeness are checked."""
    config = model.config
    sources = {ours: _their_name(ours, config, stored) for ours in model.state_dict()}
    expected = {*sources.values(), "lm_head.weight"}
    for name in stored:
        if name not in expected and not name.startswith(EXTRA) and not name.endswith(_IGNORED):
            hint = "config.json must describe all weights, and only a causal Llama is supported"
            raise SettingsError("the model has no such weight", subject=f"{path} {name}", hint=hint)
    _require_whole_heads(config, stored, path)
    for (ours, weight), theirs in zip(model.state_dict().items(), sources.values(), strict=True):
        if theirs not in stored:
            problem = f"the weight {theirs} ({ours} here) is missing"
            raise CorruptError(problem, doing="reading", subject=str(path))
        one = stored[theirs]
        if one.dtype not in _DTYPES:
            hint = f"there are: {', '.join(_DTYPES)}"
            raise SettingsError(f"{one.dtype} is not supported", subject=f"{path} {theirs}", hint=hint)
        if one.shape != tuple(weight.shape):
            problem = f"{theirs} has the shape {list(one.shape)}, by {CONFIG} {list(weight.shape)}"
            raise CorruptError(problem, doing="reading", subject=str(one.path))
    return sources


def _their_name(ours: str, config: ModelConfig, stored: Mapping[str, _Stored]) -> str:
    """The name in the files: where an extra head is not there, that of head 0."""
    owner, _, rest = ours.partition(".")
    if owner == "heads":
        k, _, rest = rest.partition(".")
        extra = f"{EXTRA}{int(k) - 1}."
        if k != "0" and any(name.startswith(extra) for name in stored):
            return extra + rest
        return f"model.layers.{config.trunk_layers}.{rest}"
    if owner == "lm_head":
        return "model.embed_tokens.weight" if config.tie_embeddings else ours
    return f"model.{ours}"


def _require_whole_heads(config: ModelConfig, stored: Mapping[str, _Stored], path: Path) -> None:
    """Extra heads are numbered without a gap."""
    numbers = {name.removeprefix(EXTRA).partition(".")[0] for name in stored if name.startswith(EXTRA)}
    for number in range(len(numbers)):
        if str(number) not in numbers:
            problem = f"there are {len(numbers)} extra heads, but no {EXTRA}{number}"
            raise CorruptError(problem, doing="reading", subject=str(path))


def save_llama(
    model: MTPModel,
    target: Path,
    *,
    dtype: torch.dtype | None = None,
    special: Mapping[str, int] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
    shard_size_bytes: int = SHARD_SIZE_BYTES,
) -> None:
    """Write a Hugging Face directory that ``transformers`` and ``load_mtp`` read; whole or not there.

    Args:
        dtype: of the weights written; None means as they are.
        special: ids of special tokens for ``config.json``.
        extra_files: name to bytes: the tokenizer's.
        shard_size_bytes: weights above that are cut into files of at most this size.

    Raises:
        SettingsError: the directory is there and not empty.
        DiskError: the disk refused.
    """
    require_empty(target)
    with files.disk_errors("exporting to", target):
        staged = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        files.remove_tree(staged)
        files.make_directory(staged)
        try:
            stored = dtype or model.embed_tokens.weight.dtype
            config = format_config(model.config, stored, dict(special or {}))
            _write_weights(_named_weights(model, dtype), staged, shard_size_bytes)
            texts = {CONFIG: json.dumps(config, indent=2).encode() + b"\n", **(extra_files or {})}
            for name, data in texts.items():
                files.write_durably(staged / name, data)
            files.fsync_directory(staged)
            if target.exists():
                target.rmdir()
            os.rename(staged, target)
        except BaseException:
            files.remove_tree(staged)
            raise
        files.fsync_directory(target.parent)


def require_empty(target: Path) -> None:
    """Nothing is ever written over.

    Raises:
        SettingsError: the directory is there and not empty.
        DiskError: it can't be read.
    """
    with files.disk_errors("exporting to", target):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            hint = "name a directory that is not there yet"
            raise SettingsError("it is not empty", doing="exporting to", subject=str(target), hint=hint)


def _named_weights(model: MTPModel, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The weights under the names that files have; of a tied pair the embedding alone."""
    weights = {}
    for ours, weight in model.state_dict().items():
        if ours == "lm_head.weight" and model.config.tie_embeddings:
            continue
        owner, _, rest = ours.partition(".")
        number, _, name = rest.partition(".")
        if owner == "heads":
            theirs = f"model.layers.{model.config.trunk_layers}.{name}"
            if number != "0":
                theirs = f"{EXTRA}{int(number) - 1}.{name}"
        else:
            theirs = ours if owner == "lm_head" else f"model.{ours}"
        weights[theirs] = weight.detach().to("cpu", dtype).contiguous()
    return weights


def _write_weights(weights: Mapping[str, Tensor], directory: Path, shard_size_bytes: int) -> None:
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
