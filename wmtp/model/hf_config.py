"""``config.json`` of a Hugging Face Llama directory, read into a ``ModelConfig`` and written from one. Pure.

What would change the logits and is not supported is refused by its name, before any weight is read; so is a
field nobody here knows. Nothing a directory holds is ever run.
"""

import json
from pathlib import Path
from typing import Any

import torch

from uploader.errors import SettingsError
from wmtp.model.llama import ModelConfig
from wmtp.model.rope import RopeScaling

CONFIG = "config.json"
HEADS = "n_future_tokens"
"""Our own field, as the models of arXiv 2404.19737 have it: heads, the next token's included."""

ARCHITECTURE = "LlamaForCausalLM"

_INTEGERS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_attention_heads": "attention_heads",
    "max_position_embeddings": "max_sequence_length",
}
_DEFAULTS = {"max_position_embeddings": 2048}

_SWITCHES = {
    "attention_bias": "attention_bias",
    "mlp_bias": "mlp_bias",
    "tie_word_embeddings": "tie_embeddings",
}
_READ = {
    *_INTEGERS, *_SWITCHES, "num_key_value_heads", "num_hidden_layers", "head_dim", "rms_norm_eps",
    "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings", "architectures",
    "model_type", "hidden_act", "attention_dropout", HEADS,
}  # fmt: skip
_NO_MATTER = {
    "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "dtype", "torch_dtype",
    "initializer_range", "is_llama_config", "name_or_path", "output_attentions", "output_hidden_states",
    "pretraining_tp", "return_dict", "tokenizer_class", "torchscript", "use_cache",
}  # fmt: skip
"""What changes no logit: token ids, how weights were stored or drawn, what a caller gets."""

_REFUSED = {
    "auto_map": "the model brings code of its own, which is never run",
    "quantization_config": "quantised weights are not supported",
    "partial_rotary_factor": "partial rotary embedding is not supported",
}


def read_config(directory: Path, *, field: str = "model") -> ModelConfig:
    """The model of a directory as its ``config.json`` tells; no weight is read.

    ``num_hidden_layers`` layers are a trunk and the last one, which is head 0; other heads are told by
    ``n_future_tokens``, one head without it.

    Args:
        field: the setting that named the directory, for messages.

    Raises:
        SettingsError: no such file, no Llama, or something in it is not supported; names the field.
    """
    path = directory / CONFIG
    return parse_config(read_json(path, field), str(path))


def read_json(path: Path, field: str) -> dict[str, Any]:
    """A JSON object of a model's directory.

    Raises:
        SettingsError: the file is not there or is none.
    """
    try:
        tree = json.loads(path.read_bytes())
    except OSError as error:
        hint = f"{field} must be a Hugging Face directory: config.json, *.safetensors, tokenizer.json"
        problem = error.strerror or str(error)
        raise SettingsError(problem, doing="reading", subject=str(path), hint=hint) from error
    except ValueError as error:
        raise SettingsError(f"it is not JSON: {error}", doing="reading", subject=str(path)) from error
    if not isinstance(tree, dict):
        raise SettingsError("it is no JSON object", doing="reading", subject=str(path))
    return tree


def parse_config(tree: dict[str, Any], subject: str) -> ModelConfig:
    """As ``read_config``, from what the file says.

    Args:
        subject: the file, in front of each field's name in messages.
    """
    tree = {key: value for key, value in tree.items() if value is not None}
    _refuse_unsupported(tree, subject)
    values: dict[str, Any] = {}
    for theirs, ours in _INTEGERS.items():
        values[ours] = _integer(tree.get(theirs, _DEFAULTS.get(theirs)), f"{subject} {theirs}")
    for theirs, ours in _SWITCHES.items():
        values[ours] = _switch(tree.get(theirs, False), f"{subject} {theirs}")
    layers = _integer(tree.get("num_hidden_layers"), f"{subject} num_hidden_layers")
    kv_heads = tree.get("num_key_value_heads", values["attention_heads"])
    head_dim = _integer(tree["head_dim"], f"{subject} head_dim") if "head_dim" in tree else None
    if head_dim is not None and head_dim * values["attention_heads"] == values["hidden_size"]:
        head_dim = None  # as it would be, were it not written
    theta, scaling = _rope(tree, values["max_sequence_length"], subject)
    try:
        return ModelConfig(
            **values,
            trunk_layers=layers - 1,
            heads=_integer(tree.get(HEADS, 1), f"{subject} {HEADS}"),
            kv_heads=_integer(kv_heads, f"{subject} num_key_value_heads"),
            head_dim=head_dim,
            norm_eps=_number(tree.get("rms_norm_eps", 1e-6), f"{subject} rms_norm_eps"),
            rope_theta=theta,
            rope=scaling,
        )
    except SettingsError as error:
        raise SettingsError(error.problem, subject=f"{subject} {error.subject}", hint=error.hint) from None


def _refuse_unsupported(tree: dict[str, Any], subject: str) -> None:
    wanted = {"model_type": ("llama",), "hidden_act": ("silu", "swish"), "attention_dropout": (0, 0.0)}
    if "model_type" not in tree:
        raise SettingsError("it is missing", subject=f"{subject} model_type", hint="only llama is supported")
    for key, values in wanted.items():
        if tree.get(key, values[0]) not in values:
            hint = f"only {values[0]} is supported"
            raise SettingsError(f"{tree[key]!r} is not supported", subject=f"{subject} {key}", hint=hint)
    architectures = tree.get("architectures", [ARCHITECTURE])
    if architectures != [ARCHITECTURE]:
        hint = f"only {ARCHITECTURE} is supported"
        raise SettingsError(
            f"{architectures!r} is not supported", subject=f"{subject} architectures", hint=hint
        )
    for key, problem in _REFUSED.items():
        if tree.get(key):
            raise SettingsError(problem, subject=f"{subject} {key}", hint="use a plain Llama model")
    for key in sorted({*tree} - _READ - _NO_MATTER - {*_REFUSED}):
        if tree[key] and not key.startswith(("_", "transformers", "unsloth")):
            hint = "if it changes no logits, take it out of the file"
            raise SettingsError("this field is not known here", subject=f"{subject} {key}", hint=hint)


def _rope(tree: dict[str, Any], max_length: int, subject: str) -> tuple[float, RopeScaling]:
    """Base and scaling, as ``transformers`` 5 writes them (one mapping) or as 4 did (two fields)."""
    key = "rope_parameters" if "rope_parameters" in tree else "rope_scaling"
    written = tree.get(key, {})
    if not isinstance(written, dict):
        raise SettingsError(f"{written!r} is no mapping", subject=f"{subject} {key}")
    written = dict(written)
    scaled = written.get("rope_type", written.get("type")) in ("llama3", "yarn")
    theta = written.pop("rope_theta", None) or tree.get("rope_theta", 10_000.0)
    if scaled and "original_max_position_embeddings" in tree:
        written["original_max_position_embeddings"] = tree["original_max_position_embeddings"]
    scaling = RopeScaling.parse(written, max_position_embeddings=max_length, field=f"{subject} {key}")
    return _number(theta, f"{subject} rope_theta"), scaling


def _integer(value: object, subject: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        problem = "it is missing" if value is None else f"{value!r} is no positive whole number"
        raise SettingsError(problem, subject=subject)
    return value


def _number(value: object, subject: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise SettingsError(f"{value!r} is no number above 0", subject=subject)
    return float(value)


def _switch(value: object, subject: str) -> bool:
    if not isinstance(value, bool):
        raise SettingsError(f"{value!r} is neither true nor false", subject=subject)
    return value


def format_config(config: ModelConfig, dtype: torch.dtype, special: dict[str, int]) -> dict[str, Any]:
    """The ``config.json`` of a model, in the fields that ``transformers`` 4 and 5 both read.

    Args:
        special: ids of special tokens: ``bos_token_id`` and so on.
    """
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        **{theirs: getattr(config, ours) for theirs, ours in (_INTEGERS | _SWITCHES).items()},
        "num_hidden_layers": config.trunk_layers + 1,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": config.rope.as_written(),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **special,
        HEADS: config.heads,
    }
