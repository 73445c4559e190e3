"""A model on disk that training reads and never changes: a step of a run, or a Hugging Face directory."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uploader import below, checksum, files, layout
from uploader.errors import CorruptError, SettingsError
from uploader.record import NodeRecord, decode
from uploader.restore import check
from wmtp.checkpoint.load import Loaded, read_checkpoint
from wmtp.checkpoint.state import Tree, unflatten
from wmtp.model.hf_config import CONFIG
from wmtp.model.hf_io import load_llama
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel

CRITIC = "value_head."
"""Begins the names of a critic's weights: they are no part of the language model."""


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A frozen language model.

    Attributes:
        fingerprint: hexadecimal; equal for equal files, whatever directory they lie in.
    """

    model: MTPModel
    fingerprint: str

    def logits(self, ids: Tensor) -> Tensor:
        """Next-token logits [B, S, V] of token ids [B, S]."""
        return self.model.head(0, self.model.trunk(ids))


def open_pretrained(path: Path, *, field: str, device: torch.device | str = "cpu") -> Pretrained:
    """Read and verify a model, in float32.

    Args:
        path: ``step_N/`` of a run, or a directory with ``config.json`` and safetensors.
        field: the setting that names it, for messages.

    Raises:
        SettingsError: there is no model of either kind.
        CorruptError: its files are not what was written.
    """
    if (path / layout.node_record(0)).exists():
        return _open_step(path, device)
    if (path / CONFIG).exists():
        model = load_llama(path, device=device, dtype=torch.float32, field=field).decoder
        return _frozen(model, fingerprint_of(path))
    steps = [one.name for one in path.glob("*") if (one / layout.node_record(0)).exists()]
    newest = max(steps, key=lambda name: layout.parse_step(name) or 0, default=None)
    problem = f"there is no model in {path}" if path.is_dir() else f"there is no directory {path}"
    hint = f"did you mean {path / newest}?" if newest else "name step_N/ of a run or a Hugging Face directory"
    raise SettingsError(problem, subject=field, hint=hint)


def vocabulary_of(directory: Path) -> str | None:
    """The vocabulary (``Tokenizer.vocabulary``) a step's model was trained with; None where nothing tells.

    Raises:
        CorruptError: what the step says of itself can't be read.
    """
    path = directory / layout.state_file(0)
    try:
        about = json.loads(below.read_small(path))["about"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CorruptError(f"it is damaged: {error}", doing="reading", subject=str(path)) from error
    found = about.get("vocabulary") if isinstance(about, dict) else None
    return found if isinstance(found, str) else None


def _frozen(model: MTPModel, fingerprint: str) -> Pretrained:
    return Pretrained(model.eval().requires_grad_(False), fingerprint)


def _open_step(path: Path, device: torch.device | str) -> Pretrained:
    """The model of a checkpoint; of its other state nothing is read. It is not pruned meanwhile."""
    record_path = path / layout.node_record(0)
    with files.disk_errors("reading", path), files.held_for_reading(path):
        record = decode(NodeRecord, below.read_small(record_path), subject=str(record_path))
        shards = [one for one in record.files if one.path.startswith("model-")]
        wanted = [*shards, *(one for one in record.files if one.path == layout.state_file(0))]
        check(path, wanted)
        loaded = read_checkpoint(path, record.model_copy(update={"files": wanted}))
    model = model_of(loaded, path).to(device)
    return _frozen(model, _digest((one.path, one.crc64nvme) for one in shards))


def model_of(loaded: Loaded, path: Path, *, averaged: bool = False) -> MTPModel:
    """The model as it was saved, built from what its checkpoint says about itself.

    Args:
        averaged: with the averages of its weights in their place.

    Raises:
        SettingsError: there are no averages.
        CorruptError: it is no model of this program.
    """
    names = {name: ref for name, ref in loaded.tree["model"].items() if not name.startswith(CRITIC)}
    if averaged:
        names = _averages(names, loaded, path)
    weights = unflatten(names, loaded.tensors)
    try:
        with torch.device("meta"):
            model = MTPModel(ModelConfig.from_tree(loaded.tree["about"]["model"]))
        model.load_state_dict(weights, assign=True)
    except (KeyError, TypeError, RuntimeError) as error:
        problem = f"it holds no model of this program: {error}"
        raise CorruptError(problem, doing="loading", subject=str(path)) from error
    model.tie()
    return model


def _averages(names: Tree, loaded: Loaded, path: Path) -> Tree:
    """The averages in place of the weights of those names; a tied unembedding follows its embedding."""
    match loaded.tree["extra"].get("ema"):
        case {"weights": dict(saved)} if saved:
            if (names.keys() ^ saved.keys()) - {"lm_head.weight"}:
                problem = "its averaged weights are not those of the model"
                raise CorruptError(problem, doing="opening", subject=str(path))
            return {**names, **saved}
    hint = "train with optim.ema_decay, or leave out --ema"
    raise SettingsError("it holds no averaged weights", doing="opening", subject=str(path), hint=hint)


def fingerprint_of(path: Path) -> str:
    """Of a Hugging Face directory: its config and its weights."""
    parts = [path / CONFIG, *sorted(path.glob("*.safetensors"))]
    with files.disk_errors("reading", path):
        return _digest((part.name, _checksum(part)) for part in parts)


def _checksum(path: Path) -> str:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(checksum.BLOCK_SIZE_BYTES):
            crc = checksum.crc64nvme(block, crc)
    return checksum.encode(crc)


def _digest(parts: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()
