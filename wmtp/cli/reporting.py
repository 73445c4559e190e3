"""What people see when something goes wrong: one line, and an exit code."""

import functools
import os
import shutil
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from uploader.errors import WmtpError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Print a ``WmtpError`` of the command as one line and exit with its code; 130 on Ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            try:
                return command(*args, **kwargs)
            finally:
                sys.stdout.flush()
        except WmtpError as error:
            show_error(error)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            print("wmtp: interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output is gone. What is left of it goes nowhere when Python exits.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None

    return run


def show_error(error: WmtpError) -> None:
    """Tell a person, on one line of the error output."""
    print(f"wmtp: error: {error}", file=sys.stderr)


def program_name() -> str:
    """How to call this program again: by its name where the shell finds it, else by its path."""
    found = shutil.which("wmtp")
    own = os.path.abspath(sys.argv[0])
    is_ours = os.path.basename(own) == "wmtp" and os.path.exists(own)  # else python -m, or a fork's name
    if not is_ours or (found is not None and os.path.samefile(found, own)):
        return "wmtp"
    return os.path.relpath(own)
