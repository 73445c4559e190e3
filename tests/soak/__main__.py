"""``python -m tests.soak``; see the package."""

import argparse
import sys
import tempfile
from pathlib import Path
from random import Random

from .soak import Soak


def main() -> int:
    """1 where something was lost or left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=main.__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1, help="which kills and faults, as far as time allows")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="wmtp-soak-") as path:
        return Soak(Path(path), Random(words.seed)).run(60 * words.minutes)


if __name__ == "__main__":
    sys.exit(main())
