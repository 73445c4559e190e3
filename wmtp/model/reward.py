"""A reward model on disk: a Hugging Face ``LlamaForSequenceClassification`` with one score.

Its decoder is a Llama's; in place of the unembedding it has ``score``, one number for the text so far.
Source: ``transformers/models/llama/modeling_llama.py``.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from uploader.errors import CorruptError, SettingsError
from wmtp.model.hf_config import ARCHITECTURE, CONFIG, parse_config, read_json
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.pretrained import fingerprint_of

REWARDS = "LlamaForSequenceClassification"
_LABELS = ("id2label", "label2id", "num_labels", "problem_type")


class RewardModel(nn.Module):
    """Scores text at each position.

    Attributes:
        fingerprint: hexadecimal; of the files it was read from.
    """

    def __init__(self, config: ModelConfig, fingerprint: str) -> None:
        super().__init__()
        self.config, self.fingerprint = config, fingerprint
        self.decoder = MTPModel(config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """The score of the text up to each position: ids [B, S] to float32 [B, S]."""
        states = self.decoder.states(0, self.decoder.trunk(ids))
        return self.score(states).squeeze(-1).float()  # type: ignore[no-any-return]


def load_reward(path: Path, *, field: str, device: torch.device | str = "cpu") -> RewardModel:
    """Read a reward model, frozen, in float32.

    Args:
        field: the setting that names the directory, for messages.

    Raises:
        SettingsError: there is no reward model, or one that is not supported.
        CorruptError: a weight is missing, is too many, or has another shape than ``config.json`` says.
    """
    model = RewardModel(read_reward_config(path, field=field), fingerprint_of(path))
    weights = {_our_name(name, model.config): one.float() for name, one in _read(path, field).items()}
    weights["decoder.lm_head.weight"] = weights.get("decoder.embed_tokens.weight", torch.empty(0))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CorruptError(" ".join(str(error).split()), doing="reading", subject=str(path)) from error
    return model.to(device).eval().requires_grad_(False)


def read_reward_config(path: Path, *, field: str) -> ModelConfig:
    """The reward model's shape, from its ``config.json``.

    Raises:
        SettingsError: it has no score head, or several.
    """
    tree = read_json(path / CONFIG, field)
    subject = f"{path / CONFIG} architectures"
    if tree.get("architectures") != [REWARDS]:
        hint = "for rewards of a language model leave paths.models.rm unset and set paths.models.ref"
        problem = f"{tree.get('architectures')!r} is no reward model: that is a {REWARDS}"
        raise SettingsError(problem, doing=field, subject=subject, hint=hint)
    if len(tree.get("id2label", {0: ""})) != 1:
        hint = "name a reward model with num_labels=1"
        raise SettingsError("it has several scores", doing=field, subject=subject, hint=hint)
    plain = {key: value for key, value in tree.items() if key not in _LABELS}
    named = {"architectures": [ARCHITECTURE], "tie_word_embeddings": True}
    return parse_config(plain | named, str(path / CONFIG))


def _read(path: Path, field: str) -> dict[str, Tensor]:
    """All tensors of the directory's safetensors files."""
    found = sorted(path.glob("*.safetensors"))
    if not found:
        hint = "convert its weights: load it with transformers, then save_pretrained"
        raise SettingsError("there are no safetensors files", doing=field, subject=str(path), hint=hint)
    tensors: dict[str, Tensor] = {}
    for file in found:
        try:
            with safe_open(file, framework="pt") as opened:
                tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise CorruptError(str(error), doing="reading", subject=str(file)) from error
    return tensors


def _our_name(theirs: str, config: ModelConfig) -> str:
    """The decoder's last layer is head 0."""
    last = f"model.layers.{config.trunk_layers}."
    if theirs.startswith(last):
        return f"decoder.heads.0.{theirs.removeprefix(last)}"
    return f"decoder.{theirs.removeprefix('model.')}" if theirs.startswith("model.") else theirs
