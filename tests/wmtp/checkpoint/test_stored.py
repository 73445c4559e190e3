"""Any region of a tensor, from whatever parts it was saved in."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from uploader.errors import CorruptError
from wmtp.checkpoint.stored import StoredTensors

Cut = tuple[int, ...]


def write(directory: Path, parts: list[tuple[Cut, Tensor]]) -> StoredTensors:
    """Each part of the tensor ``w`` in a file of its own."""
    names = []
    for number, (offsets, part) in enumerate(parts):
        sharding = {"w": {"saved_offsets": list(offsets)}}
        names.append(f"part{number}.safetensors")
        metadata = {"DCP_SHARDING_INFO": json.dumps(sharding)}
        save_file({"w": part.contiguous()}, directory / names[-1], metadata=metadata)
    return StoredTensors(directory, names)


@given(data=st.data())
def test_regions_of_a_tensor_cut_along_its_dimensions(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows, columns = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    whole = torch.arange(rows * columns, dtype=torch.float64).view(rows, columns)
    edges = [
        sorted({0, length, *data.draw(st.lists(st.integers(0, length), max_size=3))})
        for length in (rows, columns)
    ]
    parts = [
        ((top, left), whole[top:bottom, left:right])
        for top, bottom in zip(edges[0], edges[0][1:], strict=False)
        for left, right in zip(edges[1], edges[1][1:], strict=False)
    ]
    stored = write(tmp_path_factory.mktemp("parts"), data.draw(st.permutations(parts)))
    assert torch.equal(stored["w"], whole)
    assert stored.shape("w") == (rows, columns)
    top, left = data.draw(st.integers(0, rows)), data.draw(st.integers(0, columns))
    bottom, right = data.draw(st.integers(top, rows)), data.draw(st.integers(left, columns))
    found = stored.region("w", ((top, bottom), (left, right)))
    assert torch.equal(found, whole[top:bottom, left:right])
    assert found.dtype == torch.float64


def test_a_scalar_and_an_empty_tensor(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 2)}, tmp_path / "a.safetensors")
    stored = StoredTensors(tmp_path, ["a.safetensors"])
    assert stored["scalar"].item() == 3.0
    assert stored["empty"].shape == (0, 2)
    assert sorted(stored) == ["empty", "scalar"]
    with pytest.raises(KeyError):
        stored["other"]


@pytest.mark.parametrize(
    "parts",
    [
        [((2,), torch.ones(2))],  # the first is missing
        [((0,), torch.ones(2)), ((4,), torch.ones(2))],  # one in the middle
        [((0,), torch.ones(2)), ((0,), torch.ones(2)), ((4,), torch.ones(2))],  # and one is there twice
        [((-1,), torch.ones(2)), ((1,), torch.ones(2))],
        [((0,), torch.ones(2)), ((0, 2), torch.ones(1, 2))],
    ],
)
def test_parts_that_make_no_whole_are_refused(tmp_path: Path, parts: list[tuple[Cut, Tensor]]) -> None:
    with pytest.raises(CorruptError, match="do not make a whole"):
        write(tmp_path, parts)


@pytest.mark.parametrize(
    "info", ["[", "[]", '{"w": 1}', '{"w": {"saved_offsets": ["x"]}}', '{"w": {"saved_offsets": [1, 2]}}']
)
def test_a_header_that_makes_no_sense_is_named(tmp_path: Path, info: str) -> None:
    save_file({"w": torch.ones(2)}, tmp_path / "a.safetensors", metadata={"DCP_SHARDING_INFO": info})
    with pytest.raises(CorruptError, match=r"a\.safetensors"):
        StoredTensors(tmp_path, ["a.safetensors"])
