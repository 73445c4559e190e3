"""Batches: labels look ahead, splits don't mix, and one integer says where training stands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import SettingsError
from wmtp.data.dataset import NO_TARGET, Batches, split
from wmtp.data.packed import PackedRecord, PackedTokens
from wmtp.ranks import cut

HEADS = 3


def packed_tokens(count: int) -> PackedTokens:
    """Token i is i, so that every id says where it comes from."""
    return PackedTokens(np.arange(count, dtype=np.uint16), PackedRecord("f", "t", "<u2", count, count))


def splits(count: int = 103, length: int = 5, seed: int = 1) -> tuple[Batches, Batches]:
    return split(packed_tokens(count), sequence_length=length, heads=HEADS, seed=seed, held_out_fraction=0.2)


def ids_of(batches: Batches, position: int, size: int) -> list[list[int]]:
    return batches.batch(position, size).ids.tolist()


def test_head_k_predicts_the_token_k_plus_one_ahead() -> None:
    batch = splits()[0].batch(0, 4)
    assert batch.ids.shape == (4, 5) and batch.labels.shape == (4, 5, HEADS)
    assert batch.ids.dtype == batch.labels.dtype == torch.int64
    for k in range(HEADS):
        labels = batch.labels[..., k]
        assert torch.equal(labels[labels != NO_TARGET], (batch.ids + k + 1)[labels != NO_TARGET])


def test_a_sample_holds_its_text_as_far_as_its_heads_look_prompts_included() -> None:
    packed = PackedTokens(
        np.arange(23, dtype=np.uint16), PackedRecord("f", "t", "<u2", 23, 23, 1), np.array([[4, 12]])
    )
    train, _ = split(packed, sequence_length=5, heads=HEADS, seed=1, held_out_fraction=0)
    batch = next(iter(train.in_order(9)))
    assert batch.windows.tolist() == [0, 1, 2, 3] and len(batch) == 4
    assert batch.text[0].tolist() == list(range(8)) and batch.text[3].tolist() == [
        *range(15, 20),
        NO_TARGET,
        NO_TARGET,
        NO_TARGET,
    ]
    assert torch.equal(batch.ids, batch.text[:, :5])
    assert batch.labels[0, 4].tolist() == [NO_TARGET] * 3 and batch.labels[1, 4].tolist() == [
        NO_TARGET
    ] * 2 + [12]


def test_the_number_of_a_window_says_what_it_holds_in_any_order() -> None:
    for seed in (1, 2):
        batch = splits(seed=seed)[0].batch(3, 20)
        assert (batch.windows * 5).tolist() == batch.ids[:, 0].tolist()
    assert splits(seed=1)[0].content == splits(seed=2)[0].content != splits(length=6)[0].content


def test_no_label_comes_from_beyond_the_split() -> None:
    train, held_out = splits()
    assert len(train) == 16 and len(held_out) == 4
    for batches, end in ((train, 80), (held_out, 103)):
        labels = torch.cat([batch.labels for batch in batches.in_order(3)])
        assert labels.max() == min(end, batches.first_token + len(batches) * 5 + HEADS) - 1
        assert labels[labels != NO_TARGET].min() == batches.first_token + 1
    last = next(iter(train.in_order(16))).labels[-1]
    assert last[-1].tolist() == [NO_TARGET] * HEADS
    assert last[-2].tolist() == [79, NO_TARGET, NO_TARGET]


def test_an_epoch_shows_every_window_once_and_the_next_in_another_order() -> None:
    train = splits()[0]
    epochs = [[ids[0] for ids in ids_of(train, epoch * 16, 16)] for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(0, 80, 5))
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [train.epoch(position) for position in (0, 15, 16, 40)] == [0, 0, 1, 2]


@given(position=st.integers(0, 100), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_samples_depend_on_the_position_alone(position: int, sizes: list[int]) -> None:
    train = splits()[0]
    whole = ids_of(train, position, sum(sizes))
    pieces, at = [], position
    for size in sizes:
        pieces += ids_of(train, at, size)
        at += size
    assert pieces == whole


@given(samples=st.integers(0, 60), parts=st.integers(1, 9))
def test_parts_are_the_whole_in_order_and_equal_but_for_one(samples: int, parts: int) -> None:
    bounds = cut(samples, parts)
    assert [one for start, end in bounds for one in range(start, end)] == list(range(samples))
    sizes = [end - start for start, end in bounds]
    assert len(sizes) == parts and max(sizes) - min(sizes) <= 1
    if samples % parts == 0:
        assert len(set(sizes)) == 1


@given(batch_size=st.integers(1, 9), accumulation=st.integers(1, 5), world_size=st.integers(1, 9))
def test_every_rank_has_a_sample_of_every_micro_batch_if_there_are_as_many_as_ranks(
    batch_size: int, accumulation: int, world_size: int
) -> None:
    shares = [end - start for start, end in cut(batch_size * accumulation, world_size)]
    is_empty = [start == end for share in shares for start, end in cut(share, accumulation)]
    assert any(is_empty) == (batch_size < world_size)


def test_a_part_of_a_batch_and_one_without_anything_to_predict() -> None:
    batch = splits()[0].batch(0, 4)
    part, blank = batch[1:3], batch.blank()
    assert len(part) == 2 and torch.equal(part.text, batch.text[1:3])
    assert torch.equal(part.labels, batch.labels[1:3]) and torch.equal(part.windows, batch.windows[1:3])
    assert len(blank) == 1 and torch.equal(blank.ids, batch.ids[:1])
    assert (blank.labels == NO_TARGET).all() and (batch.labels[0] != NO_TARGET).any()


def test_evaluation_may_take_windows_spread_over_the_split() -> None:
    held_out = splits()[1]
    assert [len(batch.ids) for batch in held_out.in_order(3)] == [3, 1]
    spread = list(held_out.in_order(8, max_samples=2))
    assert [ids[0] for ids in spread[0].ids.tolist()] == [80, 90]


def test_the_fingerprint_changes_with_everything_a_position_depends_on() -> None:
    variants = [splits(), splits(count=104), splits(length=6), splits(seed=2)]
    fingerprints = {batches.fingerprint for variant in variants for batches in variant}
    assert len(fingerprints) == 7  # one token more is held out: the windows to train on are the same
    assert splits()[0].fingerprint == splits()[0].fingerprint


def test_nothing_is_held_out_where_nothing_is_asked_for() -> None:
    train, held_out = split(packed_tokens(20), sequence_length=5, heads=HEADS, seed=1, held_out_fraction=0)
    assert (len(train), len(held_out)) == (4, 0)
    assert list(held_out.in_order(2)) == []
    assert [len(batch.ids) for batch in train.in_order(3)] == [3, 1]


def test_text_too_short_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"^data\.sequence_length: 9 tokens make 1 windows of 5"):
        splits(count=9)


def test_a_tokens_file_can_be_gathered_from_disk(tmp_path: Path) -> None:
    np.arange(50, dtype="<u4").tofile(tmp_path / "tokens")
    array = np.memmap(tmp_path / "tokens", dtype="<u4", mode="r")
    train, _ = split(
        PackedTokens(array, PackedRecord("f", "t", "<u4", 50, 50)), sequence_length=5, heads=1, seed=0
    )
    batch = train.batch(0, 2)
    assert torch.equal(batch.labels[:, :4, 0], batch.ids[:, 1:])
