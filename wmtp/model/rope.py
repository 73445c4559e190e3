"""Rotary frequencies, and the ways Llama models stretch them to longer texts. Pure.

Each kind computes what ``transformers`` computes, operation by operation in float32, so that the angles of
distant positions agree too. Sources: linear, arXiv 2306.15595; dynamic (NTK), YaRN, arXiv 2309.00071;
llama3, the reference code of Llama 3.1; ``transformers/modeling_rope_utils.py``.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from uploader.errors import SettingsError

_ORIGINAL = "original_max_position_embeddings"
KINDS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "default": (frozenset(), frozenset()),
    "linear": (frozenset({"factor"}), frozenset()),
    "dynamic": (frozenset({"factor"}), frozenset()),
    "llama3": (frozenset({"factor", "low_freq_factor", "high_freq_factor"}), frozenset({_ORIGINAL})),
    "yarn": (
        frozenset(),
        frozenset({
            "factor", _ORIGINAL, "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
            "truncate",
        }),
    ),
}  # fmt: skip
"""The keys each kind needs, and those it may have."""


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """How the frequencies are scaled; the names are those of a ``config.json``.

    Attributes:
        factor: how many times longer texts may be than those of pretraining.
        original_max_position_embeddings: length of the texts of pretraining; 0 where the kind needs none.
        attention_factor: of cosines and sines; None lets YaRN derive it from ``factor``.
    """

    kind: str = "default"
    factor: float = 1.0
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True

    @classmethod
    def parse(cls, written: dict[str, Any], *, max_position_embeddings: int, field: str) -> "RopeScaling":
        """Read ``rope_scaling`` or ``rope_parameters`` of a ``config.json``, without its ``rope_theta``.

        Raises:
            SettingsError: a kind or key we don't know, a key that is missing, or a value out of range.
        """
        tree = {key: value for key, value in written.items() if value is not None}
        kind = tree.pop("rope_type", tree.pop("type", "default"))
        tree.pop("type", None)
        if not isinstance(kind, str) or kind not in KINDS:
            raise SettingsError(
                f"{kind!r} is not supported",
                subject=f"{field}.rope_type",
                hint=f"there are: {', '.join(KINDS)}",
            )
        needed, allowed = KINDS[kind]
        for key in sorted({*tree} - needed - allowed):
            raise SettingsError(f"{kind} scaling has no such key", subject=f"{field}.{key}")
        for key in sorted(needed - {*tree}):
            raise SettingsError(f"{kind} scaling needs it", subject=f"{field}.{key}")
        if _ORIGINAL in allowed:
            tree.setdefault(_ORIGINAL, max_position_embeddings)
        for key, value in tree.items():
            _require_number(key, value, field)
        if kind == "yarn":
            tree.setdefault("factor", max_position_embeddings / tree[_ORIGINAL])
        scaling = cls(kind=kind, **tree)
        if kind == "llama3" and scaling.high_freq_factor <= scaling.low_freq_factor:
            problem = f"{scaling.high_freq_factor} is not above low_freq_factor {scaling.low_freq_factor}"
            raise SettingsError(problem, subject=f"{field}.high_freq_factor")
        return scaling

    def as_written(self) -> dict[str, Any] | None:
        """The value of ``rope_scaling`` in a ``config.json``; None for no scaling."""
        if self.kind == "default":
            return None
        needed, allowed = KINDS[self.kind]
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name in needed | allowed}
        return {"rope_type": self.kind, **{key: value for key, value in values.items() if value is not None}}


def _require_number(key: str, value: object, field: str) -> None:
    if key == "truncate":
        good = isinstance(value, bool)
    else:
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        good = math.isfinite(number) and number > 0 and (key != _ORIGINAL or number == int(number))
    if not good:
        raise SettingsError(f"{value!r} is not possible", subject=f"{field}.{key}")


def frequencies(
    scaling: RopeScaling,
    *,
    size: int,
    theta: float,
    length: int,
    max_length: int,
    device: torch.device,
) -> tuple[Tensor, float]:
    """Radians a position for each pair of channels, float32 [size/2], and the factor of cosines and sines.

    Args:
        size: channels of one attention head.
        length: of the text at hand; the dynamic kind depends on it where it is above ``max_length``.
        max_length: longest text the model was made for.
    """
    exponents = torch.arange(0, size, 2, dtype=torch.int64).to(device, torch.float32) / size
    if scaling.kind == "dynamic" and length > max_length:
        stretch = scaling.factor * length / max_length - (scaling.factor - 1)
        theta = theta * stretch ** (size / (size - 2))
    wavelike = theta**exponents
    match scaling.kind:
        case "linear":
            return 1.0 / wavelike / scaling.factor, 1.0
        case "llama3":
            return _llama3(scaling, 1.0 / wavelike), 1.0
        case "yarn":
            return _yarn(scaling, wavelike, size, theta), _yarn_attention(scaling)
    return 1.0 / wavelike, 1.0


def _llama3(scaling: RopeScaling, plain: Tensor) -> Tensor:
    """Long waves are slowed down, short ones kept, those between blended."""
    original, low, high = (
        scaling.original_max_position_embeddings,
        scaling.low_freq_factor,
        scaling.high_freq_factor,
    )
    lengths = 2 * math.pi / plain
    slowed = torch.where(lengths > original / low, plain / scaling.factor, plain)
    share = (original / lengths - low) / (high - low)
    blended = (1 - share) * slowed / scaling.factor + share * slowed
    between = (lengths >= original / high) & (lengths <= original / low)
    return torch.where(between, blended, slowed)


def _yarn(scaling: RopeScaling, wavelike: Tensor, size: int, theta: float) -> Tensor:
    """Channels that turn often are kept, those that turn seldom slowed down, those between blended."""

    def channel(turns: float) -> float:
        """The channel that turns so many times over a text of pretraining."""
        length = scaling.original_max_position_embeddings
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = channel(scaling.beta_fast), channel(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, size - 1)
    width = high - low if high != low else 0.001
    ramp = (torch.arange(size // 2, dtype=torch.float32, device=wavelike.device) - low) / width
    kept = 1 - ramp.clamp(0, 1)
    return 1.0 / (scaling.factor * wavelike) * (1 - kept) + 1.0 / wavelike * kept


def _yarn_attention(scaling: RopeScaling) -> float:
    """YaRN's temperature of attention, as a factor of cosines and sines."""

    def temperature(scale: float) -> float:
        return 0.1 * scale * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0

    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return temperature(scaling.mscale) / temperature(scaling.mscale_all_dim)
    return temperature(1.0)
