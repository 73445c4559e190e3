"""What a process of a test does first. Every one of them imports this: it needs next to nothing itself."""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def become(
    main: Callable[[], object], words: list[str], cwd: Path, env: Mapping[str, str], out: Path, err: Path
) -> None:
    """Become the command, as a shell would have started it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    sys.argv = ["wmtp", *words]
    main()
