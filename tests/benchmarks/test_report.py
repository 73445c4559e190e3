"""What the figures mean: worked examples by hand."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report


def block(steps_s: list[float], *, saves: bool = False, blocked_s: float = 0.0, cpu_s: float = 0.0) -> Any:
    time = {"user_s": 0.01, "system_s": 0.002, "queued_s": 0.003, "faults": 7}
    return {
        "saves": saves,
        "steps_s": steps_s,
        "times": [time] * len(steps_s),
        "blocked_s": blocked_s,
        "cpu_s": cpu_s,
        "began_s": 0.0,
    }


def window(name: str, blocks: list[Any], **more: Any) -> Any:
    first = block([1.0], saves=True, blocked_s=0.5)
    return {
        "contender": name,
        "size_bytes": 100_000_000,
        "first": first,
        "blocks": blocks,
        "local_ms": [],
        "copy_ms": [],
        **more,
    }


BLOCKS = [
    block([0.1, 0.1], cpu_s=0.2),
    block([0.4, 0.2, 0.1], saves=True, blocked_s=0.3, cpu_s=1.3),
    block([0.1, 0.1, 0.1], cpu_s=0.3),
]


def test_lost_time_is_what_the_block_took_beyond_as_many_plain_steps() -> None:
    assert report.lost_s(BLOCKS) == pytest.approx([0.7 - 3 * 0.1])
    assert report.cpu_s(BLOCKS) == pytest.approx([1.3 - 3 * 0.1])


def test_a_drift_that_is_steady_costs_nothing() -> None:
    drifting = [block([0.1]), block([0.2], saves=True), block([0.3])]
    assert report.lost_s(drifting) == pytest.approx([0.0])


def test_a_row_counts_call_and_fence_and_memory_beyond_none() -> None:
    windows = [
        window("none", BLOCKS, peak_bytes=400_000_000),
        window("one", BLOCKS, peak_bytes=500_000_000, uploader_bytes=50_000_000),
    ]
    none, one = report.rows(windows)
    assert (none["extra_bytes"], one["extra_bytes"]) == (0, 100_000_000)
    assert one["blocked_p50_ms"] == pytest.approx(300)
    assert one["first_blocked_ms"] == pytest.approx(500)
    assert one["step_worst_ms"] == pytest.approx(400)
    assert "1.00 + 50 MB" in report.table([none, one])


def test_the_table_says_max_where_there_are_too_few_saves_for_a_percentile() -> None:
    few, many = report.rows([window("few", BLOCKS)]), report.rows([window("many", BLOCKS)] * 100)
    assert "blocked max ms" in report.table(few)
    assert "blocked p99 ms" in report.table(many)


def test_the_remarks_say_where_the_slowest_step_went_and_what_no_overlap_hides() -> None:
    slow, blocked = report.remarks(report.rows([window("one", BLOCKS, copy_ms=[150.0])]))
    assert slow == (
        "one: the slowest step with a save: 400 ms, of it 10 computing, 2 in the kernel (7 page faults), "
        "3 waiting for a core"
    )
    assert blocked == "one: the copy takes 150 ms, a step 100, so 50 ms can't be hidden; it blocked 300"


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_a_value_that_enough_do_not_exceed(values: list[float], q: float) -> None:
    found = report.quantile(values, q)
    assert found in values
    assert sum(one <= found for one in values) >= q * len(values) - 1e-6
