"""How much at once: properties of the pure decisions."""

import heapq

from hypothesis import given
from hypothesis import strategies as st

from uploader.checksum import BLOCK_SIZE_BYTES
from uploader.limits import (
    LARGEST_PART_BYTES,
    LATENCY_SHARE,
    MEBIBYTE,
    SMALL_BYTES,
    Bucket,
    PartsLimit,
    Pulse,
    chosen_part_size,
)

EVENTS = st.lists(st.tuples(st.booleans(), st.floats(0, 10)), max_size=200)


@given(cap=st.integers(1, 64), events=EVENTS)
def test_the_limit_stays_between_one_and_its_cap(cap: int, events: list[tuple[bool, float]]) -> None:
    limit, now_s, cut_at_s = PartsLimit(cap), 0.0, float("-inf")
    for good, passed_s in events:
        now_s, before = now_s + passed_s, limit.limit
        if good:
            limit.succeeded()
            assert before <= limit.limit <= before + 1
        else:
            limit.refused(now_s, settle_s=2.0)
            is_news = now_s >= cut_at_s + 2.0
            assert limit.limit == (max(1, before // 2) if is_news else before)
            cut_at_s = now_s if is_news else cut_at_s
        assert 1 <= limit.limit <= cap


def test_it_grows_by_one_for_each_window_up_to_where_it_was() -> None:
    limit = PartsLimit(8)
    limit.refused(0.0, 1.0)
    assert limit.limit == 4
    for window in (4, 5, 6, 7):
        for _ in range(window):
            assert limit.limit == window
            limit.succeeded()
    assert limit.limit == 8


def test_a_burst_of_refusals_is_one_piece_of_news() -> None:
    limit = PartsLimit(8)
    for _ in range(8):
        limit.refused(0.5, settle_s=1.0)
    assert limit.limit == 4
    limit.refused(1.5, settle_s=1.0)
    assert limit.limit == 2


SIZES = st.lists(st.integers(1, 4 * MEBIBYTE), min_size=1, max_size=60)


@given(rate=st.floats(64 * 1024, 1e9), senders=st.integers(1, 8), sizes=SIZES)
def test_whoever_sends_together_the_rate_holds_and_none_of_it_is_lost(
    rate: float, senders: int, sizes: list[int]
) -> None:
    """Each sender waits as it is told and asks again at once: over all the rate is kept, and used up."""
    bucket, released = Bucket(rate, 0.0), list[tuple[float, int]]()
    asking = [(0.0, one) for one in range(senders)]
    for size in sizes:
        now_s, one = heapq.heappop(asking)
        at_s = now_s + bucket.take(size, now_s)
        released.append((at_s, size))
        heapq.heappush(asking, (at_s, one))
    released.sort()
    sent = 0
    for at_s, size in released:
        assert sent <= rate * (at_s + Bucket.BURST_S) * (1 + 1e-9) + 1
        sent += size
    assert released[-1][0] <= sum(sizes) / rate * (1 + 1e-9)


@given(first=st.floats(1e5, 1e9), second=st.floats(1e5, 1e9))
def test_a_changed_rate_holds_for_what_is_owed_too(first: float, second: float) -> None:
    bucket = Bucket(first, 0.0)
    bucket.take(10 * MEBIBYTE, 0.0)
    bucket.set_rate(second, 0.0)
    assert abs(bucket.take(1, 0.0) - 10 * MEBIBYTE / second) < 1e-6 * 10 * MEBIBYTE / second
    bucket.set_rate(None, 1.0)
    assert bucket.take(10**12, 1.0) == 0.0


PARTS = st.tuples(
    st.integers(0, 5 * 1024**4), st.integers(5 * MEBIBYTE, 5 * 1024**3), st.integers(1, 256),
    st.floats(0, 60), st.floats(0, 1e11),
)  # fmt: skip


@given(PARTS)
def test_a_part_is_whole_blocks_and_never_smaller_than_wanted(
    case: tuple[int, int, int, float, float],
) -> None:
    size_bytes, wanted, at_once, latency_s, rate = case
    chosen = chosen_part_size(size_bytes, wanted, at_once, latency_s, rate)
    least = max(1, wanted // BLOCK_SIZE_BYTES) * BLOCK_SIZE_BYTES
    assert chosen % BLOCK_SIZE_BYTES == 0
    assert least <= chosen <= max(least, LARGEST_PART_BYTES)
    if chosen > least:
        assert chosen * at_once <= size_bytes  # no part in flight goes without
        assert chosen - BLOCK_SIZE_BYTES < latency_s * rate * (1 - LATENCY_SHARE) / LATENCY_SHARE


def test_latency_makes_parts_larger_where_the_file_has_room() -> None:
    at_20_ms = chosen_part_size(1024**4, 16 * MEBIBYTE, 8, 0.02, 100e6)
    assert at_20_ms == 5 * BLOCK_SIZE_BYTES  # 38 MB: 20 of 400 ms
    assert chosen_part_size(1024**4, 16 * MEBIBYTE, 8, 0.001, 100e6) == 16 * MEBIBYTE
    assert chosen_part_size(256 * MEBIBYTE, 16 * MEBIBYTE, 8, 0.02, 100e6) == 32 * MEBIBYTE
    assert chosen_part_size(1024**4, 16 * MEBIBYTE, 8, 10.0, 1e9) == LARGEST_PART_BYTES


def test_latency_is_that_of_small_requests_and_the_rate_is_without_it() -> None:
    pulse = Pulse()
    assert (pulse.latency_s, pulse.bytes_per_s) == (0.0, 0.0)
    for took_s in (0.3, 0.1, 0.2):
        pulse.sent(SMALL_BYTES, took_s)
    pulse.sent(10_000_000, 1.1)
    pulse.sent(20_000_000, 2.1)
    pulse.sent(30_000_000, 60.1)
    assert pulse.latency_s == 0.1
    assert abs(pulse.bytes_per_s - 1e7) < 1
    assert pulse.part_s == 60.1
