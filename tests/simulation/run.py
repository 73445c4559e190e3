"""Play seeds: one with its trace, a range on all cores, or each planted bug until it is found.

A long run goes on where it was stopped: what was played is in a file, with a digest of the code that was
played. Other code begins anew.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from traceback import format_exception

from .bugs import BUGS
from .story import play

HERE = Path(__file__).parents[2]
CODE = ("uploader", "wmtp/checkpoint", "tests/simulation")
CHUNK = 100
"""Seeds that a worker plays at once."""


def main() -> None:
    """``python -m tests.simulation``; ends with 1 where an invariant broke."""
    words = _parser().parse_args()
    logging.disable(logging.CRITICAL)
    if words.seed is not None:
        sys.exit(_one(words.seed, words.bug, trace=words.trace))
    if words.find_bugs:
        sys.exit(_find_bugs(words.find_bugs))
    sys.exit(_many(words.seeds, words.jobs, words.progress, words.report))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=main.__doc__)
    parser.add_argument("--seed", type=int, help="play this one")
    parser.add_argument("--trace", action="store_true", help="with --seed: print all that happens")
    parser.add_argument("--bug", choices=BUGS, help="with --seed: with this bug put into the code")
    parser.add_argument("--seeds", type=int, default=1000, help="play so many, from 0")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="on so many cores")
    parser.add_argument("--progress", type=Path, help="go on from this file, and keep it up to date")
    parser.add_argument("--report", type=Path, help="write the result there, as Markdown")
    parser.add_argument("--find-bugs", type=int, metavar="SEEDS", help="play each planted bug until found")
    return parser


def _one(seed: int, bug: str | None, *, trace: bool) -> int:
    played = play(seed, BUGS[bug]) if bug else play(seed)
    if trace:
        print("\n".join(played.lines()))
    if played.unexpected is not None:
        print("".join(format_exception(played.unexpected)))
    says, traces = played.broken or "everything holds", _digest(*played.lines())
    print(f"seed {seed}: {says}; {len(played.trace)} events, traces {traces}")
    return int(played.broken is not None)


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _find_bugs(seeds: int) -> int:
    """Play each bug until an invariant breaks; 1 where one is never found."""
    missed = 0
    for name, bug in BUGS.items():
        found = next((one for one in (play(seed, bug) for seed in range(seeds)) if one.broken), None)
        print(f"{name}: " + (f"seed {found.seed}: {found.broken}" if found else "not found"))
        missed += found is None
    return int(missed > 0)


@dataclass
class Result:
    """What was played so far.

    Attributes:
        code: digest of what was played.
        seeds: all from 0 to this one, without it.
        broken: by seed: what did not hold.
        traces: digest of all that happened: whoever plays these seeds again finds the same.
    """

    code: str
    seeds: int = 0
    seconds: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)
    traces: str = ""

    @classmethod
    def read(cls, path: Path | None) -> "Result":
        """The result to go on with: of this very code, else an empty one."""
        code = _digest_of_code()
        if path is not None and path.exists():
            found = cls(**json.loads(path.read_text()))
            if found.code == code:
                return found
            print(f"the code has changed since {path} was written: from the beginning")
        return cls(code)

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(asdict(self), indent=1))
        temporary.rename(path)


def _many(seeds: int, jobs: int, progress: Path | None, report: Path | None) -> int:
    result = Result.read(progress)
    began_s, before_s = perf_counter(), result.seconds
    for first, broken, traces in _played(range(result.seeds, seeds, CHUNK), seeds, jobs):
        result.broken |= broken
        result.traces = _digest(result.traces, traces)
        result.seeds = min(first + CHUNK, seeds)
        result.seconds = before_s + perf_counter() - began_s
        if progress is not None:
            result.write(progress)
        for seed, problem in broken.items():
            print(f"\nseed {seed}: {problem}\n  python -m tests.simulation --seed {seed} --trace")
        print(f"\r{result.seeds} seeds, {_pace(result)}, {len(result.broken)} broken", end="", flush=True)
    says = f"{len(result.broken)} broken" if result.broken else "everything holds"
    print(f"\n{result.seeds} seeds: {says}; traces {result.traces}")
    if report is not None:
        report.write_text(_report(result, jobs))
    return int(bool(result.broken))


Chunk = tuple[int, dict[str, str], str]
"""Its first seed, what broke, and the digest of its traces."""


def _played(firsts: range, end: int, jobs: int) -> Iterator[Chunk]:
    """All chunks, in their order."""
    chunks = [(first, min(first + CHUNK, end)) for first in firsts]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(_chunk, chunks)


def _chunk(bounds: tuple[int, int]) -> Chunk:
    broken, digests = {}, []
    for one in map(play, range(*bounds)):
        digests.append(_digest(*one.lines()))
        if one.broken is not None:
            broken[str(one.seed)] = one.broken
    return bounds[0], broken, _digest(*digests)


def _pace(result: Result) -> str:
    return f"{result.seeds / max(result.seconds, 0.001):.1f} seeds a second"


def _digest_of_code() -> str:
    digest = hashlib.sha256()
    for path in sorted(path for folder in CODE for path in (HERE / folder).rglob("*.py")):
        digest.update(path.relative_to(HERE).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _commit() -> str:
    try:
        words = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _report(result: Result, jobs: int) -> str:
    broken = "".join(f"- seed {seed}: {problem}\n" for seed, problem in result.broken.items())
    each_ms = 1000 * jobs * result.seconds / max(result.seeds, 1)
    return f"""# Simulation: the long run

`make simulate SEEDS={result.seeds}`, at commit `{_commit()}` (digest of the code that was played:
`{result.code}`).

| | |
| --- | --- |
| seeds | 0 to {result.seeds - 1} |
| broken | {len(result.broken)} |
| traces | `{result.traces}` |
| pace | {_pace(result)} on {jobs} processes, {each_ms:.0f} ms a seed |

{broken or "Every invariant held in every seed."}
"""
