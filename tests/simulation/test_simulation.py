"""The simulation, in short: some seeds hold, each planted bug is found, and a seed is the same each time.

In processes of its own, for it replaces what everything else stands on, and cuts files into smaller blocks.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parents[2]
SEEDS, SEEDS_FOR_A_BUG = 100, 400


def simulate(*words: str, hash_seed: int = 0) -> str:
    """What ``python -m tests.simulation`` says; it has to end well."""
    env = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "tests.simulation", *words]
    ended = subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_whatever_happens_nothing_committed_is_lost() -> None:
    said = simulate("--seeds", str(SEEDS))
    assert f"{SEEDS} seeds: everything holds" in said


def test_each_planted_bug_is_found() -> None:
    """Without this nobody would know whether the judge sees anything."""
    lines = simulate("--find-bugs", str(SEEDS_FOR_A_BUG)).splitlines()
    found = {line.partition(":")[0]: re.search(r": seed (\d+): (.+)", line) for line in lines}
    assert all(found.values())
    problems = {bug: match[2] for bug, match in found.items() if match}
    assert problems.keys() == PROBLEMS.keys()
    assert all(re.search(PROBLEMS[bug], problem) for bug, problem in problems.items()), problems


PROBLEMS = {
    "marker_before_data": "checkpoint.json exists, but not",
    "prune_before_commit": "the only copy of step",
    "no_directory_fsync": "are lost on",
    "swap_without_reading_again": "took the index back|is lost|is listed, but|leads? to",
    "event_acknowledged_early": "is acknowledged before it is durable",
    "keys_used_twice": "are back, under keys of which a deletion may be on its way",
}
"""What each of them breaks."""


def test_a_seed_is_played_again_exactly() -> None:
    first, again = (simulate("--seeds", "12", hash_seed=one).splitlines()[-1] for one in (1, 2))
    assert first == again and "traces" in first


def test_a_trace_tells_the_story() -> None:
    said = simulate("--seed", "3", "--trace")
    assert "begins" in said and "put manifest.json" in said and "everything holds" in said
    assert "/dev/shm" not in said, "a trace is the same on every machine"  # noqa: S108


def test_a_long_run_goes_on_where_it_was(tmp_path: Path) -> None:
    progress, report = tmp_path / "progress.json", tmp_path / "report.md"
    words = ("--progress", str(progress), "--report", str(report))
    simulate("--seeds", "4", *words)
    begun = progress.read_text()
    assert '"seeds": 4' in begun
    simulate("--seeds", "4", *words)
    assert progress.read_text() == begun, "nothing is played twice"
    assert "| seeds | 0 to 3 |" in report.read_text()
