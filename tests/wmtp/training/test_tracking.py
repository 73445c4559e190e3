"""Metrics on disk have each step once, whatever was killed when."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uploader.errors import CorruptError, DiskError
from wmtp.training.tracking import Entry, Metric, MetricsLog


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def logged(path: Path, *, resume_step: int = 0, until: int = 0) -> Path:
    log = MetricsLog(path, resume_step=resume_step)
    for step in range(resume_step + 1, until + 1):
        log.log(step, {"loss": 1.0 / step})
    log.close()
    return path


def test_a_line_is_in_the_file_once_it_is_logged(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "new" / "metrics.jsonl", resume_step=0)
    log.log(7, {"loss": 2.5, "heads": [1.0, 1.5], "epoch": 0, "note": "é"})
    line = json.loads((tmp_path / "new" / "metrics.jsonl").read_text())
    assert line == {"step": 7, "loss": 2.5, "heads": [1.0, 1.5], "epoch": 0, "note": "é"}
    log.close()


@given(done=st.integers(0, 12), resume_step=st.integers(0, 15), torn=st.integers(0, 12))
def test_a_resumed_run_has_every_step_once(
    tmp_path_factory: pytest.TempPathFactory, done: int, resume_step: int, torn: int
) -> None:
    path = logged(tmp_path_factory.mktemp("run") / "metrics.jsonl", until=done)
    with path.open("ab") as file:
        file.write(b'{"step": 13, "l'[:torn])
    logged(path, resume_step=resume_step, until=15)
    assert steps(path) == [*range(1, min(done, resume_step) + 1), *range(resume_step + 1, 16)]
    assert [name.name for name in path.parent.iterdir()] == ["metrics.jsonl"]


def test_numbers_that_json_lacks_become_null(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl", resume_step=0)
    log.log(1, {"loss": float("nan"), "heads": [1.0, float("inf")]})
    log.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"step": 1, "loss": None, "heads": [1.0, None]}


@pytest.mark.parametrize("line", [b"{}", b"[1]", b"x", b'{"step": null}'])
def test_a_damaged_line_is_named_and_nothing_is_cut(tmp_path: Path, line: bytes) -> None:
    path = logged(tmp_path / "metrics.jsonl", until=2)
    path.write_bytes(path.read_bytes() + line + b"\n")
    before = path.read_bytes()
    with pytest.raises(CorruptError, match=r"reading .*metrics\.jsonl:3: not a JSON object with a step"):
        MetricsLog(path, resume_step=1)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(DiskError, match=r"writing metrics to .*metrics\.jsonl"):
        MetricsLog(tmp_path / "metrics.jsonl", resume_step=0)


def test_numbers_have_names_of_their_own_for_trackers_that_know_no_lists() -> None:
    metrics: dict[str, Metric] = {
        "loss": 1.5, "heads": [1.0, 2.0], "held_out": [3.0, 4.0], "kept": 7, "why": "text", "none": None,
    }  # fmt: skip
    assert dict(Entry(1, metrics, 0.0).scalars()) == {
        "loss": 1.5, "head0": 1.0, "head1": 2.0, "held_out/head0": 3.0, "held_out/head1": 4.0, "kept": 7.0,
    }  # fmt: skip
