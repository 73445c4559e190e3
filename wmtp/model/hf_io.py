"""Llama weights from and to Hugging Face directories: safetensors only, so that nothing is ever run.

A decoder's last layer is head 0; further heads are ``extra_heads.0``, ``extra_heads.1`` and so on beside it,
names that other readers pass over. Everything is checked from config and headers before a weight is read.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from uploader import files
from uploader.errors import CorruptError, SettingsError
from wmtp.model.hf_config import CONFIG, format_config, read_config
from wmtp.model.hf_files import Stored, open_weights, read_headers, write_weights
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel

EXTRA = "extra_heads."
SHARD_SIZE_BYTES = 5_000_000_000

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_IGNORED = ("rotary_emb.inv_freq",)
"""Buffers that old versions stored; they follow from the config."""


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


def _fill(
    model: MTPModel, path: Path, device: torch.device | str, dtype: torch.dtype | None, field: str
) -> None:
    """Give a model on the meta device its weights, each read into memory once."""
    stored = read_headers(path, field)
    sources = _sources(model, stored, path)
    state: dict[str, Tensor] = {}
    with ExitStack() as stack:
        files_used = {one.path for one in stored.values()}
        opened = {file: stack.enter_context(open_weights(file)) for file in files_used}
        for ours, theirs in sources.items():
            try:
                tensor = opened[stored[theirs].path].get_tensor(theirs)
            except SafetensorError as error:
                raise CorruptError(str(error), doing="reading", subject=str(stored[theirs].path)) from error
            state[ours] = tensor.to(device, dtype, copy=True)  # a copy: the file may be replaced
    model.load_state_dict(state, assign=True)
    model.tie()


def _sources(model: MTPModel, stored: Mapping[str, Stored], path: Path) -> dict[str, str]:
    """For each name of the model the name in the files; shapes, types and completeness are checked."""
    config = model.config
    sources = {ours: _their_name(ours, config, stored) for ours in model.state_dict()}
    expected = {*sources.values(), "lm_head.weight"}
    for name in stored:
        if name not in expected and not name.startswith(EXTRA) and not name.endswith(_IGNORED):
            hint = "config.json must describe all weights, and only a causal Llama is supported"
            raise SettingsError("the model has no such weight", subject=f"{path} {name}", hint=hint)
    _require_whole_heads(stored, path)
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


def _their_name(ours: str, config: ModelConfig, stored: Mapping[str, Stored]) -> str:
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


def _require_whole_heads(stored: Mapping[str, Stored], path: Path) -> None:
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
            write_weights(_named_weights(model, dtype), staged, shard_size_bytes)
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
    """The weights under the names that files have; of a tied pair the embedding alone, no critic's."""
    weights = {}
    for ours, weight in model.state_dict().items():
        if ours.startswith("value_head.") or (model.config.tie_embeddings and ours == "lm_head.weight"):
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
