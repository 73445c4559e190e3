"""The tensors of a checkpoint on disk: whole, or any region of one, whichever ranks wrote it.

Each safetensors file says where its tensors begin in those they are parts of. A reader with another number of
ranks takes from each file what lies in its own region, so no rank holds more than its share.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from uploader import below
from uploader.errors import CorruptError

Box: TypeAlias = tuple[tuple[int, int], ...]
"""For each dimension where a region begins and ends."""


@dataclass(frozen=True)
class _Part:
    """A part of a tensor, in one file."""

    file: Any
    path: Path
    box: Box


class StoredTensors(Mapping[str, Tensor]):
    """Tensors by name, read when they are asked for. The files are held open, by their descriptors.

    Raises:
        CorruptError: a file is not what its name says, or parts of a tensor are missing.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self._directory = directory
        self._parts: dict[str, list[_Part]] = {}
        for name in names:
            with _corrupt_if_invalid(directory / name):
                self._add(name)
        self._shapes = {name: self._shape_of(name) for name in self._parts}

    def _add(self, name: str) -> None:
        # By its descriptor: whatever is put under that name now is not what is read. Sizes in the header are
        # compared with the file's, by the library, before a tensor takes memory.
        with below.opened_below(self._directory, name) as descriptor:
            file: Any = safe_open(f"/dev/fd/{descriptor}", framework="pt")
        sharding = json.loads((file.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
        for key in file.keys():  # noqa: SIM118  (no mapping)
            shape = file.get_slice(key).get_shape()
            offsets = sharding.get(key, {}).get("saved_offsets", [0] * len(shape))
            box = tuple((int(at), int(at) + size) for at, size in zip(offsets, shape, strict=True))
            self._parts.setdefault(key, []).append(_Part(file, self._directory / name, box))

    def _shape_of(self, name: str) -> tuple[int, ...]:
        """Of the whole. A part that is missing in the middle would leave old numbers in its place."""
        boxes = sorted(part.box for part in self._parts[name])
        shape = tuple(max(end for _, end in dimension) for dimension in zip(*boxes, strict=False))
        dimensions = {len(box) for box in boxes}
        if (
            len(dimensions) > 1
            or sum(map(_volume, boxes)) != math.prod(shape)
            or any(_common(*pair) is not None for pair in pairwise(boxes))
        ):
            problem = "its parts do not make a whole"
            raise CorruptError(problem, doing="loading", subject=f"{self._directory}: tensor {name!r}")
        return shape

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, name: str) -> Tensor:
        return self.region(name, tuple((0, length) for length in self._shapes[name]))

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor, whatever parts it was saved in."""
        return self._shapes[name]

    def region(self, name: str, wanted: Box) -> Tensor:
        """A region of a tensor.

        Raises:
            KeyError: there is no such tensor.
        """
        found: Tensor | None = None
        for part in self._parts[name]:
            with _corrupt_if_invalid(part.path):
                if part.box == wanted:
                    return part.file.get_tensor(name)  # type: ignore[no-any-return]
                common = _common(part.box, wanted)
                if found is None:
                    shape = [end - start for start, end in wanted]
                    found = torch.empty(shape, dtype=part.file.get_slice(name)[_nothing(part.box)].dtype)
                if common is not None:
                    found[_within(common, wanted)] = part.file.get_slice(name)[_within(common, part.box)]
        if found is None:
            raise KeyError(name)
        return found


def _volume(box: Box) -> int:
    return math.prod(end - start for start, end in box)


def _common(one: Box, other: Box) -> Box | None:
    """Where two regions overlap; None where they don't."""
    both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(one, other, strict=True))
    return both if all(start < end for start, end in both) else None


def _within(box: Box, outer: Box) -> tuple[slice, ...]:
    """A region as indices into a larger one."""
    return tuple(
        slice(start - begin, end - begin) for (start, end), (begin, _) in zip(box, outer, strict=True)
    )


def _nothing(box: Box) -> tuple[slice, ...]:
    """An index that reads no element, but tells the type."""
    return (slice(0, 0),) * len(box)


@contextmanager
def _corrupt_if_invalid(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptError(str(error), doing="loading", subject=str(path)) from error
