"""What ranks say to each other, and who is late."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import RankLate
from wmtp.ranks import Ranks


def together(world_size: int, act: Callable[[Ranks], Any], *, timeout_s: float = 60.0) -> list[Any]:
    """Let each rank act, on a thread of its own; what each got, or the error it met."""
    store = dist.HashStore()

    def one(rank: int) -> Any:
        try:
            return act(Ranks(rank, world_size, store=store, timeout_s=timeout_s))
        except RankLate as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(one, range(world_size)))


def test_one_alone_agrees_with_itself() -> None:
    alone, numbers = Ranks(), torch.arange(3.0)
    assert (alone.from_first("said"), alone.from_all("said")) == ("said", ["said"])
    assert alone.sum(numbers) is numbers
    assert alone.gather(numbers, 3) is numbers
    assert torch.equal(alone.part(numbers), numbers)


def test_what_rank_0_says_is_what_all_hear_and_each_word_once() -> None:
    def act(ranks: Ranks) -> list[Any]:
        return [ranks.from_first({"word": number, "from": ranks.rank}) for number in range(3)]

    assert together(3, act) == [[{"word": number, "from": 0} for number in range(3)]] * 3


def test_the_last_word_is_said_when_all_have_heard_it() -> None:
    heard: list[int] = []

    def act(ranks: Ranks) -> Any:
        if ranks.rank:
            said = ranks.from_first()
            heard.append(ranks.rank)
            ranks.acknowledge()
            return said
        ranks.last_word("bye")
        return sorted(heard)

    assert together(3, act) == [[1, 2], "bye", "bye"]


def test_what_each_says_comes_in_the_order_of_ranks() -> None:
    assert together(3, lambda ranks: ranks.from_all(ranks.rank * 10)) == [[0, 10, 20]] * 3


def test_one_that_says_nothing_is_named_to_all_of_the_others() -> None:
    heard = together(3, lambda ranks: None if ranks.rank == 2 else ranks.from_all(1), timeout_s=0.2)
    for error in heard[:2]:
        assert isinstance(error, RankLate)
        assert "rank 2 said nothing for 0 s" in str(error)
    assert heard[2] is None


def test_rank_0_that_says_nothing_is_named() -> None:
    _, error = together(2, lambda ranks: ranks.from_first() if ranks.rank else None, timeout_s=0.2)
    assert isinstance(error, RankLate)
    assert "rank 0 said nothing" in str(error)


@given(st.integers(0, 50), st.integers(1, 9))
def test_parts_in_the_order_of_ranks_are_the_whole(samples: int, world_size: int) -> None:
    whole = torch.arange(samples)
    parts = [Ranks(rank, world_size).part(whole) for rank in range(world_size)]
    assert torch.equal(torch.cat(parts), whole)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
