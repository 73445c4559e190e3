"""How tensors are laid out in safetensors files. Pure.

A file is the header's length (8 bytes, little-endian), the header (JSON), the tensors' bytes without gaps
(https://huggingface.co/docs/safetensors). The header also carries what PyTorch's own
``torch.distributed.checkpoint.HuggingFaceStorageReader`` needs to load and reshard the files.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from uploader.errors import WmtpError

AT_LEAST_FILES = 16
SMALL_BYTES = 8 * 1024**2

ALIGNMENT_BYTES = 64
"""Where the tensors begin in a file: torch's own alignment of an allocation."""

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's name, type and shape: all that its place in a file depends on.

    Attributes:
        offsets: where it begins in the tensor it is a part of, in each dimension; None: it is the whole.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offsets: tuple[int, ...] | None = None

    @property
    def size_bytes(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Shard:
    """One safetensors file.

    Attributes:
        header: the file's first bytes, up to where the tensors begin.
        tensors: each with the position of its first byte in the file.
        size_bytes: of the whole file.
    """

    file_name: str
    header: bytes
    tensors: tuple[tuple[TensorSpec, int], ...]
    size_bytes: int


def shard_limit(total_bytes: int, shard_size_bytes: int) -> int:
    """How large the files of a state may be: a large one is cut into 16 or more, so that uploads begin early.

    None is cut smaller than 8 MiB for that.
    """
    return min(shard_size_bytes, max(-(-total_bytes // AT_LEAST_FILES), SMALL_BYTES))


def plan_shards(
    specs: Iterable[TensorSpec],
    file_name: Callable[[int], str],
    shard_size_bytes: int,
    *,
    first: int = 1,
) -> list[Shard]:
    """Cut tensors into files that hold at most ``shard_size_bytes`` of them; a larger one has its own file.

    Larger types come first, so that every tensor is aligned. The first file's number is ``first``.

    Raises:
        WmtpError: safetensors has no word for a tensor's type.
    """
    specs = list(specs)
    for spec in specs:
        if spec.dtype not in DTYPES:
            hint = f"it can be one of: {', '.join(sorted(str(one) for one in DTYPES))}"
            raise WmtpError(f"{spec.dtype} can't be saved", subject=f"tensor {spec.name!r}", hint=hint)
    ordered = sorted(specs, key=lambda spec: (-spec.dtype.itemsize, spec.name))
    groups: list[list[TensorSpec]] = []
    filled = 0
    for spec in ordered:
        if not groups or filled + spec.size_bytes > shard_size_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(spec)
        filled += spec.size_bytes
    return [_shard(file_name(number), group) for number, group in enumerate(groups, first)]


def _shard(file_name: str, specs: Sequence[TensorSpec]) -> Shard:
    sharding = {spec.name: {"saved_offsets": spec.offsets or [0] * len(spec.shape)} for spec in specs}
    header: dict[str, object] = {
        "__metadata__": {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(sharding)}
    }
    end = 0
    ends = []
    for spec in specs:
        start, end = end, end + spec.size_bytes
        ends.append(start)
        header[spec.name] = {
            "dtype": DTYPES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT_BYTES)
    encoded = len(text).to_bytes(8, "little") + text
    tensors = tuple((spec, len(encoded) + start) for spec, start in zip(specs, ends, strict=True))
    return Shard(file_name, encoded, tensors, len(encoded) + end)
