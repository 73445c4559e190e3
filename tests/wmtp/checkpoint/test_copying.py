"""Copies are ordered by file, and every file that is told of is whole."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wmtp.checkpoint import copying
from wmtp.checkpoint.copying import Copy, CopyPlan, Landing

Wanted = tuple[int, int, bool]
"""A tensor's file, length, and whether it is taken at once."""


class Checked(Landing):
    """Asks at each report whether what is reported is there."""

    def __init__(self, copies: list[Copy]) -> None:
        super().__init__()
        self.copies, self.reports = copies, list[int]()

    def reached(self, files: int) -> None:
        self.reports.append(files)
        for copy in self.copies:
            if copy.file < files:
                assert torch.equal(copy.target, copy.source), f"file {copy.file} of {files}"


def copies(wanted: list[Wanted]) -> list[Copy]:
    return [
        Copy(torch.full((length,), -1.0), torch.arange(float(length)), immediate, file)
        for file, length, immediate in wanted
    ]


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(1, 50), st.booleans()), max_size=20),
    st.integers(1, 400),
)
def test_a_file_is_whole_when_it_is_told_of(wanted: list[Wanted], batch_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "BATCH_BYTES", batch_bytes)
        all_of_them = copies(wanted)
        plan, landing = CopyPlan(all_of_them), Checked(all_of_them)
    for _ in range(2):  # a plan is used again
        plan.begin()
        assert all(torch.equal(one.target, one.source) for one in all_of_them if one.immediate)
        plan.finish(landing)
        assert all(torch.equal(one.target, one.source) for one in all_of_them)
        assert landing.reports == sorted(set(landing.reports))
        landing.reports.clear()
        for one in all_of_them:
            one.source.add_(1.0)


def test_large_files_are_told_of_one_by_one_and_small_ones_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "BATCH_BYTES", 40)
    landing = Checked([])
    CopyPlan(copies([(0, 10, False), (1, 10, False), (2, 2, False), (3, 2, False)])).finish(landing)
    assert landing.reports == [1, 2, 4]


def test_whoever_waits_is_let_go_by_the_end_whatever_it_was() -> None:
    landing = Landing()
    landing.reached(2)
    landing.wait(2)
    landing.end(RuntimeError("no such luck"))
    landing.wait(3)
    landing.wait()
    assert str(landing.failure) == "no such luck"
