"""A model on disk that training reads and never changes: a step of a run, or a Hugging Face directory."""

import hashlib
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uploader import checksum, files, layout
from uploader.errors import CorruptError, SettingsError
from uploader.restore import check
from uploader.watch import read_step
from wmtp.checkpoint.load import Loaded, read_checkpoint
from wmtp.checkpoint.state import unflatten
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
    steps = [one.name for one in path.glob("step_*") if (one / layout.node_record(0)).exists()]
    newest = max(steps, key=lambda name: layout.parse_step(name) or 0, default=None)
    problem = f"there is no model in {path}" if path.is_dir() else f"there is no directory {path}"
    hint = f"did you mean {path / newest}?" if newest else "name step_N/ of a run or a Hugging Face directory"
    raise SettingsError(problem, subject=field, hint=hint)


def _frozen(model: MTPModel, fingerprint: str) -> Pretrained:
    return Pretrained(model.eval().requires_grad_(False), fingerprint)


def _open_step(path: Path, device: torch.device | str) -> Pretrained:
    """The model of a checkpoint; of its other state nothing is read. It is not pruned meanwhile."""
    with files.disk_errors("reading", path), files.held_for_reading(path):
        record = read_step(path).record
        shards = [one for one in record.files if one.path.startswith("model-")]
        wanted = [*shards, *(one for one in record.files if one.path == layout.state_file(0))]
        check(path, wanted)
        loaded = read_checkpoint(path, record.model_copy(update={"files": wanted}))
    model = model_of(loaded, path).to(device)
    return _frozen(model, _digest((one.path, one.crc64nvme) for one in shards))


def model_of(loaded: Loaded, path: Path) -> MTPModel:
    """The model as it was saved, built from what its checkpoint says about itself."""
    names = {name: ref for name, ref in loaded.tree["model"].items() if not name.startswith(CRITIC)}
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


def fingerprint_of(path: Path) -> str:
    """Of a Hugging Face directory: its config and its weights."""
    parts = [path / CONFIG, *sorted(path.glob("*.safetensors"))]
    with files.disk_errors("reading", path):
        return _digest((part.name, _checksum(part)) for part in parts)


def _checksum(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        crc = 0
        for start in range(0, len(data), checksum.BLOCK_SIZE_BYTES):
            crc = checksum.crc64nvme(data[start : start + checksum.BLOCK_SIZE_BYTES], crc)
        return checksum.encode(crc)


def _digest(parts: Iterable[tuple[str, str]]) -> str:
    return hashlib.sha256(repr(sorted(parts)).encode()).hexdigest()
