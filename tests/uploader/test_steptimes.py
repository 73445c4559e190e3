"""The ring of step times: what is written is read, in order, and anything else is nothing."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uploader.layout import RunDirectory
from uploader.steptimes import ENTRIES, MAGIC, SIZE_BYTES, StepTimes, path_of, read_steps


@pytest.fixture
def path(directory: RunDirectory, tmp_path: Path) -> Path:
    return path_of(directory, 3, memory=tmp_path)


def test_each_run_and_rank_has_its_own_and_without_shared_memory_it_is_in_the_run(
    directory: RunDirectory, tmp_path: Path
) -> None:
    paths = {path_of(RunDirectory(tmp_path / name), rank) for name in "ab" for rank in (0, 1)}
    assert len(paths) == 4
    assert path_of(directory, 3, memory=tmp_path / "none") == directory.path / "steps-rank00003.ring"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(durations=st.lists(st.floats(0.001, 100), max_size=2 * ENTRIES + 5))
def test_the_latest_steps_are_read_in_order(path: Path, durations: list[float]) -> None:
    now_s = 0.0
    times = StepTimes(path, lambda: now_s)
    times.ended()
    for took_s in durations:
        now_s += took_s
        times.ended()
    steps = read_steps(path)
    assert path.stat().st_size == SIZE_BYTES
    times.close()
    assert not path.exists()
    assert [step.took_s for step in steps] == pytest.approx(durations[-ENTRIES:])
    assert [step.ended_s for step in steps] == sorted(step.ended_s for step in steps)


def test_a_new_start_begins_anew(path: Path) -> None:
    clock = iter(map(float, range(10)))
    for _ in range(2):
        times = StepTimes(path, lambda: next(clock))
        times.ended()
        times.ended()
    assert [step.began_s for step in read_steps(path)] == [2.0]


def test_what_is_no_ring_is_no_step(path: Path) -> None:
    assert read_steps(path) == []
    for data in (b"", MAGIC, b"x" * SIZE_BYTES, MAGIC.ljust(SIZE_BYTES - 1, b"\xff")):
        path.write_bytes(data)
        assert read_steps(path) == []
    path.write_bytes(MAGIC.ljust(SIZE_BYTES, b"\xff"))  # torn beyond recognition: NaN took so long
    assert read_steps(path) == []
