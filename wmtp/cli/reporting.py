"""What people see when something goes wrong: one line, and an exit code."""

import functools
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
            return command(*args, **kwargs)
        except WmtpError as error:
            print(f"wmtp: error: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt:
            print("wmtp: interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader of our output is gone: nothing is left to say to it
            raise SystemExit(0) from None

    return run
