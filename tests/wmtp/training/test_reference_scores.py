"""What a reference computes once and keeps: the same numbers bit for bit, whatever became of the file."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import DiskError
from wmtp.data.dataset import NO_TARGET, Batches, split
from wmtp.data.packed import PackedRecord, PackedTokens
from wmtp.model.llama import ModelConfig
from wmtp.model.mtp import MTPModel
from wmtp.model.pretrained import Pretrained
from wmtp.objectives.baseline import cross_entropy
from wmtp.training.reference_cache import ReferenceCache
from wmtp.training.reference_scores import ReferenceScores

TINY = ModelConfig(
    vocab_size=32, hidden_size=16, intermediate_size=24, attention_heads=2, kv_heads=1, heads=1
)


def windows(fingerprint: str = "f", *, length: int = 8, heads: int = 3, seed: int = 1) -> Batches:
    array = np.random.Generator(np.random.PCG64(0)).integers(0, 32, 100).astype(np.uint16)
    packed = PackedTokens(array, PackedRecord(fingerprint, "t", "<u2", 100, 100))
    return split(packed, sequence_length=length, heads=heads, seed=seed, held_out_fraction=0)[0]


def reference(name: str = "r", seed: int = 0) -> Pretrained:
    return Pretrained(MTPModel.from_settings(TINY, seed=seed).eval(), name)


class Counting:
    """A reference that counts the windows it reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read = 0
        logits = Pretrained.logits

        def counted(model: Pretrained, ids: torch.Tensor) -> torch.Tensor:
            self.read += len(ids)
            return logits(model, ids)

        monkeypatch.setattr(Pretrained, "logits", counted)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def scores(path: Path, data: Batches | None = None, model: Pretrained | None = None) -> ReferenceScores:
    return ReferenceScores.open(model or reference(), data or windows(), path, autocast_dtype=None)


def test_they_are_the_references_own_cross_entropies(tmp_path: Path) -> None:
    data, model = windows(), reference()
    batch = data.batch(0, 12)
    found = scores(tmp_path, data, model)(batch)
    with torch.no_grad():
        logits = model.logits(batch.text[:, :-1].clamp(min=0))
    for k in range(3):
        expected = cross_entropy(logits[:, k : k + 8], batch.labels[..., k])
        torch.testing.assert_close(found[..., k], expected)
    assert (found[batch.labels == NO_TARGET] == 0).all()


def test_each_window_is_read_once_by_all_runs_and_in_any_order(tmp_path: Path, counting: Counting) -> None:
    data = windows()
    first = scores(tmp_path, data)(data.batch(0, 5))
    assert counting.read == 5
    assert torch.equal(scores(tmp_path, data)(data.batch(0, 5)), first)
    assert counting.read == 5
    other_order = windows(seed=9)
    for position in range(len(data)):
        scores(tmp_path, other_order)(other_order.batch(position, 1))
    assert counting.read == len(data)


def test_other_data_lengths_heads_and_references_have_their_own_file(tmp_path: Path) -> None:
    scores(tmp_path)
    scores(tmp_path, windows("other"))
    scores(tmp_path, windows(length=9))
    scores(tmp_path, windows(heads=2))
    scores(tmp_path, model=reference("another"))
    ReferenceScores.open(reference(), windows(), tmp_path, autocast_dtype=torch.bfloat16)
    assert len(list(tmp_path.iterdir())) == 6
    scores(tmp_path, windows(seed=9))
    assert len(list(tmp_path.iterdir())) == 6


@pytest.mark.parametrize("damage", ["torn", "flipped", "cut", "gone"])
def test_a_damaged_file_is_computed_again(tmp_path: Path, counting: Counting, damage: str) -> None:
    data = windows()
    batch = data.batch(0, 4)
    first = scores(tmp_path, data)(batch)
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    again = scores(tmp_path, data)
    row_bytes, at = 4 * 10 + 4, int(batch.windows[1])
    match damage:
        case "torn":
            half = at * row_bytes + row_bytes // 2
            path.write_bytes(whole[:half] + bytes(row_bytes // 2) + whole[(at + 1) * row_bytes :])
        case "flipped":
            path.write_bytes(whole.replace(whole[at * row_bytes : at * row_bytes + 1], b"\xff"))
        case "cut":
            path.write_bytes(whole[: at * row_bytes])
        case "gone":
            path.unlink()
    assert torch.equal(again(batch), first)
    assert counting.read > 4
    assert torch.equal(scores(tmp_path, data)(batch), first)


def test_a_file_of_another_size_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    cache = ReferenceCache(path, windows=3, length=2)
    assert path.stat().st_size == 3 * 12
    assert [cache.read(window) for window in range(3)] == [None] * 3
    assert [one.name for one in tmp_path.iterdir()] == ["x"]


def test_a_full_disk_is_told_once_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, os.strerror(28))

    data = windows()
    found = scores(tmp_path, data)
    monkeypatch.setattr(os, "pwrite", full)
    with caplog.at_level(logging.WARNING):
        assert found(data.batch(0, 4)).shape == (4, 8, 3)
    assert [record.message.count("No space left on device") for record in caplog.records] == [1]


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="file"):
        scores(tmp_path / "file" / "below")


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=3, max_size=3), st.integers(0, 4))
def test_a_row_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float], window: int
) -> None:
    cache = ReferenceCache(tmp_path_factory.mktemp("cache") / "x", windows=5, length=3)
    assert cache.read(window) is None
    cache.write(window, torch.tensor(numbers))
    found = cache.read(window)
    assert found is not None and torch.equal(found, torch.tensor(numbers))
    assert [cache.read(other) is None for other in range(5)] == [other != window for other in range(5)]
