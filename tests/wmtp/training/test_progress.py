"""What is printed is plain where nobody watches, and a bar that never wraps where somebody does."""

import io
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from wmtp.training.progress import Progress

WIDTH = 80


def clock(*times_s: float) -> "Iterator[float]":
    return iter(times_s)


def test_plain_lines_where_there_is_no_terminal() -> None:
    stream, times = io.StringIO(), clock(0.0, 2.0, 3.0)
    with Progress(
        400, began_step=100, every=20, tokens_per_step=1000, stream=stream, clock=lambda: next(times)
    ) as progress:
        progress.step(119, {"loss": 11.0})
        progress.step(120, {"loss": 10.123456, "heads": [2.5, 2.75], "kept": 3, "lr": None})
        progress.line(120, {"held_out": [1.0, 2.0]})
        progress.note("step 20 is durable")
        progress.step(140, {"loss": 9.0})
    assert stream.getvalue() == (
        "step 120/400  loss 10.12  heads 2.5/2.75  kept 3  lr None  steps/s 10  tokens/s 10000\n"
        "step 120/400  held_out 1/2\n"
        "step 20 is durable\n"
        "step 140/400  loss 9  steps/s 20  tokens/s 20000\n"
    )


def test_the_last_step_has_its_line_and_pauses_do_not_count() -> None:
    stream, times = io.StringIO(), clock(0.0, 1.0, 9.0, 10.0)
    with Progress(4, every=10, stream=stream, clock=lambda: next(times)) as progress:
        with progress.paused():
            progress.note("validating")
        progress.step(4, {"loss": 1.0})
    assert stream.getvalue() == "validating\nstep 4/4  loss 1  steps/s 2  tokens/s 0\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    monkeypatch.setenv("LINES", "24")
    return Terminal()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_a_terminal_gets_a_bar_with_the_numbers_and_notes_above_it(terminal: Terminal) -> None:
    times = clock(0.0, 2.0)
    with Progress(400, every=20, tokens_per_step=64, stream=terminal, clock=lambda: next(times)) as progress:
        progress.checkpoints = "durable step_15, lag 5"
        progress.step(20, {"loss": 1.5, "heads": [1.0, 2.0]})
        progress.note("[plain] brackets")
    shown = plain(terminal.getvalue())
    assert "[plain] brackets" in shown and "20/400" in shown
    assert "loss 1.5  steps/s 10  tokens/s 640  durable step_15, lag 5" in shown
    assert "step 20/400" not in shown


def test_no_line_of_the_bar_wraps_and_the_cursor_comes_back(terminal: Terminal) -> None:
    with Progress(1_000_000, every=1, tokens_per_step=10**9, stream=terminal) as progress:
        progress.checkpoints = "durable step_123456789, lag 123456789 " + "and more " * 9
        progress.step(123_456, {"loss": 1234.5})
    assert all(len(line) <= WIDTH for line in re.split(r"[\r\n]", plain(terminal.getvalue())))
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_an_interrupt_leaves_the_terminal_as_it_was(terminal: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), Progress(10, stream=terminal):
        raise KeyboardInterrupt
    assert terminal.getvalue().rindex("\x1b[?25h") > terminal.getvalue().rindex("\x1b[?25l")


def test_plain_progress_imports_neither_torch_nor_rich() -> None:
    program = (
        "import io, sys; from wmtp.training.progress import Progress\n"
        "with Progress(1, stream=io.StringIO()) as progress: progress.step(1, {})\n"
        "sys.exit(bool({'torch', 'rich', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_a_quiet_one_writes_nothing_whoever_watches() -> None:
    terminal = Terminal()
    with Progress(2, stream=terminal, quiet=True) as progress:
        progress.step(2, {"loss": 1.0})
        progress.line(2, {"loss": 1.0})
        progress.note("a line")
    assert terminal.getvalue() == ""
